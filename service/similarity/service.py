"""A question about similarity ► a job, and its answer where that comes soon enough."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from model_store import keys
from model_store.records import ModelCard
from model_store.store import NotFound as NotStored
from service.access.admission import most_active
from service.access.principal import Principal
from service.errors import Conflict, NotFound, failed
from service.jobs.once import once
from service.models.uploads import Checkpoint as Upload
from service.state import Services
from workers.jobs import Idempotency, QueueFull
from workers.messages import (
    SIMILARITY_QUEUE,
    Checkpoint,
    JobKind,
    JobRecord,
    JobRequest,
    JobResult,
    MatrixRequest,
    NeighboursRequest,
    SimilarityRequest,
)

_AT_ONCE = 8
Source = Upload | ModelCard


def compare_pair(
    services: Services, principal: Principal, sources: Mapping[str, Source], idempotency_key: str | None
) -> tuple[JobRecord, bool]:
    """Create the job that compares `a` with `b`, or return that of the key; says whether it is new."""
    uploads = {name: source for name, source in sources.items() if isinstance(source, Upload)}
    request = SimilarityRequest(**{name: _side(source) for name, source in sources.items()})
    return _create(services, principal, "similarity", request, uploads, idempotency_key)


def compare_all(
    services: Services, principal: Principal, cards: Sequence[ModelCard], idempotency_key: str | None
) -> tuple[JobRecord, bool]:
    """Create the job that compares each model with each, or return that of the key; says whether it is new."""
    request = MatrixRequest(ids=tuple(card.id for card in cards))
    return _create(services, principal, "similarity-matrix", request, {}, idempotency_key)


def look_around(services: Services, principal: Principal, card: ModelCard, k: int) -> JobRecord:
    """Create the job that looks for a model's neighbours."""
    return _create(services, principal, "neighbours", NeighboursRequest(model=card.id, k=k), {}, None)[0]


def cards_of(services: Services, principal: Principal, ids: Sequence[str], pointers: Sequence[str]) -> list[ModelCard]:
    """Return the cards of stored models that may be seen. Raises `NotFound`, for somebody else's too."""

    def card(model_id: str, pointer: str) -> ModelCard:
        with suppress(NotStored):
            found = services.models.card(model_id)
            if principal.may_see(found.owner):
                return found
        raise NotFound(f"There is no model {model_id[:100]!r}.", pointer=pointer)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(card, ids, pointers))


def is_small(services: Services, sources: Sequence[Source]) -> bool:
    """Whether a client should get the answer at once."""
    return sum(source.size for source in sources) <= services.settings.similarity_held_bytes


def result_of(record: JobRecord) -> JobResult | None:
    """Return the result of a job, None while there is none. Raises what went wrong."""
    if record.error is not None:
        raise failed(record.error)
    if record.status == "canceled":
        raise Conflict("The job was canceled.")
    return record.result


def _side(source: Source) -> Checkpoint:
    model = None if isinstance(source, Upload) else source.id
    return Checkpoint(model=model, sha256=source.sha256, size=source.size)


def _create(
    services: Services,
    principal: Principal,
    kind: JobKind,
    request: JobRequest,
    uploads: Mapping[str, Upload],
    idempotency_key: str | None,
) -> tuple[JobRecord, bool]:
    def fingerprint() -> str:
        return hashlib.sha256(f"{kind}\0{request.model_dump_json()}".encode()).hexdigest()

    make = partial(_enter, services, principal, kind, request, uploads)
    return once(services, principal, idempotency_key, fingerprint, make)


def _enter(
    services: Services,
    principal: Principal,
    kind: JobKind,
    request: JobRequest,
    uploads: Mapping[str, Upload],
    idempotency: Idempotency | None,
) -> JobRecord:
    if services.jobs.queued(SIMILARITY_QUEUE) >= services.settings.max_queued:
        raise QueueFull(SIMILARITY_QUEUE)  # before the store takes the uploads; the record's creation checks again
    job_id = f"job-{uuid.uuid4().hex}"

    def put(name: str) -> None:
        services.store.put(keys.job_input(job_id, name), uploads[name].file, content_type="application/octet-stream")
        services.metrics.upload_bytes.observe(uploads[name].size)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(put, uploads):  # raises what a put raised
            pass
    wanted = JobRecord(id=job_id, kind=kind, queue=SIMILARITY_QUEUE, request=request, owner=principal.owner)
    record = services.jobs.create(wanted, idempotency=idempotency, most_active=most_active(services, principal))
    if record.id != job_id:
        for name in uploads:
            services.store.delete(keys.job_input(job_id, name))
        return record
    services.metrics.created.labels(record.kind, "", "").inc()
    return record
