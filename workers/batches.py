"""Jobs that a worker does at once, each in a thread of its own (`loomweight/together.py`).

The thread that Celery called feeds the others: with what waits behind the job that was delivered, then with what comes
while they work, as long as the batch is young. After that the worker listens to its broker again.
"""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial

import torch
from redis import RedisError

from loomweight.together import Seat, Together
from workers import metrics
from workers.attempts import Claim, Outcome
from workers.following import following
from workers.jobs import Taken
from workers.lease import Leases
from workers.messages import GENERATE_TASK
from workers.runtime import Runtime

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.05
Work = Callable[[Claim, Seat], Outcome]


def run(first: Claim, queue: str, runtime: Runtime, leases: Leases, work: Work, *, company: bool) -> Outcome:
    """Do a claimed job, and if it may have company others of the queue beside it; returns the outcome of the first."""
    together = Together(runtime.generator, wait_s=runtime.batch_wait_s, cores=torch.get_num_threads())
    young = time.monotonic() + runtime.settings.batch_s if company else 0.0

    def seated(claimed: Claim, seat: Seat) -> Outcome:
        try:
            return work(claimed, seat)
        finally:
            seat.leave()

    def brought(taken: Taken, seat: Seat) -> Outcome:
        try:
            with following(GENERATE_TASK, taken.job_id, taken.headers):
                return work(Claim(taken.job_id, taken.token), seat)
        except Exception:
            _log.exception("job %s, taken along, is left to others", taken.job_id)
            raise
        finally:
            seat.leave()

    # The threads share the cores, and each has one.
    with ThreadPoolExecutor(runtime.lanes, "job", initializer=partial(torch.set_num_threads, 1)) as pool:

        def begin(taken: list[Taken]) -> list[Future[Outcome]]:
            seats = [together.seat() for _ in taken]  # all of them before one can wait for the others
            return [pool.submit(brought, each, seat) for each, seat in zip(taken, seats, strict=True)]

        try:
            others = _take(queue, runtime, min(runtime.lanes, _share(queue, runtime)) - 1) if company else []
            seat = together.seat()
            more = begin(others)
            mine = pool.submit(copy_context().run, seated, first, seat)
            at_work = {mine, *more}
            _observe(len(at_work), len(at_work))
            while at_work:
                full = len(at_work) == runtime.lanes
                _, at_work = wait(at_work, None if full else _LOOK_EVERY_S, FIRST_COMPLETED)
                if time.monotonic() < young:
                    more = begin(_take(queue, runtime, runtime.lanes - len(at_work)))
                    at_work.update(more)
                    _observe(len(more), len(at_work))
        except BaseException:  # told to end; the pool waits for its threads
            leases.let_go()
            raise
    return mine.result()


def _observe(began: int, at_work: int) -> None:
    """Note how many work at once, for each job that began."""
    for _ in range(began):
        metrics.BATCH.observe(at_work)


def _share(queue: str, runtime: Runtime) -> int:
    """How many of the waiting jobs this worker should take at once, one more included: others wait for work as well."""
    try:
        waiting = runtime.jobs.counts()[queue].queued
        return 1 + math.ceil(waiting / max(1, len(runtime.registry.alive())))
    except RedisError:
        return 1


def _take(queue: str, runtime: Runtime, most: int) -> list[Taken]:
    taken: list[Taken] = []
    try:
        while len(taken) < most and (one := runtime.jobs.take(queue, runtime.worker_id, runtime.settings.lease_s)):
            taken.append(one)
    except RedisError as error:
        _log.warning("a smaller batch: %s", error)  # those before the error count
    return taken
