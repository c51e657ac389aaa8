"""Whether a key may have another job."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from redis import RedisError

from service.access.limits import seconds_of_day_left
from service.access.principal import Principal
from service.errors import TooManyRequests
from service.state import Services
from workers.messages import JobRecord


def admitted(services: Services, principal: Principal, create: Callable[[], JobRecord]) -> JobRecord:
    """Create a job if the key may have another one; a job that then cannot be created does not count.

    Raises `TooManyRequests`, and what `create` raises.
    """
    if principal.owner is None:
        return create()
    per_day = principal.allowance.jobs_per_day or services.settings.jobs_per_day
    most_active = principal.allowance.active_jobs or services.settings.active_jobs
    limits = services.access.limits
    verdict = limits.admit_job(principal.key_id, principal.owner, per_day, most_active)
    if verdict == "active":
        raise TooManyRequests(f"{most_active:,} jobs of this key wait or run already. Wait for one to end.", 5)
    if verdict == "day":
        wait = seconds_of_day_left(datetime.now(UTC))
        raise TooManyRequests(f"This API key may create {per_day:,} jobs a day, and has done so today (UTC).", wait)
    try:
        return create()
    except Exception:
        if per_day:
            with suppress(RedisError):
                limits.refund_job(principal.key_id)
        raise
