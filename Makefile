# Everything runs in .venv, which `install` makes on first use and again when pyproject.toml or constraints.txt changes.
# Needed beforehand: make, and Python 3.11 or newer with its venv module (another one: `make PYTHON=/path/to/python`).

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
DEMO ?= demo
DATA ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench bench-communication emulate constraints clean

help:  ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## .venv with the packages, their dependencies and the developer's tools

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3.11 python3); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "Making $(VENV) with $$python" >&2; \
	      $$python -m venv --clear $(VENV) || exit 1; \
	      break; \
	    fi; \
	  done; \
	fi
	@test -x $(BIN)/python || { echo "FAQS needs Python 3.11 or newer with its venv module, found none as" \
	  "$(or $(PYTHON),python3.11 or python3): install it, or say where it is with make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing into $(VENV): a few minutes the first time" >&2
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: install  ## the main job end to end, in the folder DEMO=demo: profile, fit, search, export, check
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh "$(DEMO)"

test: install  ## every test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: install  ## format, lint, types, the layout's contracts and the layout's tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest tests/test_layout.py

bench: install  ## every benchmark of benchmarks/ but the next; DATA=folder for those that need published tables
	@set -e; for script in $$(grep -l '= Benchmark(' benchmarks/*.py | grep -v /communication.py); do \
	  if ! grep -q '"--data"' "$$script"; then echo "$$script" >&2; $(BIN)/python "$$script"; \
	  elif [ -n "$(DATA)" ]; then echo "$$script" >&2; $(BIN)/python "$$script" --data "$(DATA)"; \
	  else echo "$$script: left out, needs DATA=folder" >&2; fi; \
	done

bench-communication: install  ## bytes and accuracy of federations: DATA=folder with CIFAR-10 (hours, resumable), else small images
	$(BIN)/python -m benchmarks.communication $(if $(DATA),--full --data "$(DATA)" --jobs 2,--quick)

emulate: install  ## profiles/rpi4.json by emulation again, and the copy that is shipped: half an hour; resumes if killed
	$(BIN)/hwcost emulator --install
	$(BIN)/hwcost profile --device rpi4 --emulate --out profiles/rpi4.json
	cp profiles/rpi4.json hwcost/devices/rpi4.profile.json

constraints: install  ## write constraints.txt again from what .venv holds
	@sed -n '/^#/p' constraints.txt > constraints.tmp
	@$(BIN)/python -m pip freeze --all --exclude-editable >> constraints.tmp
	@sed -e '/^pip==/d' -e 's/+cpu$$//' constraints.tmp > constraints.txt && rm constraints.tmp

clean:  ## remove .venv and the tools' caches; profiles, runs and the demo stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find hwcost faqs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
