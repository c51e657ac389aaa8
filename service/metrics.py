"""What Prometheus reads: rate, errors and duration by route template, and the queues as they are when it asks."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from redis import RedisError

from workers.jobs import Jobs
from workers.registry import Registry

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_BYTES = tuple(10.0**power for power in range(3, 9))


class Metrics:
    """The gateway's metrics, in a registry of their own: two apps in a process do not mix."""

    def __init__(self, jobs: Jobs, workers: Registry) -> None:
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
        ProcessCollector(registry=self.registry)
        self.registry.register(_Queues(jobs, workers))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self.requests.labels(method, route, str(status)).inc()
        if not route.endswith("/events"):
            self.seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)


class _Queues:
    """Read at scrape time, so that the figures hold for all gateways and workers together."""

    def __init__(self, jobs: Jobs, workers: Registry) -> None:
        self._jobs = jobs
        self._workers = workers

    def describe(self) -> list[GaugeMetricFamily]:
        """Keep the registry from collecting just to learn the names."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; without Redis only the one that says so."""
        up = GaugeMetricFamily("loomweight_broker_up", "Whether Redis answers this gateway.")
        queued = GaugeMetricFamily("loomweight_jobs_queued", "Jobs that wait.", labels=["queue"])
        running = GaugeMetricFamily("loomweight_jobs_running", "Jobs that a worker holds.", labels=["queue"])
        workers = GaugeMetricFamily("loomweight_workers_alive", "Workers with a loaded bundle that take jobs.")
        try:
            for queue, counts in self._jobs.counts().items():
                queued.add_metric([queue], counts.queued)
                running.add_metric([queue], counts.running)
            workers.add_metric([], len(self._workers.alive()))
        except RedisError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield from (up, queued, running, workers)
