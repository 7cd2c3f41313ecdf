# One command for each thing a newcomer or a contributor does. Everything happens in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Empty this on a machine with a GPU, to get the CUDA build of torch:  make env CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt

.PHONY: env demo test check format docs bench clean

env: .venv/installed

# torch first and by itself: asked for together with its dependants, pip may choose a build of several gigabytes
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[dev]"
	touch $@

demo: env
	$(BIN)/switchkd demo

test: env
	$(BIN)/python -m pytest -n auto

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: env
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[docs]"
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

# minutes to half an hour of one core: what the losses and a step cost, beside their peers
bench: env
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --no-deps trl liger-kernel ms-swift
	$(BIN)/python benchmarks/loss_from_logits.py --check
	$(BIN)/python benchmarks/loss_from_hidden.py --check
	$(BIN)/python benchmarks/vocabulary.py --check
	$(BIN)/python benchmarks/memory.py --check
	$(BIN)/python benchmarks/step.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
