# Two commands for a newcomer: `make demo` and `make test`. Both set themselves up.
PYTHON ?= python3.11
BIN := .venv/bin
# Idle OpenMP threads sleep instead of spinning; several processes share the cores here.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test lint bench bench-similarity chaos clean deploy-check observability-check dashboards-check external-secrets-schema restore-drill images images-check compose-check pin-images smoke constraints fuzz audit console-check

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

# The result files behind the README; DATA is a folder of image sets in the Hugging Face layout, RUN the bundle's training run,
# BENTOML (if set) a Python that has BentoML.
RUN ?= runs/starter
bench: setup
	$(BIN)/python -m benchmarks.tune_rivals --run $(RUN) --tasks 6 --thousand 1 --probes 20 --out docs/results/tune_rivals.json
	$(BIN)/python -m benchmarks.digits --draws 10 --out docs/results/digits.json
	$(BIN)/python -m benchmarks.fewshot --run $(RUN) --data $(DATA) --tasks 100 --head-tasks 300 --hundred 30 --thousand 5 --out docs/results/fewshot.json
	$(BIN)/python -m benchmarks.seen_tasks --run $(RUN) --out docs/results/seen_tasks.json
	$(BIN)/python -m benchmarks.latency --out docs/results/latency.json
	$(BIN)/python -m benchmarks.similarity_latency --out docs/results/similarity_latency.json
	$(BIN)/python -m benchmarks.runtime_backends --out docs/results/runtime_backends.json
	$(BIN)/python -m benchmarks.batching --rounds 3 --out docs/results/batching.json
	$(BIN)/python -m benchmarks.lanes --out docs/results/lanes.json
	$(BIN)/python -m benchmarks.load $(if $(BENTOML),--bentoml $(BENTOML)) --rounds 3 --seconds 8 --out docs/results/load.json
	$(BIN)/python -m benchmarks.better_start --run $(RUN) --data $(DATA) --most-images 10000 --out docs/results/better_start.json
	$(BIN)/python -m benchmarks.cost --out docs/results/cost.json
	$(BIN)/python -m benchmarks.novelty --run $(RUN) --data $(DATA) --tasks 10 --out docs/results/novelty.json
	$(BIN)/python -m benchmarks.ablations --run $(RUN) --data $(DATA) --out docs/results/ablations.json --tasks 12 --views --only shares guidance steps temperature evidence looks candidates
	$(BIN)/python -m benchmarks.ablations --run $(RUN) --data $(DATA) --out docs/results/ablations.json --steps 300 --tasks 24 --only full unconditional no-set-codes unaligned raw-weights pooled-classes class-places zoo-40 zoo-80 zoo-160 latent-loss zero-head other-seed photographs known-classes frozen-decoder no-encoder-features
	$(BIN)/python -m benchmarks.literature table4 --run runs/table4 --out docs/results/table4.json
	$(BIN)/python -m benchmarks.literature fewshot --run runs/literature-fewshot --tasks 150 --out docs/results/literature_fewshot.json
	$(BIN)/loomweight train card --recipe starter
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.render

# Which tasks were two networks trained for? Builds its sets of networks first, about two core-hours in all.
bench-similarity: setup
	for set in narrow mixed shared shuffled untrained; do \
	  $(BIN)/loomweight train data modelset --recipe modelset-$$set --data $(DATA) || exit 1; done
	$(BIN)/python -m benchmarks.similarity --recipe modelset-narrow --run runs/modelset-narrow --mixed runs/modelset-mixed --controls shared=runs/modelset-shared shuffled=runs/modelset-shuffled untrained=runs/modelset-untrained --out docs/results/similarity.json
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.render

# Operations: docs/deployment.md ----------------------------------------------------------------------------------------

# Manifests, Dockerfile, compose file, rules, dashboards; needs kubectl. Part of `make test` too.
deploy-check: setup
	$(BIN)/python -m pytest tests/deploy

# Every alert's unit tests, then a real Prometheus beside the real service; needs promtool and prometheus.
observability-check: setup
	cd observability/prometheus && promtool check config prometheus.yml && promtool test rules tests/*.yml
	$(BIN)/python -m tests.deploy.observability --out docs/results/observability.json --plots docs/images

# Dashboards against Grafana's own types; needs npm.
dashboards-check: setup
	$(BIN)/python -m tests.deploy.grafana_schema

# The schema of External Secrets' resources, for deploy-check; needs npm.
external-secrets-schema: setup
	$(BIN)/python -m tests.deploy.external_secrets

# Store and Redis are lost and restored, on loopback servers of the drill's own.
restore-drill: setup
	$(BIN)/python -m tests.deploy.restore_drill --out docs/results/restore_drill.json

# Workers are killed, Valkey restarts, S3 goes away: every accepted job still ends once, truthfully.
chaos: setup
	$(BIN)/python -m tests.e2e.chaos --out docs/results/chaos.json

# Security: docs/security.md ---------------------------------------------------------------------------------------------

# Schemathesis over the whole API, at least FUZZ requests: about twenty minutes of one core.
FUZZ ?= 20000
fuzz: setup
	$(BIN)/python -m tests.service.fuzzing --requests $(FUZZ) --seconds 300 --out docs/results/fuzz.json

# Known vulnerabilities of what is installed. Needs the network: what could not be looked up is a failure too.
audit: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[audit]'
	$(BIN)/python -m pip_audit --strict --skip-editable --progress-spinner off

# The console in a real browser; needs a Chromium.
CHROMIUM ?= /usr/bin/chromium
console-check: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	$(BIN)/python -m tests.service.browser --chromium $(CHROMIUM) --screenshot docs/images/console.png

VERSION ?= 0.1.0
IMAGES ?= api worker trainer
images:
	for target in $(IMAGES); do docker build --target $$target --tag loomweight/$$target:$(VERSION) . || exit 1; done

# The same without a container engine, as root; needs buildah and debootstrap. With worker-gpu among IMAGES, CUDA comes too.
images-check: setup
	tests/deploy/images.sh $(IMAGES)
	$(BIN)/python -m tests.deploy.images --targets $(IMAGES) --out docs/results/images.json

# docker-compose.yml as it is, by the real Compose and podman, as root; needs podman and runc too, and ports 8000, 8333, 9090.
compose-check: setup
	tests/deploy/images.sh api worker valkey seaweedfs prometheus names
	$(BIN)/python -m tests.deploy.compose_stack --out docs/results/compose.json

# Lines for .env that pin what is pulled: a tag moves, a digest does not. Needs docker and the network.
pin-images:
	@for pin in REDIS_IMAGE=docker.io/valkey/valkey:8.1-alpine S3_IMAGE=docker.io/chrislusf/seaweedfs:4.48 \
	    PROMETHEUS_IMAGE=docker.io/prom/prometheus:v3.2.1 GRAFANA_IMAGE=docker.io/grafana/grafana:12.2.0 \
	    PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm; do \
	  echo "$$pin@$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' $${pin#*=})"; done

# One job through a running service, as a client; needs no package.
URL ?= http://localhost:8000
smoke:
	python3 tests/deploy/smoke.py $(URL)

constraints: setup
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude torch; } > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
