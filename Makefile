# Two commands on a fresh machine with Python 3.11 or newer, git and make:
#   make demo   installs the package and runs its main job on the bundled model
#   make test   installs what development needs, lints, type-checks, runs the tests
# and one for the numbers in docs/performance.md:
#   make bench  makes a full-size pair of checkpoints (30 GB of disk) and measures; ARGS="--scale 0.2" is quicker

PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml

.PHONY: demo test lint types unit bench clean

demo: .venv/.infer
	$(BIN)/lbm-lora demo

test: lint types unit

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/basedpyright

unit: .venv/.dev
	$(BIN)/pytest -n 2 --dist loadfile

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.infer: $(SOURCES) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[infer]'
	touch $@

.venv/.dev: $(SOURCES) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/.infer

bench: .venv/.infer
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache
