# Two commands for a newcomer: `make demo` and `make test`. Both set themselves up.
PYTHON ?= python3.11
BIN := .venv/bin
# Idle OpenMP threads sleep instead of spinning; several processes share the cores here.
export OMP_WAIT_POLICY ?= PASSIVE

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
	$(BIN)/python -m benchmarks.render --check

# The result files behind the README; DATA is a folder of image sets in the Hugging Face layout, RUN the bundle's training run.
RUN ?= runs/starter
bench: setup
	$(BIN)/python -m benchmarks.digits --draws 10 --out docs/results/digits.json
	$(BIN)/python -m benchmarks.fewshot --run $(RUN) --data $(DATA) --tasks 100 --head-tasks 300 --hundred 30 --thousand 5 --out docs/results/fewshot.json
	$(BIN)/python -m benchmarks.seen_tasks --run $(RUN) --out docs/results/seen_tasks.json
	$(BIN)/python -m benchmarks.latency --out docs/results/latency.json
	$(BIN)/python -m benchmarks.runtime_backends --out docs/results/runtime_backends.json
	$(BIN)/python -m benchmarks.better_start --run $(RUN) --data $(DATA) --most-images 10000 --out docs/results/better_start.json
	$(BIN)/python -m benchmarks.cost --out docs/results/cost.json
	$(BIN)/python -m benchmarks.novelty --run $(RUN) --data $(DATA) --tasks 10 --out docs/results/novelty.json
	$(BIN)/python -m benchmarks.ablations --run $(RUN) --data $(DATA) --steps 300 --tasks 24 --out docs/results/ablations.json
	$(BIN)/loomweight train card --recipe starter
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.render

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
