"""How much a key may use, counted in Redis by the server's clock, each decision one atomic step.

rate:{who}             string   when the allowance is full again (a generic cell rate algorithm: one number a key)
quota:{key}:{day}      counter  jobs created on a day, UTC
last-used              hash     Unix time by key
"""

import math
from datetime import UTC, datetime
from typing import NamedTuple, cast

from redis import Redis

_SPEND = """
local key, rate, burst, cost, used = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
if used ~= '' then redis.call('HSET', used, ARGV[6], clock[1]) end
local each = 60 / rate
local full = math.max(tonumber(redis.call('GET', key) or '0'), now)
local room = burst * each - (full - now) + 1e-6
if room < each * math.max(cost, 1) then
  return {0, 0, tostring(each * math.max(cost, 1) - room), tostring(full - now)}
end
if cost > 0 then
  full = full + cost * each
  redis.call('SET', key, string.format('%.6f', full), 'PX', math.ceil((full - now) * 1000))
end
return {1, math.floor((room - cost * each) / each), '0', tostring(full - now)}
"""

_ADMIT = """
local counter, most, active, most_active = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
if most_active > 0 and redis.call('SCARD', active) >= most_active then return 'active' end
if most > 0 then
  if tonumber(redis.call('GET', counter) or '0') >= most then return 'day' end
  redis.call('INCR', counter)
  redis.call('EXPIRE', counter, 172800)
end
return 'ok'
"""


class Spent(NamedTuple):
    """What came of a request for some of the allowance."""

    granted: bool
    limit: int
    left: int
    retry_after_s: int
    reset_s: int
    """Until the allowance is full again."""

    def headers(self) -> dict[str, str]:
        """The fields of draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"requests";q={self.limit};w=60',
            "RateLimit": f'"requests";r={self.left};t={self.reset_s}',
        }


class RateLimits:
    """Counters in `redis`. Every method may raise `redis.RedisError`."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix
        self._spend = redis.register_script(_SPEND)
        self._admit = redis.register_script(_ADMIT)

    def request(self, key_id: str, per_minute: int) -> Spent:
        """Count a request of a key, and note that the key was used."""
        return self._take(f"key:{key_id}", per_minute, 1, key_id)

    def may_guess(self, address: str, per_minute: int) -> Spent:
        """Whether this address may still try keys."""
        return self._take(f"address:{address}", per_minute, 0)

    def guessed_wrong(self, address: str, per_minute: int) -> None:
        """Count a key that was none."""
        self._take(f"address:{address}", per_minute, 1)

    def admit_job(self, key_id: str, owner: str | None, per_day: int | None, most_active: int | None) -> str:
        """Count a job of the key if it may be created: `ok`, `day` (too many today) or `active` (too many at once)."""
        active = f"{self._prefix}active:{owner or ''}"
        return cast(str, self._admit(args=[self._counter(key_id), per_day or 0, active, most_active or 0]))

    def refund_job(self, key_id: str) -> None:
        """Take back what `admit_job` counted, for a job that was not created after all."""
        self._redis.decr(self._counter(key_id))

    def last_used(self) -> dict[str, datetime]:
        """Return when each key was last used, as far as Redis remembers."""
        found = cast("dict[str, str]", self._redis.hgetall(self._prefix + "last-used"))
        return {key_id: datetime.fromtimestamp(int(at), UTC) for key_id, at in found.items()}

    def _counter(self, key_id: str) -> str:
        return f"{self._prefix}quota:{key_id}:{datetime.now(UTC):%Y-%m-%d}"

    def _take(self, who: str, per_minute: int, cost: int, used_by: str = "") -> Spent:
        used = self._prefix + "last-used" if used_by else ""
        args: list[str | int] = [f"{self._prefix}rate:{who}", per_minute, per_minute, cost, used, used_by]
        granted, left, retry, reset = cast("tuple[int, int, str, str]", self._spend(args=args))
        return Spent(bool(granted), per_minute, left, max(1, math.ceil(float(retry))), math.ceil(float(reset)))


def seconds_of_day_left(now: datetime) -> int:
    """Return how long it takes until the daily count begins anew."""
    return 86_400 - (now.hour * 3600 + now.minute * 60 + now.second)
