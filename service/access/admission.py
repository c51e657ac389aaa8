"""Whether a key may have another job."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from redis import RedisError

from service.access.limits import seconds_of_day_left
from service.access.principal import Principal
from service.errors import TooManyRequests
from service.state import Services
from workers.jobs import TooManyActive
from workers.messages import JobRecord


def admitted(services: Services, principal: Principal, create: Callable[[], JobRecord]) -> JobRecord:
    """Create a job if the key may have another one; a job that then cannot be created does not count.

    Raises `TooManyRequests`, and what `create` raises.
    """
    if principal.owner is None:
        return create()
    per_day = principal.allowance.jobs_per_day or services.settings.jobs_per_day
    limits = services.access.limits
    verdict = limits.admit_job(principal.key_id, principal.owner, per_day, most_active(services, principal))
    if verdict == "active":
        raise _too_many_active(services, principal)
    if verdict == "day":
        wait = seconds_of_day_left(datetime.now(UTC))
        raise TooManyRequests(f"This API key may create {per_day:,} jobs a day, and has done so today (UTC).", wait)
    try:
        return create()
    except Exception as error:
        if per_day:
            with suppress(RedisError):
                limits.refund_job(principal.key_id)
        if isinstance(error, TooManyActive):  # others were faster, between the look above and the record
            raise _too_many_active(services, principal) from None
        raise


def most_active(services: Services, principal: Principal) -> int | None:
    """Return how many jobs of a key's owner may wait or run; None for any number."""
    return principal.allowance.active_jobs or services.settings.active_jobs if principal.owner else None


def _too_many_active(services: Services, principal: Principal) -> TooManyRequests:
    most = most_active(services, principal) or 0
    return TooManyRequests(f"{most:,} jobs of this key wait or run already. Wait for one to end.", 5)
