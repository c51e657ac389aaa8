"""Webhooks that are still to be sent, in Redis: what was accepted survives restarts of every process.

    callback:{job}        hash   url, key (whose secret signs), attempts; written before the job, so that none is missed
    callbacks             zset   ids of jobs that ended, by when to send next (`workers/job_scripts.py` enters them)
    callbacks-gone:{key}  set    hashes of URLs that answered 410 Gone

A gateway that takes a delivery moves it into the future, so that another takes it should the first one die.
"""

import hashlib
from typing import NamedTuple, cast

from redis import Redis

_TAKE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', ARGV[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))) do
  local url, key, attempts = unpack(redis.call('HMGET', ARGV[4] .. id, 'url', 'key', 'attempts'))
  if url then
    redis.call('ZADD', ARGV[1], now + tonumber(ARGV[3]), id)
    table.insert(taken, {id, url, key, attempts})
  else
    redis.call('ZREM', ARGV[1], id)
  end
end
return taken
"""

_LATER = """
if redis.call('EXISTS', ARGV[2]) == 0 then return redis.call('ZREM', ARGV[1], ARGV[3]) end
local clock = redis.call('TIME')
redis.call('HINCRBY', ARGV[2], 'attempts', ARGV[5])
redis.call('EXPIRE', ARGV[2], ARGV[6])
return redis.call('ZADD', ARGV[1], tonumber(clock[1]) + tonumber(clock[2]) / 1e6 + tonumber(ARGV[4]), ARGV[3])
"""

KEPT_S = 14 * 86_400
GONE_S = 7 * 86_400
LEASE_S = 60.0


class Delivery(NamedTuple):
    """A webhook that is due."""

    job_id: str
    url: str
    key_id: str
    attempts: int


class Outbox:
    """The webhooks in `redis`. Every method may raise `redis.RedisError`."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix
        self._due = prefix + "callbacks"
        self._take = redis.register_script(_TAKE)
        self._later = redis.register_script(_LATER)

    def register(self, job_id: str, url: str, key_id: str) -> None:
        """Note that the end of a job is to be told; to be called before the job is created."""
        with self._redis.pipeline() as pipe:
            pipe.hset(self._key(job_id), mapping={"url": url, "key": key_id, "attempts": 0})
            pipe.expire(self._key(job_id), KEPT_S)
            pipe.execute()

    def take(self, most: int) -> list[Delivery]:
        """Return webhooks that are due; each is this caller's for `LEASE_S`."""
        taken = cast("list[list[str]]", self._take(args=[self._due, most, LEASE_S, self._key("")]))
        return [Delivery(job_id, url, key_id, int(attempts)) for job_id, url, key_id, attempts in taken]

    def again(self, job_id: str, delay_s: float) -> None:
        """Count a failed attempt, and try again later."""
        self._later(args=[self._due, self._key(job_id), job_id, delay_s, 1, KEPT_S])

    def hand_back(self, job_id: str) -> None:
        """Leave to others, at once, what was taken: no attempt was made, or none to its end."""
        self._later(args=[self._due, self._key(job_id), job_id, 0, 0, KEPT_S])

    def forget(self, job_id: str) -> None:
        """Send nothing (more) for a job."""
        with self._redis.pipeline() as pipe:
            pipe.zrem(self._due, job_id)
            pipe.delete(self._key(job_id))
            pipe.execute()

    def is_gone(self, key_id: str, url: str) -> bool:
        """Whether this receiver said, within a week, that it wants no more."""
        return bool(self._redis.sismember(self._gone(key_id), _hash(url)))

    def gone(self, key_id: str, url: str) -> None:
        """Remember that a receiver wants no more."""
        with self._redis.pipeline() as pipe:
            pipe.sadd(self._gone(key_id), _hash(url))
            pipe.expire(self._gone(key_id), GONE_S)
            pipe.execute()

    def _key(self, job_id: str) -> str:
        return f"{self._prefix}callback:{job_id}"

    def _gone(self, key_id: str) -> str:
        return f"{self._prefix}callbacks-gone:{key_id}"


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
