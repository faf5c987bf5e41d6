#!/usr/bin/env bash
# The main job, end to end, on data that ships with scikit-learn: measure this machine, fit predictors of its cost,
# search a network for each of four clients within its own budget, export the networks, and measure them.
#
#   make demo                     in the folder demo/
#   bash examples/demo.sh FOLDER  in another one, with hwcost and faqs on the PATH
#
# Nothing outside the folder is written. Each run of the search gets a folder of its own.
set -euo pipefail

folder=${1:-demo}
mkdir -p "$folder"
cd "$folder"
run=runs/$(date +%Y%m%d-%H%M%S)

say() { printf '\n== %s\n' "$*" >&2; }
step() {
    printf '\n$ %s\n' "$*" >&2
    "$@"
}

say "What the operators of the search space cost here (measured), and on a Raspberry Pi 4 (estimated, unless this is one)"
step hwcost profile --device host --out profiles/host.json
step hwcost profile --device rpi4

say "Predictors of that cost, cross-validated; the best one of each operator kind is kept"
step hwcost fit

say "Four clients: two of this machine's class, two Raspberry Pi 4, each with a budget of its own"
step faqs search --profile profiles/host.json --profile profiles/rpi4.json --clients 4 --seed 0 --out "$run"

say "Predicted against measured"
step faqs show "$run"

printf '\nDone in %d s.\n' "$SECONDS"
printf 'Report: %s\n' "$PWD/$run/report.html"
printf 'Models: %s\n' "$PWD/$run"/clients/*/model.onnx
