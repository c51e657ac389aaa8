"""One delivery of a job, from the message to its end, whatever the job is about.

A delivery ends in one of these outcomes; only the first three end the job:

    succeeded, failed, canceled
    skipped      nothing to do: the job ended, is unknown, or is with a worker that is alive
    lost         another attempt took over while this one worked
    abandoned    store or Redis stayed away; the lease runs out and the job goes back to its queue
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from redis import RedisError

from loomweight.errors import Canceled
from model_store.store import StoreUnavailable
from workers import metrics
from workers.jobs import JobsError
from workers.lease import Lease, with_patience
from workers.messages import PROBLEM_BASE, ErrorItem, JobError, JobRecord, JobResult
from workers.runtime import Runtime

_log = logging.getLogger(__name__)
Outcome = Literal["succeeded", "failed", "canceled", "skipped", "lost", "abandoned"]

_INTERNAL = JobError.of(
    "internal",
    "The job failed",
    500,
    "Something went wrong that is not the request's fault. Send it again; if that fails too, report the job's id.",
)


class Refused(Exception):
    """The job ends with this problem."""

    def __init__(self, slug: str, title: str, status: int, detail: str, *, pointer: str = "") -> None:
        super().__init__(detail)
        items = (ErrorItem(pointer=pointer, detail=detail),) if pointer else ()
        self.problem = JobError.of(slug, title, status, detail).model_copy(update={"errors": items})


@dataclass(frozen=True)
class Attempt:
    """A claimed job."""

    record: JobRecord
    token: int
    lease: Lease
    runtime: Runtime

    def check(self) -> None:
        """Raise `Canceled` if the work is to end: to be called between its steps."""
        if self.lease.must_stop():
            raise Canceled

    def report(self, stage: str, step: int, steps: int) -> None:
        """Say how far the job is."""
        try:
            self.runtime.jobs.progress(self.record.id, self.token, stage, step, steps)
        except RedisError as error:
            _log.warning("job %s: progress is not recorded: %s", self.record.id, error)


Produce = Callable[[Attempt], JobResult]


def run(job_id: str, runtime: Runtime, kind: str, produce: Produce, forget: Callable[[Attempt], None]) -> Outcome:
    """Run the job if it is to be run; never raises but for what ends the process. `forget` follows a job's end."""
    with metrics.BUSY.track_inprogress():
        try:
            outcome = _attempt(job_id, runtime, produce, forget)
        except RedisError:
            _log.exception("job %s: Redis does not answer; the job is left to others", job_id)
            outcome = "abandoned"
    metrics.JOBS.labels(kind=kind, outcome=outcome).inc()
    _log.info("job %s: %s", job_id, outcome)
    return outcome


def _attempt(job_id: str, runtime: Runtime, produce: Produce, forget: Callable[[Attempt], None]) -> Outcome:
    jobs, settings = runtime.jobs, runtime.settings
    patiently = partial(with_patience, seconds=settings.outage_s, errors=RedisError)
    token = patiently(lambda: jobs.claim(job_id, runtime.worker_id, settings.lease_s))
    if token is None:
        return "skipped"
    try:
        with Lease(jobs, job_id, token, settings.lease_s) as lease:
            attempt = Attempt(patiently(lambda: jobs.get(job_id)), token, lease, runtime)
            outcome, end = _work(attempt, produce)
            patiently(end)
    except JobsError:
        return "lost"
    except StoreUnavailable:
        _log.exception("job %s: the store does not answer; the job is left to others", job_id)
        return "abandoned"
    forget(attempt)
    return outcome


def _work(attempt: Attempt, produce: Produce) -> tuple[Outcome, Callable[[], None]]:
    """Do the job; returns how it ended and the call that says so. What leaves the job to others is raised."""
    jobs, record, token = attempt.runtime.jobs, attempt.record, attempt.token
    try:
        return "succeeded", partial(jobs.finish, record.id, token, produce(attempt))
    except Canceled:
        attempt.lease.check()
        return "canceled", partial(jobs.finish_canceled, record.id, token)
    except (JobsError, RedisError, StoreUnavailable):
        raise
    except Refused as refused:
        problem = refused.problem
    except Exception:  # noqa: BLE001 - the worker survives whatever a job does
        _log.exception("job %s failed", record.id)
        problem = _INTERNAL
    metrics.FAILURES.labels(kind=record.kind, reason=problem.type.removeprefix(PROBLEM_BASE)).inc()
    return "failed", partial(jobs.fail, record.id, token, problem)
