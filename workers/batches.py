"""Jobs that a worker does at once, each in a thread of its own (`loomweight/together.py`).

The thread that Celery called feeds the others: with what waits behind the job that was delivered, then with what comes
while they work, as long as the batch is young. After that the worker listens to its broker again.
"""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

import torch
from redis import RedisError

from loomweight.together import Seat, Together
from workers import metrics
from workers.attempts import Claim, Outcome
from workers.lease import Leases
from workers.runtime import Runtime

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.05
Work = Callable[[Claim, Seat], Outcome]


def run(first: Claim, queue: str, runtime: Runtime, leases: Leases, work: Work) -> Outcome:
    """Do a claimed job, and others of the queue beside it; returns the outcome of the first."""
    together = Together(runtime.generator, wait_s=runtime.batch_wait_s, cores=torch.get_num_threads())
    young = time.monotonic() + runtime.settings.batch_s

    def seated(claimed: Claim, seat: Seat) -> Outcome:
        try:
            return work(claimed, seat)
        finally:
            seat.leave()

    # The threads share the cores, and each has one.
    with ThreadPoolExecutor(runtime.lanes, "job", initializer=partial(torch.set_num_threads, 1)) as pool:

        def begin(claims: list[Claim]) -> list[Future[Outcome]]:
            seats = [together.seat() for _ in claims]  # all of them before one can wait for the others
            return [pool.submit(seated, claimed, seat) for claimed, seat in zip(claims, seats, strict=True)]

        try:
            mine, *others = begin([first, *_take(queue, runtime, min(runtime.lanes, _share(queue, runtime)) - 1)])
            at_work = {mine, *others}
            observe(len(at_work), len(at_work))
            while at_work:
                full = len(at_work) == runtime.lanes
                _, at_work = wait(at_work, None if full else _LOOK_EVERY_S, FIRST_COMPLETED)
                if time.monotonic() < young:
                    more = begin(_take(queue, runtime, runtime.lanes - len(at_work)))
                    at_work.update(more)
                    observe(len(more), len(at_work))
        except BaseException:  # told to end; the pool waits for its threads
            leases.let_go()
            raise
    return mine.result()


def observe(began: int, at_work: int) -> None:
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


def _take(queue: str, runtime: Runtime, most: int) -> list[Claim]:
    claims: list[Claim] = []
    try:
        while len(claims) < most and (taken := runtime.jobs.take(queue, runtime.worker_id, runtime.settings.lease_s)):
            claims.append(Claim(*taken))
    except RedisError as error:
        _log.warning("a smaller batch: %s", error)  # those before the error count
    return claims
