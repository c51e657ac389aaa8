# Two commands for a newcomer: `make demo` and `make test`. Both set themselves up.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test lint bench clean

setup: .venv/.ready

# Only the pinned versions in pyproject.toml count; a change there installs again.
.venv/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m benchmarks.digits

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/loomweight bundle verify bundles/starter

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
