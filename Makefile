# `make` or `make help` lists the targets. Each target creates the environment first if it does not exist.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
JOBS ?= 2
# Each job has one thread: a network as small as the demo's gains little from a second thread.
SIDE_BY_SIDE := hydra/launcher=local hydra.launcher.jobs_at_once=$(JOBS)
# The paper leaves the gradient through the mask open. The figure of the README was made without this gradient.
GRADIENT := model.sampler.gradient=none
# Test files side by side, one on each core. A test that needs more processes starts them itself.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile
# Pytest's status 5: ARGS named only tests of the other kind.
NONE_IS_FINE = $(if $(ARGS),|| [ $$? = 5 ])

.DEFAULT_GOAL := help
.PHONY: help setup ablation search report check lint test test-fast test-slow test-hosts test-slurm bench bench-growth \
	soak docs format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv with the package and the tools for development

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name yours: make setup PYTHON=python3" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "$(PYTHON) is older than Python 3.11: name a newer one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV): about 5 GB, a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

ablation: $(READY) ## train the block ablation (Fig. 5 a, b) on synthetic people: 11 minutes
	$(BIN)/python -m sharpreid.prepare data=synthetic
	$(BIN)/python -m sharpreid.train +experiment=block_ablation $(GRADIENT) $(SIDE_BY_SIDE) $(ARGS)

# The run is one of those of `make ablation`; it is trained here if it does not exist yet.
SEARCHED := outputs/block_ablation/synthetic/model.blocks=[1,2,3,4],model.sampler.gradient=none/seed=0
NAMES := '(?P<identity>\d+)_c(?P<camera>\d)'

search: $(READY) ## find four synthetic people again in the photos of other cameras: half a minute after make ablation
	$(BIN)/python -m sharpreid.train +experiment=block_ablation model.blocks=[1,2,3,4] seed=0 $(GRADIENT) skip_finished=true
	rm -rf outputs/search
	$(BIN)/python -m sharpreid.embed images=data/synthetic/bounding_box_test model=$(SEARCHED) output=outputs/search/gallery camera_pattern=$(NAMES)
	$(BIN)/python -m sharpreid.search build gallery=outputs/search/gallery store=outputs/search/store
	$(BIN)/python -m sharpreid.search query store=outputs/search/store model=$(SEARCHED) camera_pattern=$(NAMES) \
		images='data/synthetic/query/015[1-6]_c3*.jpg' not_camera=3 k=8 output=outputs/search/matches.png $(ARGS)

report: $(READY) ## train the demo runs and show them beside the paper's tables in report/index.html
	$(BIN)/python -m sharpreid.train +experiment=block_ablation $(GRADIENT) skip_finished=true $(SIDE_BY_SIDE) $(ARGS)
	$(BIN)/python -m sharpreid.train +experiment=methods method=sab_cu,sab_cu_tv,sigmoid_gate,residual_attention $(SIDE_BY_SIDE) $(ARGS)
	$(BIN)/python -m sharpreid.report

# CI runs `make check test`: in one call make runs test-fast, which both need, once.
check: lint test-fast ## run lint and the fast tests

lint: $(READY) ## run ruff and mypy, and build the pages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MAKE) docs

test: test-fast test-slow ## run all tests except those that change the machine (test-hosts, test-slurm)

test-fast: $(READY) ## run the fast tests and the doctests
	$(PYTEST) -m "not slow and not gpu" $(ARGS) $(NONE_IS_FINE)

test-slow: $(READY) ## run the tests that train, start processes or need a GPU
	$(PYTEST) -m "slow or gpu" $(ARGS) $(NONE_IS_FINE)

test-hosts: $(READY) ## test a training on two hosts, one of which is lost; Linux, as root: 2 minutes
	$(BIN)/python -m pytest -rs -m hosts tests/test_hosts.py $(ARGS)

bench: $(READY) ## measure speed and memory as ratios, in one table: a quarter of an hour at most
	$(BIN)/python -m benchmarks $(ARGS)

bench-growth: $(READY) ## measure how time and memory grow, as curves and exponents: 10 minutes
	$(BIN)/python -m benchmarks.growth $(ARGS)

soak: $(READY) ## kill a training 100 times and compare its result with an undisturbed one: 12 to 30 minutes
	$(BIN)/python -m tests.soak $(ARGS)

test-slurm: $(READY) ## test a sweep on a local SLURM cluster; installs Debian's slurm-wlm, as root: 3 minutes
	$(BIN)/python -m pytest -m slurm $(ARGS)

docs: $(READY) ## build the pages and the Python reference into site/; fails on a broken link: 10 seconds
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY) ## apply ruff's automatic fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## delete the environment and caches; data and results stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
