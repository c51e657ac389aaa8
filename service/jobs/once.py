"""`Idempotency-Key`: the same request sent again leads to the same job (draft-ietf-httpapi-idempotency-key-header)."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated

from fastapi import Header
from redis import RedisError

from service.access.admission import admitted
from service.access.principal import Principal
from service.state import Services
from workers.jobs import Idempotency
from workers.messages import JobRecord

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and payload lead to the same job, for a day unless configured otherwise. "
        "Idempotency keys of different API keys have nothing to do with each other.",
    ),
]
REPLAYED = {
    "Idempotent-Replayed": {
        "description": "`true` if the Idempotency-Key led to a job that was there.",
        "schema": {"type": "string"},
    }
}
"""For the OpenAPI document."""


def once(
    services: Services,
    principal: Principal,
    idempotency_key: str | None,
    fingerprint: Callable[[], str],
    create: Callable[[Idempotency | None], JobRecord],
) -> tuple[JobRecord, bool]:
    """Create the job if the principal may, or return the one that the key led to before; says whether it is new.

    `create` is given the key under which the job is to be remembered. Raises what it raises, and what admission does.
    """
    if idempotency_key is None:
        return admitted(services, principal, partial(create, None)), True
    own_key = idempotency_key if principal.owner is None else f"{principal.owner}\0{idempotency_key}"
    idempotency = Idempotency(own_key, fingerprint())
    known = services.jobs.reserve(idempotency)
    if known is not None:
        return services.jobs.get(known), False
    try:
        return admitted(services, principal, partial(create, idempotency)), True
    except Exception:
        with suppress(RedisError):
            services.jobs.release(own_key)
        raise
