# Everything runs from .venv, which `make setup` builds; no environment needs to be active.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
# `engine` (vLLM for GPUs) where the driver answers, else `engine-cpu`; ENGINE=… decides otherwise
ENGINE ?= $(shell if nvidia-smi >/dev/null 2>&1; then echo engine; else echo engine-cpu; fi)
# one stamp a variant: a machine that gets a GPU is set up anew
SETUP := .make/setup-$(ENGINE)
MODEL := demo_model/weights

.PHONY: help setup setup-from-index demo up down demo-model check test test-integration test-e2e chaos compare-decoders fuzz bench format constraints clean

help: ## say what each target does
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(SETUP) ## install everything into .venv; done once per change of the dependencies

$(SETUP): pyproject.toml constraints.txt scripts/setup.sh scripts/install.py
	@scripts/setup.sh $(ENGINE)
	@mkdir -p .make && rm -f .make/setup-* && touch $@

# what a machine does that has the usual package index alone
setup-from-index: ## `make setup` in a fresh clone under out/setup, pip's configuration switched off
	@rm -rf out/setup && git clone --quiet . out/setup
	@cd out/setup && export PIP_CONFIG_FILE=/dev/null && unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL \
	    && time $(MAKE) --no-print-directory setup && du -sh .venv \
	    && time $(MAKE) --no-print-directory demo

# --enforce-eager: without it torch compiles C++ first (half a minute more, and it needs g++)
demo: $(SETUP) ## build examples/manifest.jsonl into out/demo with real vLLM
	$(BIN)/earwitness build examples/manifest.jsonl out/demo --model $(MODEL) --dtype float32 --max-tokens 48 -- --enforce-eager

up: $(SETUP) ## Prefect server, workers (real vLLM) and deployments on this machine; prints the UI's address
	@$(BIN)/python -m deployments.local up

down: ## stop what `make up` started
	@$(BIN)/python -m deployments.local down

check: $(SETUP) ## format, lint, strict types, import contracts, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit

# two at once: each waits for servers most of the time
test: check ## check, then every test: real vLLM, S3 and Prefect
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-integration test-e2e

test-integration: $(SETUP) ## tests with real processes, S3 and Prefect; a stand-in for the engine
	$(BIN)/python -m pytest tests/integration

test-e2e: $(SETUP) ## tests with real vLLM, workers, and the UI in a browser
	$(BIN)/python -m pytest tests/e2e

chaos: $(SETUP) ## tests with injected faults and attacks, seeded: MINUTES=15 SEED=1 (a longer run finds more)
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),15) --seed $(or $(SEED),1)

compare-decoders: $(SETUP) ## hold our decoder against FFmpeg: every file of DIR=folder, else odd files of other projects, fetched
	$(BIN)/python -m tests.chaos.compare_decoders $(DIR)

fuzz: $(SETUP) ## coverage-guided, of the manifest parser and the probe: FUZZ_S=600 seconds each
	$(BIN)/python -m tests.fuzz manifest --seconds $(or $(FUZZ_S),600)
	$(BIN)/python -m tests.fuzz headers --seconds $(or $(FUZZ_S),600)

bench: $(SETUP) ## every benchmark, one table, docs/performance.md; half an hour, on a quiet machine
	$(BIN)/python -m benchmarks

demo-model: $(SETUP) ## train the demo model from nothing into out/demo-model (under 40 minutes on 2 cores)
	$(BIN)/python -m demo_model.train out/demo-model --seed 0

format: $(SETUP) ## format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(SETUP) ## write constraints.txt from what .venv holds now
	$(BIN)/python scripts/freeze_constraints.py constraints.txt

clean: ## remove .venv, caches and outputs
	@if [ -d .make/up ]; then $(BIN)/python -m deployments.local clean; fi
	rm -rf .venv .make out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
