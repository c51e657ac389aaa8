"""One generation, from the message to the stored models: the only task there is so far, in the order it happens.

A delivery ends in one of these outcomes; only the first three end the job:

    succeeded, failed, canceled
    skipped      nothing to do: the job ended, is unknown, or is with a worker that is alive
    lost         another attempt took over while this one worked
    abandoned    store or Redis stayed away; the lease runs out and the job goes back to its queue
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Literal, NamedTuple

from redis import RedisError

from loomweight.errors import Canceled, InvalidRequest
from loomweight.generator import GenerateOptions, GenerationResult
from model_store.store import AlreadyExists, NotFound, StoreError, StoreUnavailable
from workers import metrics
from workers.artifacts import Artifacts, Origin, export
from workers.inputs import Samples, read_dataset, read_samples
from workers.jobs import JobsError
from workers.lease import Lease, with_patience
from workers.limits import InputError
from workers.messages import (
    MAX_SEED,
    PROBLEM_BASE,
    GenerateResult,
    InputRef,
    JobError,
    JobRecord,
    Novelty,
    StoredModel,
    unpack_samples,
)
from workers.remote import fetch
from workers.runtime import Runtime

_log = logging.getLogger(__name__)
Outcome = Literal["succeeded", "failed", "canceled", "skipped", "lost", "abandoned"]

KIND = "generate"
PROGRESS_EVERY_S = 0.1
_INTERNAL = JobError.of(
    "internal",
    "The job failed",
    500,
    "Something went wrong that is not the request's fault. Send it again; if that fails too, report the job's id.",
)
_NO_INPUTS = JobError.of(
    "inputs-gone", "The samples are gone", 410, "The uploaded samples are no longer stored. Send the request again."
)


def generate(job_id: str, runtime: Runtime) -> Outcome:
    """Run the job if it is to be run; never raises but for what ends the process."""
    with metrics.BUSY.track_inprogress():
        try:
            outcome = _attempt(job_id, runtime)
        except RedisError:
            _log.exception("job %s: Redis does not answer; the job is left to others", job_id)
            outcome = "abandoned"
    metrics.JOBS.labels(kind=KIND, outcome=outcome).inc()
    _log.info("job %s: %s", job_id, outcome)
    return outcome


def _attempt(job_id: str, runtime: Runtime) -> Outcome:
    jobs, settings = runtime.jobs, runtime.settings
    patiently = partial(with_patience, seconds=settings.outage_s, errors=RedisError)
    token = patiently(lambda: jobs.claim(job_id, runtime.worker_id, settings.lease_s))
    if token is None:
        return "skipped"
    try:
        with Lease(jobs, job_id, token, settings.lease_s) as lease:
            record = patiently(lambda: jobs.get(job_id))
            outcome, end = _work(_Attempt(record, token, lease, runtime))
            patiently(end)
    except JobsError:
        return "lost"
    except StoreUnavailable:
        _log.exception("job %s: the store does not answer; the job is left to others", job_id)
        return "abandoned"
    _forget_inputs(record, runtime)
    return outcome


class _Attempt(NamedTuple):
    record: JobRecord
    token: int
    lease: Lease
    runtime: Runtime


def _work(attempt: _Attempt) -> tuple[Outcome, Callable[[], None]]:
    """Do the job; returns how it ended and the call that says so. What leaves the job to others is raised."""
    jobs, job_id, token = attempt.runtime.jobs, attempt.record.id, attempt.token
    try:
        return "succeeded", partial(jobs.finish, job_id, token, _produce(attempt))
    except Canceled:
        attempt.lease.check()
        return "canceled", partial(jobs.finish_canceled, job_id, token)
    except (JobsError, RedisError, StoreUnavailable):
        raise
    except NotFound:
        problem = _NO_INPUTS
    except InputError as error:
        problem = JobError.of(error.slug, error.title, error.status, str(error))
    except InvalidRequest as error:
        problem = JobError.of("invalid-request", "The request cannot be served", 422, str(error))
    except Exception:  # noqa: BLE001 - the worker survives whatever a job does
        _log.exception("job %s failed", job_id)
        problem = _INTERNAL
    metrics.FAILURES.labels(kind=KIND, reason=problem.type.removeprefix(PROBLEM_BASE)).inc()
    return "failed", partial(jobs.fail, job_id, token, problem)


def _produce(attempt: _Attempt) -> GenerateResult:
    record, _, lease, runtime = attempt
    report = _Reporter(attempt)
    timings = {"queue": 1e3 * ((record.started_at or record.created_at) - record.created_at).total_seconds()}

    report("decode_inputs", 0, 1)
    with _timed(timings, "decode_inputs"):
        samples = _read(record.inputs, runtime)
    report("decode_inputs", 1, 1)
    if lease.must_stop():
        raise Canceled
    options = _options(record, runtime)
    result = runtime.generator.generate(
        samples.images, samples.labels, options, progress=report, canceled=lease.must_stop
    )
    timings |= result.timings_ms
    with _timed(timings, "store"):
        origin = Origin(record.id, samples.sha256, result.n_holdout, record.owner)
        models = _store(attempt, result, origin, report)

    _observe(record, options, result, timings)
    return GenerateResult(
        models=models,
        classes=result.classes,
        seed=result.seed,
        method=result.method,
        bundle=result.bundle,
        ranked_on=result.ranked_on,
        baselines=result.baselines,
        novelty=Novelty.model_validate(result.novelty),
        timings_ms={stage: round(milliseconds, 3) for stage, milliseconds in timings.items()},
    )


def _observe(
    record: JobRecord, options: GenerateOptions, result: GenerationResult, timings: Mapping[str, float]
) -> None:
    for stage, milliseconds in timings.items():
        metrics.STAGE_SECONDS.labels(stage=stage).observe(milliseconds / 1e3)
    metrics.JOB_SECONDS.labels(kind=KIND).observe((datetime.now(UTC) - record.created_at).total_seconds())
    metrics.CANDIDATES.labels(target=options.target).observe(options.candidates)
    metrics.NOVELTY.labels(target=options.target).observe(float(result.novelty["score"] or 0))
    best = result.models[0].holdout_accuracy
    if best is not None:
        metrics.HOLDOUT_ACCURACY.labels(target=options.target).observe(best)
        if result.baselines:
            metrics.GAIN.labels(target=options.target).observe(best - max(result.baselines.values()))


def _read(inputs: InputRef | None, runtime: Runtime) -> Samples:
    if inputs is None:
        raise InvalidRequest("This bundle conditions on samples only; send some.")
    store, limits = runtime.models.store, runtime.settings.limits()
    if inputs.kind == "uri":
        data = with_patience(lambda: fetch(inputs.key, runtime.settings), runtime.settings.outage_s, StoreUnavailable)
        return read_dataset(data, limits)
    data = with_patience(lambda: store.get(inputs.key), runtime.settings.outage_s, StoreUnavailable)
    if inputs.kind == "dataset":
        return read_dataset(data, limits)
    return read_samples(*unpack_samples(data), limits)


def _options(record: JobRecord, runtime: Runtime) -> GenerateOptions:
    wanted = record.request.model_dump(exclude={"callback_url"})
    wanted["target"] = wanted["target"] or runtime.generator.bundle.manifest["default_target"]
    if wanted["seed"] is None:
        # As random as the id of the job, and the same when the job runs again after a crash: so are then its models.
        wanted["seed"] = int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:8]) & MAX_SEED
    return GenerateOptions(**wanted)


class _Reporter:
    """Passes progress on to the job's record, not more often than anybody could watch."""

    def __init__(self, attempt: _Attempt) -> None:
        self._attempt = attempt
        self._last: tuple[str, float] = ("", 0.0)

    def __call__(self, stage: str, step: int, steps: int) -> None:
        now = time.monotonic()
        if stage == self._last[0] and step < steps and now - self._last[1] < PROGRESS_EVERY_S:
            return
        self._last = (stage, now)
        record, token, _, runtime = self._attempt
        try:
            runtime.jobs.progress(record.id, token, stage, step, steps)
        except RedisError as error:
            _log.warning("job %s: progress is not recorded: %s", record.id, error)


