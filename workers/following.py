"""Around every task: the ids in its log lines, and its span, as its message says."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from celery import signals

from workers import logs, tracing
from workers.settings import Settings


@contextmanager
def following(task: str, job_id: str, headers: Mapping[str, Any]) -> Iterator[None]:
    """Log lines and spans from here on belong to the job, and to the request that led to it."""
    carrier = {name: str(headers[name]) for name in ("traceparent", "tracestate") if name in headers}
    with (
        logs.serving(logs.request_id, headers.get("request_id")),
        logs.serving(logs.job_id, job_id),
        tracing.span(task, carrier, job_id=job_id),
    ):
        yield


class Following:
    """Signal handlers of a worker's child process, which runs one task at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._task = ExitStack()

    def attach(self) -> None:
        """Connect the handlers."""
        signals.worker_process_init.connect(self.start, weak=False)
        signals.worker_process_shutdown.connect(self.stop, weak=False)
        signals.task_prerun.connect(self.begin, weak=False)
        signals.task_postrun.connect(self.end, weak=False)

    def start(self, **_: object) -> None:
        """Open what sends spans, after the fork."""
        tracing.configure("loomweight-worker", self._settings.traces_endpoint)

    def stop(self, **_: object) -> None:
        """Send the last spans."""
        tracing.close()

    def begin(self, task: Any, task_id: str, **_: object) -> None:
        """Take over the ids of the request that led to the job."""
        self._task.close()
        self._task.enter_context(following(task.name, task_id, getattr(task.request, "headers", None) or {}))

    def end(self, **_: object) -> None:
        """Let go of them."""
        self._task.close()
