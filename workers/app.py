"""The Celery worker: which tasks it has, what happens in its processes, how it starts and stops.

The pool is prefork with one process: a parent that only talks to the broker, and a child that loads the bundle after
the fork (CUDA demands that) and runs one task at a time, which takes along jobs that wait (`workers/batches.py`).
Celery's own revocation is not used: a cancel is a flag in the job's record, looked at between denoising steps.
"""

import logging
import os
import signal
from contextlib import ExitStack

from celery import Celery, signals
from celery.worker import state

from workers import logs, metrics, runtime, watchdog
from workers.client import make_celery
from workers.following import Following
from workers.generate import generate
from workers.messages import GENERATE_TASK, SIMILARITY_TASK
from workers.similarity import compare
from workers.worker_settings import WorkerSettings

_log = logging.getLogger(__name__)
KILL_AFTER_S = 15


def create_app(settings: WorkerSettings) -> Celery:
    """Make the worker's app and connect its process signals; nothing is loaded or contacted yet."""
    app = make_celery(settings.redis_url, settings.visibility_timeout_s)
    app.conf.update(
        worker_pool="prefork",
        worker_concurrency=1,
        worker_proc_alive_timeout=settings.startup_s,  # the child answers once its bundle is loaded
        worker_soft_shutdown_timeout=settings.soft_shutdown_s,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the lease, not the connection, decides
        # A job that does not come to its next step, be it the last one that a batch took.
        task_time_limit=settings.job_limit_s + settings.batch_s + KILL_AFTER_S,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
    )
    _Process(settings).attach(app)
    return app


class _Process:
    """The task and the signal handlers of one app; in the child, the runtime between them."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._runtime: runtime.Runtime | None = None
        self._open = ExitStack()
        self._following = Following(settings)

    def attach(self, app: Celery) -> None:
        app.task(name=GENERATE_TASK)(self.generate)
        app.task(name=SIMILARITY_TASK)(self.compare)
        # Celery holds handlers weakly unless told otherwise.
        signals.worker_process_init.connect(self.start_child, weak=False)
        signals.worker_process_shutdown.connect(self.stop_child, weak=False)
        signals.worker_ready.connect(self.start_watchdog, weak=False)
        signals.setup_logging.connect(lambda **_: None, weak=False)  # `main` did, and Celery is to leave it alone
        self._following.attach()

    def generate(self, job_id: str) -> None:
        assert self._runtime is not None, "the task runs only in a child that was started"
        generate(job_id, self._runtime)

    def compare(self, job_id: str) -> None:
        assert self._runtime is not None, "the task runs only in a child that was started"
        compare(job_id, self._runtime)

    def start_child(self, **_: object) -> None:
        try:
            self._runtime = runtime.load(self._settings)
        except Exception:  # noqa: BLE001 - whatever it was, without a runtime there is no worker
            # Celery would log this and go on without a bundle, or start the next child to fail the same way, for ever.
            _log.critical("the worker cannot start", exc_info=True)
            os.kill(os.getppid(), signal.SIGTERM)
            raise SystemExit(1) from None
        if self._settings.metrics_port is not None:
            metrics.serve(self._settings.metrics_port)
        self._open.enter_context(runtime.Presence(self._runtime))
        _log.info("ready: bundle %s on %s", self._runtime.generator.bundle.id, self._runtime.device)

    def stop_child(self, **_: object) -> None:
        self._open.close()

    def start_watchdog(self, **_: object) -> None:
        redis = self._settings.open_redis()
        watchdog.start(redis, self._settings.queues, lambda: bool(state.reserved_requests), self._settings.starved_s)


def main() -> None:
    """Run a worker until it is told to stop. Settings come from the environment.

    `REMAP_SIGTERM=SIGQUIT` must be in the environment before Celery is imported for SIGTERM to be bounded by
    `soft_shutdown_s`; the command `loomweight worker` sees to that.
    """
    settings = WorkerSettings()
    logs.configure(settings.log_format)
    app = create_app(settings)
    name = f"--hostname=loomweight-{os.getpid()}@%h"
    queues = f"--queues={','.join(settings.queues)}"
    app.worker_main(["worker", name, queues, "--loglevel=INFO", "--without-gossip", "--without-mingle"])
