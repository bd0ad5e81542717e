# The words a newcomer needs. Everything runs in .venv, which is made and filled on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := pyproject.toml constraints.txt
MODEL ?= models/smollm2-135m
ROUNDS ?= 3
WORKLOADS ?=
DEVICE ?= cpu

.DEFAULT_GOAL := help
.PHONY: help demo install dev lint test test-learning bench bench-model format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: install  ## train the embedded demo model: SFT, then GRPO, a few minutes on two CPU cores
	$(BIN)/outscore demo

install: $(VENV)/.installed  ## make .venv and install outscore, pinned by constraints.txt

dev: $(VENV)/.installed-dev  ## the same with everything the tests need

lint: dev  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, types, and every test that takes seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope -m "not slow and not learning and not peer and not gpu"

test-learning: dev  ## the long tests: train, and assert that something was learnt
	$(BIN)/python -m pytest -m "(slow or learning) and not peer and not gpu"

bench-model:
ifneq ($(DEVICE),cuda)
	@$(PYTHON) benchmarks/needed.py $(MODEL) $(WORKLOADS)
endif

bench: bench-model dev  ## TRL and Outscore in turn on the same work, all workloads or those of WORKLOADS="short demo"; goes on where it stopped; DEVICE=cuda: sizes for a GPU
	$(PIP) install --quiet -c constraints.txt -e '.[peer]'
ifeq ($(DEVICE),cuda)
	$(BIN)/python benchmarks/on_gpu.py --rounds $(ROUNDS) $(if $(WORKLOADS),--workloads $(WORKLOADS))
else
	$(BIN)/python benchmarks/against_trl.py $(MODEL) --rounds $(ROUNDS) $(if $(WORKLOADS),--workloads $(WORKLOADS))
endif

format: dev  ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an install that was cut off runs again, and one that is done costs nothing.
# An environment that could not be made whole is removed: the next try, perhaps with another PYTHON, begins anew.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "outscore needs Python 3.11 or newer and $(PYTHON) is not: name another, as in  make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) could not make $(VENV): on Debian and Ubuntu install the package python3-venv"; exit 1; }

$(VENV)/.installed: $(PINNED) | $(VENV)/bin/python
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(PINNED) | $(VENV)/bin/python
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed
