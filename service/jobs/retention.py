"""What the store keeps for how long: uploads, records of ended jobs, models."""

from datetime import UTC, datetime, timedelta

from model_store import keys
from model_store.models import ModelRepository
from service.settings import GatewaySettings

_LONGEST_SAVE = timedelta(hours=1)


def sweep(models: ModelRepository, settings: GatewaySettings) -> int:
    """Remove what is over its time, and what interrupted writes left; returns how many objects and models."""
    removed = _older(models, keys.INPUTS, settings.input_ttl_s) + _older(models, keys.JOBS, settings.record_ttl_s)
    if settings.model_ttl_s is not None:
        removed += models.expire(timedelta(seconds=settings.model_ttl_s))
    return removed + len(models.sweep(_LONGEST_SAVE))


def _older(models: ModelRepository, prefix: str, seconds: int) -> int:
    oldest = datetime.now(UTC) - timedelta(seconds=seconds)
    removed, last = 0, None
    while page := models.store.list(prefix, after=last):
        for entry in page:
            if entry.modified < oldest:
                models.store.delete(entry.key)
                removed += 1
        last = page[-1].key
    return removed
