"""Ended jobs are filed in the store: their record outlives Redis, and what they leave behind is tidied away.

Whoever ends a job files it right after; the gateways' reaper files what was left: jobs that no worker ended, and those
whose worker died at this very point. Filing is a copy of what Redis says, so it may be repeated at any time.
"""

import hashlib
from contextlib import suppress

from model_store import keys
from model_store.models import ModelRepository, new_model_id
from model_store.store import Corrupt, InvalidKey, NotFound, ObjectStore
from workers.jobs import Jobs, JobsError, UnknownJob
from workers.messages import TERMINAL, GenerateRequest, InputRef, JobRecord, SimilarityRequest


class NotDead(JobsError):
    """The job is not a dead letter: it may still end well, or failed through the request's fault."""


def file(jobs: Jobs, models: ModelRepository, job_id: str) -> None:
    """File the job if it has ended. Raises `StoreError`, `redis.RedisError`; then it is simply due again.

    A job that did not succeed keeps no models. Uploads go, but for those of dead letters, which can be replayed.
    """
    try:
        record = jobs.get(job_id)
    except UnknownJob:
        jobs.filed(job_id)
        return
    if record.status not in TERMINAL:
        return
    if record.status != "succeeded" and record.attempt and isinstance(record.request, GenerateRequest):
        for rank in range(record.request.keep):
            models.delete(new_model_id(job_id, rank))
    if is_dead(record) and record.inputs and record.inputs.inline:
        data = upload(jobs, models.store, job_id, record.inputs)
        models.store.put(record.inputs.key, data, content_type=record.inputs.content_type)
    text = record.model_dump_json().encode()
    models.store.put(keys.job_record(job_id), text, content_type="application/json")
    if not is_dead(record):
        for key in uploads(record):
            models.store.delete(key)
    jobs.filed(job_id)


def uploads(record: JobRecord) -> list[str]:
    """Return the keys of what the store has of a job's upload; it gets a small one when the job is a dead letter."""
    request = record.request
    if isinstance(request, SimilarityRequest):
        return [keys.job_input(record.id, n) for n, side in (("a", request.a), ("b", request.b)) if side.model is None]
    if record.inputs is None or record.inputs.kind == "uri":  # that one is not ours
        return []
    if record.inputs.inline and not is_dead(record):
        return []
    return [record.inputs.key]


def upload(jobs: Jobs, store: ObjectStore, job_id: str, inputs: InputRef) -> bytes:
    """Return what a job's client sent, from where it lies now. Raises `NotFound`, and what store and Redis raise."""
    data = jobs.upload(job_id) if inputs.inline else None
    return store.get(inputs.key) if data is None else data


def find(store: ObjectStore, job_id: str) -> JobRecord:
    """Return the record of an ended job from the store. Raises `UnknownJob`, and what the store raises."""
    with suppress(NotFound, InvalidKey):
        try:
            return JobRecord.model_validate_json(store.get(keys.job_record(job_id)))
        except ValueError as error:
            if isinstance(error, InvalidKey):
                raise
            raise Corrupt(f"the record of {job_id} cannot be read: {error}") from error
    raise UnknownJob(job_id)


def replay(jobs: Jobs, store: ObjectStore, job_id: str) -> JobRecord:
    """Enter a dead letter as a new job, with a copy of its upload; the same one however often this is tried.

    A terminal status never changes, hence the new id. Raises `UnknownJob`, `NotDead`, `QueueFull`, and `NotFound` when
    the upload is over its time.
    """
    try:
        record = jobs.get(job_id)
    except UnknownJob:
        record = find(store, job_id)
    if not is_dead(record):
        raise NotDead(job_id)
    new_id = "job-" + hashlib.sha256(f"replay/{job_id}".encode()).hexdigest()[:32]
    inputs = record.inputs
    content_type = inputs.content_type if inputs else "application/octet-stream"
    for key in uploads(record):
        data = upload(jobs, store, job_id, inputs) if inputs else store.get(key)
        store.put(keys.job_input(new_id, key.rpartition("/")[2]), data, content_type=content_type)
    if inputs and inputs.kind != "uri":
        moved = {"key": keys.job_input(new_id, inputs.key.rpartition("/")[2]), "inline": False}
        inputs = inputs.model_copy(update=moved)
    fresh = JobRecord(
        id=new_id, kind=record.kind, queue=record.queue, request=record.request, inputs=inputs, owner=record.owner
    )
    created = jobs.create(fresh)
    jobs.drop_dead_letter(job_id)
    return created


def is_dead(record: JobRecord) -> bool:
    """Whether the job failed through no fault of the request's."""
    return record.status == "failed" and record.error is not None and record.error.status >= 500
