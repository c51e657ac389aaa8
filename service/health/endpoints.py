"""`/livez`, `/readyz`, `/metrics`."""

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from redis import RedisError

from model_store.store import StoreError
from service.errors import ServiceError, Unavailable, problems
from service.state import Services, ServicesDep

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Every part answers."""

    status: Literal["ready"] = "ready"
    bundle: str
    workers: int = Field(description="How many workers with a loaded bundle take jobs.")


@router.get("/livez")
async def livez() -> Alive:
    """Whether the process answers; needs nothing else."""
    return Alive()


@router.get("/readyz", responses=problems(503))
def readyz(services: ServicesDep) -> Ready:
    """Whether a request would be served: broker, store, bundle, and a worker that consumes."""
    parts: dict[str, Callable[[], object]] = {
        "broker": services.redis.ping,
        "store": services.store.check,
        "bundle": services.catalogue.bundle,
        "worker": lambda: _workers(services) or services.settings.ready_without_workers,
    }
    missing = [name for name, check in parts.items() if not _passes(check)]
    if missing:
        raise Unavailable(f"Missing: {', '.join(missing)}.")
    return Ready(bundle=services.catalogue.bundle().id, workers=_workers(services))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(services: ServicesDep) -> Response:
    """What Prometheus reads."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _workers(services: Services) -> int:
    return len(services.workers.alive())


def _passes(check: Callable[[], object]) -> bool:
    try:
        # A count of zero fails; a check that returns nothing raises if it fails.
        return check() != 0
    except (RedisError, StoreError, ServiceError):
        return False
