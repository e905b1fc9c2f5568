# `make help` lists the targets. `make train` and `make test` need nothing but Python 3.10+.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes with one thread each; `tests/conftest.py` says how many, and which files come first.
# They keep what Python compiles: every process that a test starts would compile the package again.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install train test test-heavy test-triton test-all lint types format docs tutorials benchmark clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

# Made anew only when the dependencies change. torch goes first and alone: it is the one large
# download, and a build of your own choice (CPU, CUDA) installed before is left as it is.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "torch>=2.11,<2.14"
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@

install: $(READY)  ## Make the virtual environment in .venv

train: $(READY)  ## Train the imagebind experiment on the sample data: make train ARGS="seed=1"
	$(BIN)/python scripts/train.py +experiment=imagebind $(ARGS)

test: $(READY)  ## Run the quick tests
	$(PYTEST) -m "not heavy and not slow and not gpu and not network and not triton" $(ARGS)

test-heavy: $(READY)  ## Run those that take some seconds each
	$(PYTEST) -m "heavy and not slow and not gpu and not network and not triton" $(ARGS)

test-triton: $(READY)  ## Install Triton, and run the tests of its kernels
	$(BIN)/python -m pip install -q -e ".[triton]"
	TRITON_INTERPRET=1 $(PYTEST) -m triton $(ARGS)

test-all: $(READY)  ## Run the slow tests too
	$(PYTEST) -m "not gpu and not network and not triton" $(ARGS)

lint: $(READY)  ## Check style and the levels of the modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)  ## Check the types of the package
	$(BIN)/mypy

format: $(READY)  ## Rewrite the code in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## Build the documentation as a site: build/site/index.html
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tutorials: $(READY)  ## Run the tutorials and write down what they print
	$(BIN)/python tests/helpers/tutorials.py $(filter-out docs/tutorials/index.md docs/tutorials/photos.md,$(wildcard docs/tutorials/*.md))
	$(BIN)/python tests/helpers/notebooks.py docs/tutorials/*.ipynb

benchmark: $(READY)  ## Measure a step by its parts, the loop and what both grow with (docs/performance.md)
	$(BIN)/python scripts/benchmark/step.py
	$(BIN)/python scripts/benchmark/overhead.py
	$(BIN)/python scripts/benchmark/scaling.py
	$(BIN)/python scripts/benchmark/naflex.py

clean:  ## Remove caches and builds; runs in outputs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
