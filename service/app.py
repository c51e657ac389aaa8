"""The gateway put together. `uvicorn --factory service.app:create_app` runs it."""

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import create_task_group
from fastapi import FastAPI
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from model_store.measured import MeasuredStore
from model_store.models import ModelRepository
from service.access.gate import Access, Gate
from service.access.keys import Keys
from service.access.limits import RateLimits
from service.catalogue import endpoints as catalogue
from service.catalogue.service import Catalogue
from service.console import endpoints as console
from service.errors import install_handlers
from service.generations import endpoints as generations
from service.health import endpoints as health
from service.jobs import endpoints as jobs
from service.jobs.endings import Endings
from service.jobs.reaper import Reaper
from service.metrics import Metrics
from service.middleware import Boundary
from service.models import endpoints as models
from service.openapi import document
from service.settings import GatewaySettings
from service.similarity import endpoints as similarity
from service.state import Services
from service.webhooks.addresses import Rules
from service.webhooks.outbox import Outbox
from service.webhooks.sender import Sender
from workers import logs, tracing

_DESCRIPTION = """Neural network weights on demand: a few labelled images in, a working network out.

Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem documents; `detail` says what to do."""


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """Make the gateway. Settings default to the environment; nothing is contacted before the first request."""
    settings = settings or GatewaySettings()
    if settings.log_format == "json":
        logs.configure("json")
        logging.getLogger("uvicorn.access").disabled = True  # `service.middleware` says the same, and whose it was
    services = _open(settings)
    app = FastAPI(
        title="Loomweight",
        version=version("loomweight"),
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=_lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.services = services
    for domain in (generations, jobs, models, similarity, catalogue, health, console):
        # `include_router` would look for changes of each router at every request.
        app.router.routes.extend(domain.router.routes)
    install_handlers(app)
    app.add_middleware(Gate, access=services.access)
    app.add_middleware(
        Boundary,
        metrics=services.metrics,
        settings=services.settings,
    )
    document(app, (*generations.BODIES, *models.BODIES, *similarity.BODIES))
    return app


def _open(settings: GatewaySettings) -> Services:
    redis = settings.open_redis()
    jobs, workers = settings.open_jobs(redis), settings.open_registry(redis)
    metrics = Metrics(redis, jobs, workers, settings.max_queued)
    store = MeasuredStore(settings.open_store(), metrics.observe_store)
    followers = AsyncRedis.from_url(
        settings.redis_url,
        decode_responses=True,
        max_connections=settings.max_followers + 1,  # the endings' own
        socket_timeout=settings.keepalive_s + 5,  # a read blocks for as long as a stream may be silent
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1),  # a client that follows comes back by itself
    )
    return Services(
        settings=settings,
        redis=redis,
        followers=followers,
        endings=Endings(followers, jobs.endings),
        jobs=jobs,
        workers=workers,
        store=store,
        models=ModelRepository(store),
        catalogue=Catalogue(settings.bundle_dir),
        metrics=metrics,
        access=Access(settings, Keys(store), RateLimits(redis, settings.redis_prefix)),
        outbox=Outbox(redis, settings.redis_prefix),
        callback_rules=Rules(settings.callback_networks, settings.callback_hosts),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    tracing.configure("loomweight-gateway", services.settings.traces_endpoint)
    if not gc.get_freeze_count():
        # What is there now stays for as long as the process. To look through it for garbage again and again holds up
        # every request for 50 ms and more.
        gc.collect()
        gc.freeze()
    try:
        async with create_task_group() as background:
            for run in (Reaper(services).run, Sender(services).run, services.endings.run):
                background.start_soon(run)
            yield
            background.cancel_scope.cancel()
    finally:
        await services.followers.aclose()
        services.redis.close()
        services.store.close()
        tracing.close()
