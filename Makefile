# Two commands set everything up on a fresh machine with Python 3.10 or later:
#   make demo   step the shipped world for 300 actions, write a video and a contact sheet to demo_out/
#   make test   ruff, pyright and pytest, with the system packages that headless rendering needs
# PYTHON chooses the interpreter; PIP_FLAGS is passed to every `pip install`, for instance to install from another index.

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
# Two test processes on two cores: one torch thread each.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: demo test lint unit headless clean
.DELETE_ON_ERROR:

demo: .venv/.demo-installed
	$(BIN)/python -m ws_gym.demo

test: lint unit

lint: .venv/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/pyright

unit: .venv/.dev-installed headless
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) $(PYTEST_FLAGS)

headless:
	@bash .ci/headless_packages

.venv/bin/python:
	PYTHON="$(PYTHON)" bash .ci/create_venv

.venv/.demo-installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing worldscape and what it needs into .venv (a few minutes the first time)"
	$(PIP_INSTALL) -e .
	@touch $@

.venv/.dev-installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing worldscape and what its tests need into .venv (a few minutes the first time)"
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@ .venv/.demo-installed

clean:
	rm -rf .venv build dist demo_out .pytest_cache .ruff_cache .hypothesis models/worldscape.egg-info worldscape.egg-info
	find models ws_gym examples benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
