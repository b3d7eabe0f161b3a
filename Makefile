# Every target creates the environment that it needs, from setup.cfg, pyproject.toml and constraints*.txt alone. The
# environment is created again only when one of these files has changed. `make help` lists the targets.
PYTHON ?= python3
WORKERS ?= 2
CONFIG ?= configs/fashion_products.yaml
FLAGS ?=

VENV := .venv
LOWEST := .venv-lowest
SETUP_FILES := pyproject.toml setup.cfg constraints.txt
# The tests of `make lowest`: all that use an interface of transformers, datasets or accelerate.
LOWEST_TESTS := tests/models tests/data tests/training tests/evaluation tests/test_packaging.py

# Waiting threads sleep: if another process runs at the same time, OpenMP's busy waiting slows both down.
export OMP_WAIT_POLICY ?= PASSIVE

# $(call environment,FOLDER,CONSTRAINTS,EXTRA)
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cca_hf needs Python 3.11 or newer, %s is %s: make PYTHON=python3.12 ..." % (sys.executable, sys.version.split()[0]))'
	@echo "creating the environment $(1) (takes minutes, once)"
	@$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --quiet $(2) --editable '.[$(3)]'
	@touch $(1)/ready
endef

.DEFAULT_GOAL := help
.PHONY: help environment demo space test fuzz docs bench bench-quality lint format types lowest transformers-tests
.PHONY: transformers-main build clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: $(SETUP_FILES)
	$(call environment,$(VENV),-c constraints.txt,dev)

$(LOWEST)/ready: $(SETUP_FILES) constraints-lowest.txt
	$(call environment,$(LOWEST),-c constraints.txt -c constraints-lowest.txt,test)

environment: $(VENV)/ready ## Create the environment (.venv)

demo: $(VENV)/ready ## Compare CCA with one space for all on drawn shapes, write demo/report.html (5 minutes on 2 cores, offline)
	$(VENV)/bin/python scripts/demo.py --output_dir demo

space: $(VENV)/ready ## Search drawn shapes in the browser, with the model of `make demo` (trained first if missing)
	$(VENV)/bin/cca demo

test: $(VENV)/ready ## Run all tests
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

fuzz: $(VENV)/ready ## Compare filters, rankings and batches of random inputs with naive references (a minute)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadscope tests/fuzz

docs: $(VENV)/ready ## Build the documentation site, site/index.html, including the API reference
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet

bench-quality: $(VENV)/ready ## Compare CCA with its baselines in one table (hours; CONFIG=configs/... FLAGS='--dataset ...')
	$(VENV)/bin/python scripts/benchmark_quality.py --config $(CONFIG) --output quality/$(basename $(notdir $(CONFIG))) $(FLAGS)

bench: $(VENV)/ready ## Measure the speed on this machine, into docs/benchmarks (an hour; run nothing else meanwhile)
	$(VENV)/bin/python scripts/benchmark_speed.py --output docs/benchmarks
	$(VENV)/bin/python scripts/benchmark_training_speed.py --output docs/benchmarks

lint: $(VENV)/ready ## Check the code style and format (ruff)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/ready ## Format the code (ruff)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/ready ## Check the types of src (mypy)
	$(VENV)/bin/mypy

lowest: $(LOWEST)/ready ## Run the tests of models, data, training and evaluation on the lowest supported versions
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadscope $(LOWEST_TESTS)

transformers-tests: $(VENV)/ready ## Run transformers' own common tests and an example script on our models (downloads both once)
	$(VENV)/bin/python -m pytest -n $(WORKERS) tests/transformers_common

transformers-main: $(VENV)/ready ## Install the main branch of transformers over the environment (`make clean` undoes it)
	$(VENV)/bin/python -m pip install --quiet --upgrade 'transformers @ git+https://github.com/huggingface/transformers'

build: $(VENV)/ready ## Build the wheel and the source archive into dist/
	$(VENV)/bin/python -m build

clean: ## Remove the files that the other targets created
	rm -rf $(VENV) $(LOWEST) build dist demo site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
