# The two commands of the README, and what the continuous integration runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HF_VENV ?= .venv-hf
# The build of torch that test-hf installs; the index decides whether it is one for the processor or for a GPU, of several GB.
TORCH ?= torch==2.13.0
DEMO := build/demo

.PHONY: demo test test-hf lint types check wheel clean

demo: $(VENV)/.demo
	@mkdir -p $(DEMO)
	$(BIN)/rewright optimize tests/zoo/bert.ts17.sdpa.onnx -o $(DEMO)/bert.optimized.onnx -O O2 \
		--report $(DEMO)/report.html --report $(DEMO)/report.json

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto

test-hf: $(HF_VENV)/.hf
	OMP_NUM_THREADS=1 $(HF_VENV)/bin/python -m pytest tests/hf -n auto --maxprocesses 4 --dist loadfile --disable-warnings

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

wheel: $(VENV)/.dev
	$(BIN)/python -m build --no-isolation --outdir dist

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rewright needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(HF_VENV)/.hf: pyproject.toml
	test -x $(HF_VENV)/bin/python || $(PYTHON) -m venv $(HF_VENV)
	$(HF_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(HF_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(HF_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[hf,testing]' pytest-xdist
	@touch $@

clean:
	rm -rf $(VENV) $(HF_VENV) build dist
