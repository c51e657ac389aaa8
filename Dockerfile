# Four images from one file: `docker build --target api|worker|worker-gpu|trainer .`
#
# PYTHON_IMAGE takes a digest (`make pin-images` looks it up): a tag moves, a digest does not.
# TORCH_INDEX is where torch comes from; empty means PyPI, whose build for Linux brings CUDA.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_COMPILE=0 PIP_DISABLE_PIP_VERSION_CHECK=1
# tini reaps what workers leave behind and passes signals on to the one process that handles them.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/*


# Dependencies -----------------------------------------------------------------------------------------------------------
# The project is installed without its code: pins, version and command come from pyproject.toml alone, so that a change
# of the code leaves these layers as they are.
FROM base AS dependencies
WORKDIR /src
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/sbom && /opt/sbom/bin/pip install --quiet cyclonedx-bom==7.5.0 && python3 -m venv /opt/venv
COPY pyproject.toml constraints.txt LICENSE ./
RUN touch README.md

FROM dependencies AS api-dependencies
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install --quiet --constraint constraints.txt . \
    && /opt/sbom/bin/cyclonedx-py environment /opt/venv/bin/python --output-file /opt/venv/sbom.cdx.json \
    && /opt/venv/bin/pip uninstall --quiet --yes setuptools pip

FROM dependencies AS worker-dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install --quiet --constraint constraints.txt ".[worker]" \
    && /opt/sbom/bin/cyclonedx-py environment /opt/venv/bin/python --output-file /opt/venv/sbom.cdx.json \
    && /opt/venv/bin/pip uninstall --quiet --yes pip

FROM dependencies AS worker-gpu-dependencies
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install --quiet --constraint constraints.txt torch==2.13.0 ".[worker-gpu]" \
    && /opt/sbom/bin/cyclonedx-py environment /opt/venv/bin/python --output-file /opt/venv/sbom.cdx.json \
    && /opt/venv/bin/pip uninstall --quiet --yes pip

FROM worker-dependencies AS trainer-dependencies
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/venv/bin/python install --quiet --constraint constraints.txt ".[trainer]" \
    && /opt/sbom/bin/cyclonedx-py environment /opt/venv/bin/python --output-file /opt/venv/sbom.cdx.json


# What runs --------------------------------------------------------------------------------------------------------------
# Nothing is written outside /tmp: the root file system may be read-only.
FROM base AS runtime
RUN groupadd --gid 10001 loomweight && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home loomweight
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app HOME=/tmp LOOMWEIGHT_BUNDLE_DIR=/app/bundles/starter
WORKDIR /app
ENTRYPOINT ["tini", "--", "loomweight"]

FROM runtime AS api
COPY --from=api-dependencies /opt/venv /opt/venv
COPY bundles/starter/bundle.json bundles/starter/
COPY model_store model_store
COPY workers workers
COPY service service
COPY cli cli
RUN python3 -m compileall -q .
USER 10001:10001
# Threads that answer downloads leave arenas behind that glibc never gives back; two are enough.
ENV MALLOC_ARENA_MAX=2
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS worker-code
COPY bundles bundles
COPY loomweight loomweight
COPY model_store model_store
COPY workers workers
COPY cli cli
RUN python3 -m compileall -q .
USER 10001:10001
# Idle OpenMP threads sleep instead of spinning: what runs beside the worker needs the cores.
ENV OMP_WAIT_POLICY=PASSIVE LOOMWEIGHT_METRICS_PORT=9100
EXPOSE 9100
# The port opens once the bundle is loaded and warm.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=24 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9100/metrics', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["worker"]

FROM worker-code AS worker
COPY --from=worker-dependencies /opt/venv /opt/venv

# No CUDA base image: torch's wheels bring CUDA and cuDNN, and ONNX Runtime uses those; a base would carry both twice.
# The driver comes from the host, through NVIDIA's container toolkit, which these two variables address.
FROM worker-code AS worker-gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=worker-gpu-dependencies /opt/venv /opt/venv

FROM runtime AS trainer
COPY --from=trainer-dependencies /opt/venv /opt/venv
COPY loomweight loomweight
COPY model_store model_store
COPY trainer trainer
COPY cli cli
RUN python3 -m compileall -q .
USER 10001:10001
ENV OMP_WAIT_POLICY=PASSIVE
HEALTHCHECK NONE
CMD ["train", "--help"]
