"""An upload ► a job, in the order in which nothing can be lost: bytes first, then the record with its message."""

import hashlib
import secrets
import uuid
from functools import partial

from model_store import keys
from service.access.admission import most_active
from service.access.principal import Principal
from service.catalogue.schemas import Target
from service.errors import InvalidSamples, Unprocessable
from service.generations.uploads import Upload
from service.jobs.once import once
from service.state import Services
from service.webhooks.addresses import NotAllowed
from workers.jobs import Idempotency, QueueFull
from workers.messages import GENERATE_QUEUE, LARGE_QUEUE, MAX_SEED, GenerateRequest, InputRef, JobRecord

_STEPS = 30  # of a request that leaves them to the bundle, about


def create(
    services: Services, principal: Principal, upload: Upload, idempotency_key: str | None
) -> tuple[JobRecord, bool]:
    """Create the job, or return the one that the key led to before; says whether it is new."""
    request = _resolve(upload, services.catalogue.target(upload.options.target))
    if request.callback_url is not None:
        _check_callback(services, principal, request.callback_url)
    make = partial(_create, services, principal, upload, request)
    return once(services, principal, idempotency_key, upload.fingerprint, make)


def _check_callback(services: Services, principal: Principal, url: str) -> None:
    if services.settings.callback_secret is None:
        problem = "This service sends no webhooks: its operator has set no LOOMWEIGHT_CALLBACK_SECRET."
        raise Unprocessable(problem, pointer="/callback_url")
    try:
        services.callback_rules.parse(url)
    except NotAllowed as error:
        raise Unprocessable(str(error), pointer="/callback_url") from None
    if services.outbox.is_gone(principal.key_id, url):
        problem = "This address answered 410 Gone to a webhook, and gets no more of them for a week."
        raise Unprocessable(problem, pointer="/callback_url")


def _resolve(upload: Upload, target: Target) -> GenerateRequest:
    """Fill in what the request leaves open, so that the record says it and every attempt does the same."""
    if upload.classes is not None:
        most = target.max_classes
        if upload.classes < target.min_classes or (most is not None and upload.classes > most):
            raise InvalidSamples(
                f"The target {target.id!r} takes {target.min_classes} to {most or 'any number of'} classes; "
                f"the samples have {upload.classes}.",
                pointer="/labels",
            )
    seed = upload.options.seed
    return upload.options.model_copy(
        update={"target": target.id, "seed": secrets.randbelow(MAX_SEED + 1) if seed is None else seed}
    )


def _queue(services: Services, upload: Upload, request: GenerateRequest) -> str:
    """Long jobs have a queue of their own: short ones must not wait behind them where workers are kept for these."""
    settings = services.settings
    steps = request.candidates * (request.steps or _STEPS) if request.method == "diffusion" else 0
    large = len(upload.body) > settings.large_bytes or max(steps, request.refine_steps) > settings.large_steps
    return LARGE_QUEUE if large else GENERATE_QUEUE


def _create(
    services: Services, principal: Principal, upload: Upload, request: GenerateRequest, idempotency: Idempotency | None
) -> JobRecord:
    queue = _queue(services, upload, request)
    job_id = f"job-{uuid.uuid4().hex}"
    inputs = InputRef(
        kind=upload.kind,
        key=upload.body.decode() if upload.kind == "uri" else keys.job_input(job_id, upload.kind),
        size=len(upload.body),
        sha256=hashlib.sha256(upload.body).hexdigest(),
        content_type=upload.content_type,
        inline=upload.kind != "uri" and queue == GENERATE_QUEUE and len(upload.body) <= services.settings.inline_bytes,
    )
    stored = upload.kind != "uri" and not inputs.inline
    if stored:
        if services.jobs.queued(queue) >= services.settings.max_queued:
            raise QueueFull(queue)  # before the store takes the upload; the record's creation checks again
        services.store.put(inputs.key, upload.body, content_type=inputs.content_type)
    wanted = JobRecord(id=job_id, kind="generate", queue=queue, request=request, inputs=inputs, owner=principal.owner)
    if request.callback_url is not None:
        services.outbox.register(job_id, request.callback_url, principal.key_id)
    record = services.jobs.create(
        wanted,
        upload.body if inputs.inline else b"",
        idempotency=idempotency,
        most_active=most_active(services, principal),
    )
    if record.id != job_id:
        if stored:
            services.store.delete(inputs.key)
        return record
    services.metrics.created.labels(record.kind, request.target, request.method).inc()
    services.metrics.upload_bytes.observe(inputs.size)
    return record
