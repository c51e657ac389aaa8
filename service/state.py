"""What the gateway holds while it runs, and how endpoints get at it."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from model_store.models import ModelRepository
from model_store.store import ObjectStore
from service.access.gate import Access
from service.catalogue.service import Catalogue
from service.jobs.endings import Endings
from service.metrics import Metrics
from service.settings import GatewaySettings
from service.webhooks.addresses import Rules
from service.webhooks.outbox import Outbox
from workers.jobs import Jobs
from workers.registry import Registry


@dataclass(frozen=True)
class Services:
    """Made in `create_app`, closed when the app ends.

    Everything but `followers` and `endings` blocks: keep it off the event loop.
    """

    settings: GatewaySettings
    redis: Redis
    followers: AsyncRedis
    """For event streams, one connection a client that follows."""
    endings: Endings
    jobs: Jobs
    workers: Registry
    store: ObjectStore
    models: ModelRepository
    catalogue: Catalogue
    metrics: Metrics
    access: Access
    outbox: Outbox
    callback_rules: Rules


async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]
