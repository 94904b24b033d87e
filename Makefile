# `make` or `make help` lists what there is. Every target sets up its own environment first, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
JOBS ?= 2
# One thread each: a network as small as the demo's gains little from a second one.
SIDE_BY_SIDE := hydra/launcher=local hydra.launcher.jobs_at_once=$(JOBS)
# The paper leaves open what flows back through the mask. The figure of the README was made with nothing of it.
GRADIENT := model.sampler.gradient=none

.DEFAULT_GOAL := help
.PHONY: help setup ablation report test test-hosts test-slurm bench bench-growth soak check docs format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything that is needed, once

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name yours: make setup PYTHON=python3" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "$(PYTHON) is older than Python 3.11: name a newer one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV): about 5 GB, a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

ablation: $(READY) ## the main job: which blocks should attend (Fig. 5 a, b), on the embedded data
	$(BIN)/python -m sharpreid.prepare data=synthetic
	$(BIN)/python -m sharpreid.train +experiment=block_ablation $(GRADIENT) $(SIDE_BY_SIDE) $(ARGS)

report: $(READY) ## the paper's tables and figures beside runs on the embedded data: report/index.html
	$(BIN)/python -m sharpreid.train +experiment=block_ablation $(GRADIENT) skip_finished=true $(SIDE_BY_SIDE) $(ARGS)
	$(BIN)/python -m sharpreid.train +experiment=methods method=sab_cu,sab_cu_tv,sigmoid_gate,residual_attention $(SIDE_BY_SIDE) $(ARGS)
	$(BIN)/python -m sharpreid.report

test: $(READY) ## all tests but those that change the machine (test-hosts, test-slurm)
	$(BIN)/python -m pytest $(ARGS)

test-hosts: $(READY) ## two hosts, one of which is lost: 2 minutes, Linux as root
	$(BIN)/python -m pytest -rs -m hosts tests/test_hosts.py $(ARGS)

bench: $(READY) ## measure speed and memory as ratios, in one table: a quarter of an hour at most
	$(BIN)/python -m benchmarks $(ARGS)

bench-growth: $(READY) ## how time and memory grow, as curves and exponents: 10 minutes
	$(BIN)/python -m benchmarks.growth $(ARGS)

soak: $(READY) ## kill a training 100 times; its end must be that of an undisturbed one: 12 to 30 minutes
	$(BIN)/python -m tests.soak $(ARGS)

test-slurm: $(READY) ## a sweep on a SLURM cluster of this machine; installs Debian's slurm-wlm, as root: 3 minutes
	$(BIN)/python -m pytest -m slurm $(ARGS)

docs: $(READY) ## the pages and the Python reference as a site in site/; fails on a broken link: 10 seconds
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(READY) ## what CI runs: lint, format, types, pages, fast tests and doctests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MAKE) docs
	$(BIN)/python -m pytest -m "not slow and not gpu"

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## delete the environment and caches; data and results stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
