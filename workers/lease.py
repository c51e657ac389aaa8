"""Holding on to claimed jobs, and waiting out short outages."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeVar

from redis import RedisError

from workers.jobs import Jobs, JobsError, StaleAttempt

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

CANCEL_POLL_S = 0.05
_LONGEST_PAUSE_S = 5.0


class Lease:
    """One claim: whether its work may go on, and for how long.

    A lease that could not be renewed in time counts as lost: by then another worker may have the job.
    """

    def __init__(self, jobs: Jobs, job_id: str, token: int, seconds: float, limit_s: float) -> None:
        self.job_id = job_id
        self._jobs, self._token, self._seconds = jobs, token, seconds
        self._renewed = time.monotonic()
        self._deadline = self._renewed + limit_s
        self._lost = False
        self._canceled = False
        self._progress: tuple[str, int, int] | None = None  # what nobody was told of yet

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
            raise StaleAttempt(self.job_id)

    def let_go(self) -> None:
        """Renew it no more, and have the work end at its next opportunity: the job goes to another worker."""
        self._lost = True

    def report(self, stage: str, step: int, steps: int) -> None:
        """Say how far the work is; what is passed within a twentieth of a second is told to nobody."""
        self._progress = stage, step, steps

    def confirm(self) -> None:
        """Renew the lease now. Raises `StaleAttempt` or `UnknownJob` if it is another's, `redis.RedisError`."""
        self._jobs.heartbeat(self.job_id, self._token)
        self._renewed = time.monotonic()

    def tend(self, canceled: bool) -> None:
        """Take note of a cancel, pass on the progress, renew the lease when that is due. Raises `redis.RedisError`."""
        self._canceled = canceled
        if self._lost:
            return
        try:
            if time.monotonic() - self._renewed > self._seconds / 3:
                self.confirm()
            progress, self._progress = self._progress, None
            if progress:
                with suppress(RedisError):  # the next one may be told; renewing what others hold comes first
                    self._jobs.progress(self.job_id, self._token, *progress)
        except JobsError:
            self._lost = True

    def neglect(self) -> None:
        """Redis did not answer: nobody could renew the lease."""
        self._lost = self._lost or time.monotonic() - self._renewed > self._seconds


class Leases:
    """Tends all claims of a worker from one thread, from `__enter__` to `__exit__`."""

    def __init__(self, jobs: Jobs, seconds: float, limit_s: float) -> None:
        self._jobs, self._seconds, self._limit_s = jobs, seconds, limit_s
        self._held: list[Lease] = []
        self._done = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._watch, name="lease-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def hold(self, job_id: str, token: int) -> Iterator[Lease]:
        """Tend a claim, made just now, until the block ends."""
        lease = Lease(self._jobs, job_id, token, self._seconds, self._limit_s)
        self._held.append(lease)
        if self._ended:
            lease.let_go()
        try:
            yield lease
        finally:
            self._held.remove(lease)

    def let_go(self) -> None:
        """Let go of all claims, those to come as well: the process is to end."""
        self._ended = True
        for lease in list(self._held):
            lease.let_go()

    def _watch(self) -> None:
        while not self._done.wait(min(CANCEL_POLL_S, self._seconds / 5)):
            leases = list(self._held)
            try:
                canceled = self._jobs.cancel_requests([lease.job_id for lease in leases])
                for lease in leases:
                    lease.tend(lease.job_id in canceled)
            except RedisError as error:
                _log.warning("leases cannot be renewed: %s", error)
                for lease in leases:
                    lease.neglect()


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
