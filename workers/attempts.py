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
from typing import Literal, NamedTuple

from redis import RedisError

from loomweight.errors import Canceled, InvalidRequest
from model_store.store import NotFound, StoreError, StoreUnavailable
from workers import filing, metrics
from workers.jobs import JobsError
from workers.lease import Lease, Leases, with_patience
from workers.limits import InputError
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


_DEADLINE = JobError.of(
    "deadline",
    "The job took too long",
    504,
    "The job was stopped at its time limit. Ask for fewer candidates or steps.",
)
_NO_INPUTS = JobError.of(
    "inputs-gone", "The samples are gone", 410, "The uploaded samples are no longer stored. Send the request again."
)


class Refused(Exception):
    """The job ends with this problem."""

    def __init__(self, slug: str, title: str, status: int, detail: str, *, pointer: str = "") -> None:
        super().__init__(detail)
        items = (ErrorItem(pointer=pointer, detail=detail),) if pointer else ()
        self.problem = JobError.of(slug, title, status, detail).model_copy(update={"errors": items})


class Claim(NamedTuple):
    """A job that this worker may do, and the fencing token that says so."""

    job_id: str
    token: int


@dataclass
class Attempt:
    """A claimed job, while it is worked on."""

    record: JobRecord
    token: int
    lease: Lease
    runtime: Runtime

    def check(self) -> None:
        """Raise `Canceled` if the work is to end: to be called between its steps."""
        if self.lease.must_stop():
            raise Canceled


Produce = Callable[[Attempt], JobResult]


def run(job_id: str, runtime: Runtime, kind: str, produce: Produce) -> Outcome:
    """Run the job if it is to be run; never raises but for what ends the process."""
    settings = runtime.settings
    with metrics.BUSY.track_inprogress(), Leases(runtime.jobs, settings.lease_s, settings.job_limit_s) as leases:
        try:
            claimed = claim(job_id, runtime)
        except RedisError:
            return abandoned(job_id, kind)
        return perform(claimed, leases, runtime, kind, produce) if claimed else counted(job_id, kind, "skipped")


def claim(job_id: str, runtime: Runtime) -> Claim | None:
    """Claim the job; None if there is nothing to do. Raises `redis.RedisError`."""
    settings = runtime.settings
    ask = partial(runtime.jobs.claim, job_id, runtime.worker_id, settings.lease_s)
    token = with_patience(ask, settings.outage_s, RedisError)
    return None if token is None else Claim(job_id, token)


def perform(claimed: Claim, leases: Leases, runtime: Runtime, kind: str, produce: Produce) -> Outcome:
    """Do a claimed job to its end, as far as it has one here."""
    try:
        return counted(claimed.job_id, kind, _attempt(claimed, leases, runtime, kind, produce))
    except RedisError:
        return abandoned(claimed.job_id, kind)


def counted(job_id: str, kind: str, outcome: Outcome) -> Outcome:
    """Count an outcome."""
    metrics.JOBS.labels(kind=kind, outcome=outcome).inc()
    _log.info("job %s: %s", job_id, outcome)
    return outcome


def abandoned(job_id: str, kind: str) -> Outcome:
    """Leave the job to others; to be called where Redis was given up."""
    _log.exception("job %s: Redis does not answer; the job is left to others", job_id)
    return counted(job_id, kind, "abandoned")


def _attempt(claimed: Claim, leases: Leases, runtime: Runtime, kind: str, produce: Produce) -> Outcome:
    jobs, (job_id, token) = runtime.jobs, claimed
    patiently = partial(with_patience, seconds=runtime.settings.outage_s, errors=RedisError)
    try:
        with leases.hold(job_id, token) as lease:
            attempt = Attempt(patiently(lambda: jobs.get(job_id)), token, lease, runtime)
            outcome, end = _work(attempt, kind, produce)
            patiently(end)
    except JobsError:
        _file(job_id, runtime)  # it may have ended without this attempt's models
        return "lost"
    except StoreUnavailable:
        _log.exception("job %s: the store does not answer; the job is left to others", job_id)
        return "abandoned"
    _file(job_id, runtime)
    return outcome


def _work(attempt: Attempt, kind: str, produce: Produce) -> tuple[Outcome, Callable[[], None]]:
    """Do the job; returns how it ended and the call that says so. What leaves the job to others is raised."""
    jobs, job_id, token = attempt.runtime.jobs, attempt.record.id, attempt.token
    try:
        return "succeeded", partial(jobs.finish, job_id, token, produce(attempt))
    except Canceled:
        attempt.lease.check()
        if not attempt.lease.overran:
            return "canceled", partial(jobs.finish_canceled, job_id, token)
        problem = _DEADLINE
    except (JobsError, RedisError, StoreUnavailable):
        raise
    except Refused as refused:
        problem = refused.problem
    except NotFound:
        problem = _NO_INPUTS
    except InputError as error:
        problem = JobError.of(error.slug, error.title, error.status, str(error))
    except InvalidRequest as error:
        problem = JobError.of("invalid-request", "The request cannot be served", 422, str(error))
    except Exception:  # noqa: BLE001 - the worker survives whatever a job does
        _log.exception("job %s failed", job_id)
        problem = _INTERNAL
    metrics.FAILURES.labels(kind=kind, reason=problem.type.removeprefix(PROBLEM_BASE)).inc()
    return "failed", partial(jobs.fail, job_id, token, problem)


def _file(job_id: str, runtime: Runtime) -> None:
    try:
        filing.file(runtime.jobs, runtime.models, job_id)
    except (StoreError, RedisError) as error:
        _log.warning("job %s is left to the reaper to file: %s", job_id, error)
