#!/usr/bin/env bash
# The main job, end to end, on data that ships with scikit-learn: measure this machine, estimate a Raspberry Pi 4, fit
# predictors of their cost, search a network for each of four clients within its own budget, export and measure them.
#
#   make demo                        in the folder demo/
#   bash examples/demo.sh FOLDER     in another one, with hwcost and faqs on the PATH
#
# Only the folder is written to. Each search gets a run folder of its own.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:-demo}"
cd "${1:-demo}"
run=runs/$(date +%Y%m%d-%H%M%S)

say() { printf '\n== %s\n' "$*"; }
step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

say "What operators cost: measured here, and for a Raspberry Pi 4 (an estimate, unless this is one)"
# An eighth of the usual time, to be quick: fewer operators of other networks; the search's own are measured anyway.
step hwcost profile --out profiles/host.json --budget 60s
step hwcost profile --device rpi4 --samples 120

say "Predictors of that cost, cross-validated; the best one of each kind of operator is kept"
step hwcost fit profiles/host.json profiles/rpi4.json

say "Four clients with budgets of their own: this machine and the Raspberry Pi 4 in turn"
budgets=$(python "$examples/budgets.py" profiles/host.json profiles/rpi4.json)
# shellcheck disable=SC2086  # the options are words without spaces
step faqs search --profile profiles/host.json --profile profiles/rpi4.json $budgets --out "$run"

say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
printf 'Report: %s\n' "$PWD/$run/report.html"
printf 'Models: %s\n' "$PWD/$run"/clients/*/model.onnx
