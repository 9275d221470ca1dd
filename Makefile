# algoscope: `make` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-long check bench clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed  ## train the 3-digit adder, certify all 1,000,000 sums, look inside, write the report
	@$(BIN)/algoscope demo

test: $(VENV)/.tools $(VENV)/.browser  ## every test, then lint and types
	@$(BIN)/python -m pytest -n auto --dist worksteal --durations=8
	@$(BIN)/python -m pytest -n auto --dist worksteal --durations=8 walks
	@$(MAKE) --no-print-directory check

test-long: $(VENV)/.tools $(VENV)/.browser  ## rarer and slower: more kills, more copies, models trained with another seed
	@$(BIN)/python -m pytest -n auto --durations=8 -m long --hypothesis-profile=far
	@$(BIN)/python -m pytest -n auto --durations=8 walks --hypothesis-profile=far
	@$(BIN)/python -m pytest -n auto --durations=8 -m "trained and not long" --trained-seed 3

check: $(VENV)/.tools  ## lint and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.tools  ## measure every speed claim (some hours) and print its table
	@for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## remove the virtual environment and what tools left behind (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "algoscope needs Python 3.11 or newer, and %s is %d.%d: make PYTHON=/path/to/python3.11" % (sys.executable, v[0], v[1]))'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing algoscope (PyTorch is large: some minutes the first time)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	@echo "installing the test tools"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.browser: scripts/install_browser.py | $(VENV)/.tools
	@$(BIN)/python scripts/install_browser.py
	@touch $@
