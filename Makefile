# Every target makes .venv and installs what it needs by itself; nothing is printed when there is nothing to do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: reproduce test test-slow test-gpu bench study lint readme docs clean
.DELETE_ON_ERROR:

reproduce: $(VENV)/.installed
	@$(BIN)/matchmark reproduce

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal

test-slow: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -q -m slow

test-gpu: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -q -m gpu

bench: $(VENV)/.installed-dev
	@$(BIN)/asv machine --yes > /dev/null
	@$(BIN)/asv run

study: $(VENV)/.installed-peers
	@$(BIN)/python -m benchmarks.study
	@$(BIN)/python -m benchmarks.quadratic_study

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

readme: $(VENV)/.installed
	@$(BIN)/python -m docs.readme_tables

docs: $(VENV)/.installed-dev
	@$(BIN)/python -m docs.site

clean:
	rm -rf $(VENV) .asv results/cache results/runs results/report results/docs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Matchmark needs Python 3.11 or newer; set PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

# The torch build for CUDA is large: the first installation downloads several gigabytes.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Matchmark into $(VENV) (some minutes, once)"
	@$(INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Matchmark and its development tools into $(VENV) (some minutes, once)"
	@$(INSTALL) --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-peers: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Matchmark, its development tools and the peers of the study into $(VENV) (some minutes, once)"
	@$(INSTALL) --constraint constraints.txt --editable ".[dev,peers]"
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed
