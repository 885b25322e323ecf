# Short targets; CI calls the same ones. Needs Python 3.11 to 3.13 and the package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

# The CUDA build of fbgemm does not import without an NVIDIA driver, nor the CPU build use one.
ACCELERATOR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := infra/locks/$(ACCELERATOR).txt
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test coverage lint format types lock clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv:  ## make .venv from the lock that fits this machine; instant when nothing changed
	@want="$$(cat $(LOCK) pyproject.toml | cksum) $(ACCELERATOR) $(UV_VERSION)"; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" != "$$want" ]; then \
		$(MAKE) --no-print-directory install && echo "$$want" > $(STAMP); \
	fi

.PHONY: install
install:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"Headwater needs Python 3.11 to 3.13; $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12 ...")'
	@echo "installing $(LOCK) into $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --reinstall --no-build-isolation --editable .

demo: venv  ## the whole way on real data: prepare, train, evaluate, export, serve
	$(BIN)/headwater demo

# A file goes to one worker, since its tests share runs, releases and services. In the order of folders, the
# longest files come early and short ones fill the end.
PYTEST = pytest -m "not slow" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: venv lint types  ## lint, types, and every test that is not slow
	$(BIN)/python -m $(PYTEST)

coverage: venv  ## the same tests, slower, and which lines they run; fails under 95 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: venv  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: venv  ## let ruff fix and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: venv  ## basedpyright, strict
	$(BIN)/basedpyright

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header

lock: venv  ## write the locks again from pyproject.toml, keeping pins that still fit
	$(COMPILE) --all-extras --override infra/locks/cpu.override pyproject.toml infra/locks/cpu.in -o infra/locks/cpu.txt
	$(COMPILE) --all-extras pyproject.toml infra/locks/cuda.in -o infra/locks/cuda.txt
	$(COMPILE) --extra serve pyproject.toml -o infra/locks/serve.txt

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage*