def _store(attempt: _Attempt, result: GenerationResult, origin: Origin, report: _Reporter) -> tuple[StoredModel, ...]:
    """Export everything, make sure that the job is still ours, then save: first the artifacts, then the job's state."""
    runtime = attempt.runtime
    steps = len(result.models)
    report("store", 0, steps)
    artifacts = [export(runtime.generator, result, model, origin) for model in result.models]
    with_patience(attempt.lease.confirm, runtime.settings.outage_s, RedisError)
    for step, each in enumerate(artifacts, start=1):
        with_patience(partial(_save, runtime, each), runtime.settings.outage_s, StoreUnavailable)
        report("store", step, steps)
    return tuple(
        StoredModel(id=each.card.id, rank=model.rank, holdout_accuracy=model.holdout_accuracy)
        for model, each in zip(result.models, artifacts, strict=True)
    )


def _save(runtime: Runtime, artifacts: Artifacts) -> None:
    try:
        runtime.models.save(*artifacts)
    except AlreadyExists:
        # An earlier attempt, on another device or bundle, died between saving and saying so: nobody was told of it.
        runtime.models.delete(artifacts.card.id)
        runtime.models.save(*artifacts)


def _forget_inputs(record: JobRecord, runtime: Runtime) -> None:
    if record.inputs is None or record.inputs.kind == "uri":  # that one is not ours
        return
    try:
        runtime.models.store.delete(record.inputs.key)
    except StoreError as error:
        _log.warning("job %s: its inputs stay behind: %s", record.id, error)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = 1e3 * (time.perf_counter() - start)
