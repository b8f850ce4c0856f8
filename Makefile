# Two commands on a fresh machine with Python 3.11 or newer, git and make:
#   make demo         installs the package and runs its main job on the bundled model
#   make test         installs what development needs, lints, type-checks, runs the tests
# Both install the versions in constraints.txt. For maintainers:
#   make faults       damages every kind of input, kills commands, fills disks (an hour; docs/reliability.md)
#   make fuzz         reads randomly changed files for SECONDS=600
#   make docs         builds the site into site/, and fails at a broken link
#   make test-lowest  runs the tests on the lower bounds of pyproject.toml, in .venv-lowest (6 GB of disk)
#   make interop      runs the interop tests with several versions of diffusers, PEFT and LyCORIS, in .venv-interop
#   make constraints  writes the versions of .venv to constraints.txt
#   make comfy        tests the nodes in a real ComfyUI: make comfy COMFYUI_PATH=FOLDER (several: separated by a colon)
#   make bench        makes a full-size pair of checkpoints (30 GB of disk) and measures; ARGS="--scale 0.2" is quicker

PYTHON ?= python3
SECONDS ?= 600
LOWEST_PYTHON ?= python3.11
BIN := .venv/bin
LOWEST := .venv-lowest
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test lint types unit comfy faults fuzz docs test-lowest interop constraints bench clean

demo: .venv/.installed
	$(BIN)/lbm-lora demo

test: lint types unit

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/basedpyright

unit: .venv/.dev
	$(BIN)/pytest -n 2 --dist worksteal

faults: .venv/.dev
	$(BIN)/pytest tests/faults -m "faults"

fuzz: .venv/.dev
	PYTHONPATH=tests:src $(BIN)/python -m faults.fuzz --seconds $(SECONDS)

docs: .venv/.docs
	$(BIN)/mkdocs build --strict --quiet

comfy: .venv/.dev
	@test -n "$(COMFYUI_PATH)" || { echo "Give the folder of ComfyUI: make comfy COMFYUI_PATH=~/ComfyUI"; exit 2; }
	COMFYUI_PATH=$(COMFYUI_PATH) $(BIN)/pytest tests/comfy

# annotations are not checked here: older versions of jaxtyping cannot check a dataclass that names itself
test-lowest: $(LOWEST)/.test
	$(LOWEST)/bin/pytest -n 2 --dist worksteal -o addopts="-ra --import-mode=importlib --strict-markers" -m "not slow"

interop: .venv/.dev
	$(BIN)/python tools/interop.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: $(SOURCES) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $@

.venv/.dev: $(SOURCES) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@ .venv/.installed

.venv/.docs: $(SOURCES) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint constraints.txt
	touch $@ .venv/.installed

$(LOWEST)/bin/python:
	$(LOWEST_PYTHON) -m venv $(LOWEST)

$(LOWEST)/.test: pyproject.toml tools/lowest.py | $(LOWEST)/bin/python
	$(LOWEST)/bin/python tools/lowest.py test > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[test]' --constraint $(LOWEST)/lowest.txt
	touch $@

constraints: .venv/.dev
	sed '/^$$/q' constraints.txt > constraints.tmp
	$(BIN)/python -m pip list --format=freeze --exclude-editable \
	  | grep -vE '^(pip|setuptools|lbm-lora|torch|torchvision|triton|nvidia-.*|cuda-.*)==' >> constraints.tmp
	mv constraints.tmp constraints.txt
	touch .venv/.dev .venv/.docs .venv/.installed

bench: .venv/.dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-interop $(LOWEST) demo site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
