# Every target makes the environment that it needs; nothing has to be installed by hand but Python.
# Another interpreter: make setup PYTHON=python3.13.  Without uv though it is there: make setup UV=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
UV ?= $(shell command -v uv 2>/dev/null)
BIN := .venv/bin
WORKERS ?= auto

.PHONY: help setup demo check fix test test-long coverage bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/.ready-demo ## make .venv/ with the cellarer command in it
	@echo "ready: .venv/bin/cellarer"

demo: .venv/.ready-demo ## a product is made, backed up, destroyed, recovered and proven
	@$(BIN)/cellarer demo

check: .venv/.ready-dev ## style, types and import contracts, without running a test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src tests benchmarks
	$(BIN)/lint-imports --no-cache

fix: .venv/.ready-dev ## let ruff repair and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check ## the checks, then every test that takes seconds
	$(BIN)/python -m pytest -n $(WORKERS) -m "not long"

test-long: .venv/.ready-dev ## the tests that take minutes
	$(BIN)/python -m pytest -n $(WORKERS) -m long

coverage: .venv/.ready-dev ## which lines and branches the tests that take seconds reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not long"
	$(BIN)/coverage combine
	$(BIN)/coverage report

bench: .venv/.ready-dev ## time and bytes against pg_dump, zstd, restic, Borg, pgBackRest where installed
	$(BIN)/python benchmarks/database.py
	$(BIN)/python benchmarks/vault.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/base.py
	$(BIN)/python benchmarks/pages.py
	$(BIN)/python benchmarks/wal.py

clean: ## remove .venv/ and everything that the tools leave behind
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says which extras are installed; it is older than pyproject.toml when they may differ now.
.venv/.ready-demo: EXTRA := demo
.venv/.ready-dev: EXTRA := dev
.venv/.ready-demo .venv/.ready-dev: pyproject.toml tools/environment
	@UV="$(UV)" PYTHON="$(PYTHON)" tools/environment "$(EXTRA)"
	@touch "$@"

# The scripts in .venv/bin hold the path of their folder: one that was moved is made anew.
ifneq ($(shell cat .venv/.home 2>/dev/null),$(shell pwd -P))
.PHONY: .venv/.ready-demo .venv/.ready-dev
endif
