"""Generation: from a job's message to the stored models, in the order it happens.

Jobs that wait behind the one that was delivered run together with it, each on its own claim; their messages find
nothing to do later.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from redis import RedisError

from loomweight.errors import InvalidRequest
from loomweight.generator import GenerateOptions, GenerationResult, Generator
from loomweight.together import Seat
from model_store.store import AlreadyExists, StoreUnavailable
from workers import batches, filing, metrics
from workers.artifacts import Artifacts, Origin, export
from workers.attempts import Attempt, Claim, Outcome, abandoned, claim, counted, perform
from workers.inputs import Samples, read_dataset, read_samples
from workers.jobs import JobsError
from workers.lease import Leases, with_patience
from workers.messages import (
    GENERATE_QUEUE,
    LARGE_QUEUE,
    MAX_SEED,
    GenerateResult,
    JobRecord,
    Novelty,
    StoredModel,
    unpack_samples,
)
from workers.remote import fetch
from workers.runtime import Runtime

_log = logging.getLogger(__name__)
Generates = Generator | Seat

KIND = "generate"


def generate(job_id: str, runtime: Runtime) -> Outcome:
    """Run the job if it is to be run, and others with it; never raises but for what ends the process.

    Returns the outcome of the job that was named. A job that lost a worker before runs alone: should it be the one that
    kills them, it takes no other with it twice.
    """
    settings = runtime.settings
    with metrics.BUSY.track_inprogress(), Leases(runtime.jobs, settings.lease_s, settings.job_limit_s) as leases:
        try:
            first = claim(job_id, runtime)
            large = first is not None and runtime.jobs.get(job_id).queue == LARGE_QUEUE
        except (JobsError, RedisError):
            return abandoned(job_id, KIND)
        if first is None:
            return counted(job_id, KIND, "skipped")
        if large or runtime.lanes == 1:
            metrics.BATCH.observe(1)
            return perform(first, leases, runtime, KIND, partial(_produce, runtime.generator))

        def work(claimed: Claim, seat: Seat) -> Outcome:
            return perform(claimed, leases, runtime, KIND, partial(_produce, seat))

        return batches.run(first, GENERATE_QUEUE, runtime, leases, work, company=first.token == 1)


def _produce(generator: Generates, attempt: Attempt) -> GenerateResult:
    record, lease, runtime, report = attempt.record, attempt.lease, attempt.runtime, attempt.lease.report
    timings = {"queue": 1e3 * ((record.started_at or record.created_at) - record.created_at).total_seconds()}

    report("decode_inputs", 0, 1)
    with _timed(timings, "decode_inputs"):
        samples = _read(record, runtime)
    report("decode_inputs", 1, 1)
    attempt.check()
    options = _options(record, runtime)
    result = generator.generate(samples.images, samples.labels, options, progress=report, canceled=lease.must_stop)
    timings |= result.timings_ms
    with _timed(timings, "store"):
        origin = Origin(record.id, samples.sha256, result.n_holdout, record.owner)
        models = _store(attempt, result, origin)

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


def _read(record: JobRecord, runtime: Runtime) -> Samples:
    inputs, limits = record.inputs, runtime.settings.limits()
    if inputs is None:
        raise InvalidRequest("This bundle conditions on samples only; send some.")
    if inputs.kind == "uri":
        data = with_patience(lambda: fetch(inputs.key, runtime.settings), runtime.settings.outage_s, StoreUnavailable)
        return read_dataset(data, limits)
    read = partial(filing.upload, runtime.jobs, runtime.models.store, record.id, inputs)
    data = with_patience(read, runtime.settings.outage_s, (StoreUnavailable, RedisError))
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


def _store(attempt: Attempt, result: GenerationResult, origin: Origin) -> tuple[StoredModel, ...]:
    """Export everything, make sure that the job is still ours, then save: first the artifacts, then the job's state."""
    runtime = attempt.runtime
    steps = len(result.models)
    attempt.lease.report("store", 0, steps)
    artifacts = [export(runtime.generator, result, model, origin) for model in result.models]
    confirm = partial(with_patience, attempt.lease.confirm, runtime.settings.outage_s, RedisError)
    confirm()
    for step, each in enumerate(artifacts, start=1):
        with_patience(partial(_save, runtime, each, confirm), runtime.settings.outage_s, StoreUnavailable)
        attempt.lease.report("store", step, steps)
    return tuple(
        StoredModel(id=each.card.id, rank=model.rank, holdout_accuracy=model.holdout_accuracy)
        for model, each in zip(result.models, artifacts, strict=True)
    )


def _save(runtime: Runtime, artifacts: Artifacts, confirm: Callable[[], None]) -> None:
    try:
        runtime.models.save(*artifacts)
    except AlreadyExists:
        # An earlier attempt, on another device or bundle, died between saving and saying so: nobody was told of it.
        confirm()
        runtime.models.delete(artifacts.card.id)
        runtime.models.save(*artifacts)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = 1e3 * (time.perf_counter() - start)
