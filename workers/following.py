"""Around every task: the ids in its log lines, and its span, as its message says."""

from contextlib import ExitStack
from typing import Any

from celery import signals

from workers import logs, tracing
from workers.settings import Settings


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
        headers = getattr(task.request, "headers", None) or {}
        carrier = {name: str(headers[name]) for name in ("traceparent", "tracestate") if name in headers}
        self._task.enter_context(logs.serving(logs.request_id, headers.get("request_id")))
        self._task.enter_context(logs.serving(logs.job_id, task_id))
        self._task.enter_context(tracing.span(task.name, carrier, job_id=task_id))

    def end(self, **_: object) -> None:
        """Let go of them."""
        self._task.close()
