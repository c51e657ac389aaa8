"""Holding on to a claimed job, and waiting out short outages."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from redis import RedisError

from workers.jobs import Jobs, JobsError, StaleAttempt

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

CANCEL_POLL_S = 0.05
_LONGEST_PAUSE_S = 5.0


class Lease:
    """Renews a claim from a thread and watches for a cancel and the time limit, from `__enter__` to `__exit__`.

    A lease that could not be renewed in time counts as lost: by then another worker may have the job.
    """

    def __init__(self, jobs: Jobs, job_id: str, token: int, seconds: float, limit_s: float) -> None:
        self._jobs, self._job_id, self._token, self._seconds = jobs, job_id, token, seconds
        self._deadline = time.monotonic() + limit_s
        self._done = threading.Event()
        self._lost = False
        self._canceled = False
        self._thread = threading.Thread(target=self._watch, name=f"lease-{job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def must_stop(self) -> bool:
        """Whether the work is to end at the next opportunity: canceled, too long, or another's by now."""
        return self._lost or self._canceled or self.overran

    @property
    def overran(self) -> bool:
        """Whether the time is up, and nobody asked for a cancel."""
        return not self._canceled and time.monotonic() > self._deadline

    def check(self) -> None:
        """Raise `StaleAttempt` if the lease is known to be lost."""
        if self._lost:
            raise StaleAttempt(self._job_id)

    def confirm(self) -> None:
        """Renew the lease now. Raises `StaleAttempt` or `UnknownJob` if it is another's, `redis.RedisError`."""
        self._jobs.heartbeat(self._job_id, self._token)

    def _watch(self) -> None:
        renewed = time.monotonic()
        while not self._done.wait(min(CANCEL_POLL_S, self._seconds / 5)):
            now = time.monotonic()
            try:
                self._canceled = self._jobs.is_cancel_requested(self._job_id)
                if now - renewed > self._seconds / 3:
                    self.confirm()
                    renewed = now
            except JobsError:
                self._lost = True
            except RedisError as error:
                _log.warning("job %s: the lease cannot be renewed: %s", self._job_id, error)
                self._lost = now - renewed > self._seconds
            if self._lost:
                return


def with_patience(call: Callable[[], _T], seconds: float, errors: type[Exception] | tuple[type[Exception], ...]) -> _T:
    """Call until it raises none of `errors`, pausing longer each time; after `seconds` the last one passes through."""
    end = time.monotonic() + seconds
    pause = 0.1
    while True:
        try:
            return call()
        except errors as error:
            if time.monotonic() + pause > end:
                raise
            _log.warning("waiting for something that should come back: %s", error)
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        pause = min(_LONGEST_PAUSE_S, pause * 2)
