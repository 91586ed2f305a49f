# Each target sets up what it needs; a second run installs nothing and needs no network.

PYTHON ?= python3
WORKERS ?= 2
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
PINS := --constraint constraints.txt --build-constraint constraints.txt
# From one line of constraints.txt: the pip of Python 3.11 knows no --group.
PIP_PIN := $(shell grep '^pip==' constraints.txt)

EXPERIMENTS := $(filter-out experiments/_% experiments/train_%,$(wildcard experiments/*.py))

# Real networks and data, where they lie beside the checkout.
ifneq ($(wildcard ../shared/data),)
export LOWRANK_DATA ?= $(abspath ../shared/data)
endif

# Compiled once, kept for the next run; threads would only get in the way of small decompositions.
verify test slow fuzz figures attack: export JAX_COMPILATION_CACHE_DIR := $(abspath $(VENV))/jax-cache
verify test slow fuzz figures attack: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
verify test slow fuzz figures attack: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1
verify test slow fuzz figures attack: export OPENBLAS_NUM_THREADS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help verify test slow fuzz figures indices attack bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

verify: $(VENV)/.library ## check every theorem against random instances; report in out/verify
	$(BIN)/lowrank-theory verify --preset quick --workers $(WORKERS) --out out/verify

test: export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
test: $(VENV)/.tools ## lint, check types, run the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -m "not slow" --numprocesses $(WORKERS) --dist worksteal

slow: $(VENV)/.tools ## run the tests that `make test` leaves out
	$(BIN)/pytest -m slow --numprocesses $(WORKERS) --dist worksteal

fuzz: $(VENV)/.tools ## hold hostile inputs against an oracle; goes on where it was cut, in out/fuzz (SEED=0)
	$(BIN)/python tests/fuzzing/fuzz.py --seed $(SEED) --workers $(WORKERS)

figures: $(VENV)/.library ## run every experiment; writes figures/ (SIZE=--quick: few trials, to out/figures)
	@set -e; for script in $(EXPERIMENTS); do \
	  echo $$script; $(BIN)/python $$script $(SIZE) || [ $$? -eq 77 ]; done  # 77: no data for it

indices: $(VENV)/.library ## write the lists of theorems in documents, from theorems/_contents.py
	$(BIN)/python experiments/_indices.py

attack: $(VENV)/.library ## attack every sure statement; writes its worst instances to figures/attack
	$(BIN)/lowrank-theory attack --workers $(WORKERS) --out figures/attack --json figures/attack/table.json
	$(BIN)/python experiments/_indices.py

bench: $(VENV)/.tools ## measure everything beside others; writes benchmarks/ (SIZE=--quick: small, to out/benchmarks)
	$(BIN)/python benchmarks/run.py $(SIZE)

lock: ## resolve constraints.txt anew, from pyproject.toml alone
	$(PYTHON) -m venv --clear out/lock
	out/lock/bin/python -m pip install --quiet --upgrade pip
	out/lock/bin/python -m pip install --quiet hatchling editables
	out/lock/bin/python -m pip install --quiet --group dev --editable .
	out/lock/bin/python -m pip freeze --all --exclude-editable --exclude setuptools > constraints.txt
	rm -r out/lock

clean: ## remove the environment, the caches and out/
	rm -rf $(VENV) out dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -r {} +

$(VENV)/.created: constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet $(PIP_PIN)
	@touch $@

$(VENV)/.library: pyproject.toml $(VENV)/.created
	$(PIP) install --quiet $(PINS) --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.library
	$(PIP) install --quiet $(PINS) --group dev
	@touch $@
