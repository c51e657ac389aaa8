"""What Prometheus reads: rate, errors and duration by route template; queues and broker as they are when it asks."""

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from redis import Redis, RedisError

from workers.jobs import Jobs
from workers.registry import Registry

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_BYTES = tuple(10.0**power for power in range(3, 9))


class Metrics:
    """The gateway's metrics, in a registry of their own: two apps in a process do not mix."""

    def __init__(self, redis: Redis, jobs: Jobs, workers: Registry, max_queued: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "loomweight_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "loomweight_http_request_duration_seconds",
            "Time to the end of the answer; event streams, which last as long as their jobs, are left out.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.created = Counter(
            "loomweight_jobs_created",
            "Jobs accepted; replays of an idempotency key do not count.",
            ("kind", "target", "method"),
            registry=self.registry,
        )
        self.upload_bytes = Histogram(
            "loomweight_upload_bytes", "Size of accepted uploads.", buckets=_BYTES, registry=self.registry
        )
        self.reaped = Counter(
            "loomweight_jobs_reaped",
            "Jobs that lost their worker, by what became of them (queued again, failed, canceled), and jobs that "
            "waited too long (expired).",
            ("status",),
            registry=self.registry,
        )
        for status in ("queued", "failed", "canceled", "expired"):
            self.reaped.labels(status)  # a counter that appears with its first event hides that event from `increase`
        self.webhooks = Counter(
            "loomweight_webhooks",
            "Attempts to deliver webhooks: delivered, failed or refused (tried again), gone (410), given-up, dropped.",
            ("outcome",),
            registry=self.registry,
        )
        self._store_seconds = Histogram(
            "loomweight_store_operation_seconds",
            "Time of each call of the store; `unavailable` is the store's fault.",
            ("operation", "outcome"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_Queues(jobs, workers, max_queued))
        self.registry.register(_Broker(redis))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self.requests.labels(method, route, str(status)).inc()
        if not route.endswith("/events"):
            self.seconds.labels(method, route).observe(seconds)

    def observe_store(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one call of the store."""
        self._store_seconds.labels(operation, outcome).observe(seconds)

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)


class _Live:
    """Read at scrape time."""

    def describe(self) -> list[GaugeMetricFamily]:
        """Keep the registry from collecting just to learn the names."""
        return []


class _Queues(_Live):
    """The figures hold for all gateways and workers together: every gateway tells the same; take any, not the sum."""

    def __init__(self, jobs: Jobs, workers: Registry, max_queued: int) -> None:
        self._jobs = jobs
        self._workers = workers
        self._max_queued = max_queued

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; nothing without Redis."""
        queued = GaugeMetricFamily("loomweight_jobs_queued", "Jobs that wait.", labels=["queue"])
        running = GaugeMetricFamily("loomweight_jobs_running", "Jobs that a worker holds.", labels=["queue"])
        waiting = GaugeMetricFamily(
            "loomweight_jobs_longest_wait_seconds", "Age of the job that is next in its queue.", labels=["queue"]
        )
        limit = GaugeMetricFamily(
            "loomweight_jobs_queued_limit", "Jobs that may wait in a queue before more are turned away."
        )
        workers = GaugeMetricFamily("loomweight_workers_alive", "Workers with a loaded bundle that take jobs.")
        try:
            for queue, counts in self._jobs.counts().items():
                queued.add_metric([queue], counts.queued)
                running.add_metric([queue], counts.running)
            for queue, seconds in self._jobs.waiting_s().items():
                waiting.add_metric([queue], seconds)
            workers.add_metric([], len(self._workers.alive()))
        except RedisError:
            return
        limit.add_metric([], self._max_queued)
        yield from (queued, running, waiting, limit, workers)


class _Broker(_Live):
    """What an operator needs of Redis, told by whoever depends on it: no exporter to run beside it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; without Redis only the one that says so."""
        start = time.perf_counter()
        try:
            info: dict[str, Any] | None = self._redis.info()
        except RedisError:
            info = None
        yield _gauge("loomweight_broker_up", "Whether Redis answers this gateway.", int(info is not None))
        if info is None:
            return
        yield _gauge(
            "loomweight_broker_answer_seconds",
            "Time of one call, as this gateway sees it.",
            time.perf_counter() - start,
        )
        yield _gauge("loomweight_broker_memory_bytes", "Memory that Redis uses.", info["used_memory"])
        yield _gauge(
            "loomweight_broker_memory_limit_bytes",
            "Redis refuses writes from here on; without a limit of its own, all memory of its machine.",
            info.get("maxmemory") or info.get("total_system_memory", 0),
        )
        yield _gauge("loomweight_broker_clients", "Connections to Redis.", info["connected_clients"])
        yield _gauge(
            "loomweight_broker_persists",
            "1 if every accepted job is written to disk: the append-only file is on and its last write went well.",
            int(bool(info.get("aof_enabled")) and info.get("aof_last_write_status", "ok") == "ok"),
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
