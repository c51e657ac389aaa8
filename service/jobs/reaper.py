"""Jobs that nobody takes care of: looked for by every gateway, which is harmless, each step being atomic.

Now and then also what is over its time in the store; `loomweight store sweep` does the same at once.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from anyio import create_task_group, to_thread
from redis import RedisError

from model_store.store import StoreError
from service.jobs.retention import sweep
from service.state import Services
from workers import filing
from workers.jobs import UnknownJob
from workers.messages import JobError

_SWEEP_EVERY_S = 3_600
_AT_ONCE = 200
_FILE_GRACE_S = 10
"""How long whoever ended a job has for filing it, until others do."""
_log = logging.getLogger(__name__)


class Reaper:
    """Requeues jobs of lost workers, repeats messages that got lost, ends what waited too long, files what ended."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self) -> None:
        """Look again and again until canceled, and sweep every hour.

        A sweep of a large store may take long: no look waits for it, nor does whoever cancels.
        """
        async with create_task_group() as both:
            both.start_soon(_every, self._services.settings.reaper_interval_s, self.tick, False)
            both.start_soon(_every, _SWEEP_EVERY_S, self.sweep, True)

    def tick(self) -> None:
        """Look once."""
        self._requeue()
        self._send()
        self._expire()
        self._file()

    def sweep(self) -> int:
        """Remove uploads, records and models that are over their time; returns how many objects."""
        return sweep(self._services.models, self._services.settings)

    def _requeue(self) -> None:
        jobs = self._services.jobs
        for job_id in jobs.orphans():
            with suppress(UnknownJob):
                status = jobs.requeue(job_id)
                if status != "running":  # else a worker was faster
                    self._services.metrics.reaped.labels(status).inc()
                _log.warning("job %s lost its worker; now %s", job_id, status)

    def _send(self) -> None:
        jobs = self._services.jobs
        missing: dict[str, int] = {}
        for job_id in jobs.due(_AT_ONCE):
            with suppress(UnknownJob):
                record = jobs.get(job_id)
                if record.queue not in missing:
                    missing[record.queue] = self._missing(record.queue)
                if missing[record.queue] <= 0:
                    continue  # a busy queue: its message waits there with the others
                missing[record.queue] -= 1
            jobs.send(job_id)

    def _missing(self, queue: str) -> int:
        """How many messages the broker lacks. Sending none but these keeps a long queue from filling with copies."""
        return self._services.jobs.counts()[queue].queued - int(self._services.redis.llen(queue))

    def _file(self) -> None:
        for job_id in self._services.jobs.unfiled(_FILE_GRACE_S, _AT_ONCE):
            filing.file(self._services.jobs, self._services.models, job_id)

    def _expire(self) -> None:
        jobs, waited = self._services.jobs, self._services.settings.queue_ttl_s
        error = JobError.of(
            "expired",
            "The job waited too long",
            503,
            f"No worker began the job within {waited:,} seconds. Send the request again when the service is less busy.",
        )
        for job_id in jobs.overdue(waited):
            with suppress(UnknownJob):
                if jobs.expire(job_id, error) == "expired":
                    self._services.metrics.reaped.labels("expired").inc()


async def _every(seconds: float, look: Callable[[], object], left_behind: bool) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await to_thread.run_sync(look, abandon_on_cancel=left_behind)
        except (RedisError, StoreError) as error:
            _log.warning("reaping stopped halfway: %r", error)
        except Exception:  # noqa: BLE001 - whatever it was, the next look may fare better
            _log.exception("reaping stopped halfway")
