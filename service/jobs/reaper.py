"""Jobs that nobody takes care of: looked for by every gateway, which is harmless, each step being atomic."""

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from kombu.exceptions import OperationalError
from redis import RedisError

from model_store.store import StoreError
from service.state import Services
from workers.jobs import UnknownJob
from workers.messages import JobError

_SWEEP_EVERY_S = 3_600
_INPUTS = "inputs/"
_log = logging.getLogger(__name__)


class Reaper:
    """Requeues jobs of lost workers, sends messages that are due, ends what waited too long, removes old uploads."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._swept = time.monotonic()

    def tick(self) -> None:
        """Look once. A part that does not answer is left for the next time."""
        try:
            self._requeue()
            self._send()
            self._expire()
            if time.monotonic() - self._swept > _SWEEP_EVERY_S:
                self.sweep()
                self._swept = time.monotonic()
        except (RedisError, OperationalError, StoreError) as error:
            _log.warning("reaping stopped halfway: %r", error)
        except Exception:  # noqa: BLE001 - whatever it was, the next look may fare better
            _log.exception("reaping stopped halfway")

    def sweep(self) -> int:
        """Remove uploads that no job needs any more; returns how many."""
        store, settings = self._services.store, self._services.settings
        oldest = datetime.now(UTC) - timedelta(seconds=settings.input_ttl_s)
        removed, last = 0, None
        while page := store.list(_INPUTS, after=last):
            for entry in page:
                if entry.modified < oldest:
                    store.delete(entry.key)
                    removed += 1
            last = page[-1].key
        return removed

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
        for job_id in jobs.due():
            with suppress(UnknownJob):
                self._services.queue.send(jobs.get(job_id))
            jobs.sent(job_id)

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
