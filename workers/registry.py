"""Which workers are alive: each says so itself, and is forgotten when it stops saying so.

worker:{id}    string   its WorkerInfo as JSON, with a time to live
workers        set      the ids, pruned when read
"""

from typing import cast

from redis import Redis

from workers.messages import WorkerInfo


class Registry:
    """The workers known in `redis` (made with `decode_responses=True`)."""

    def __init__(self, redis: Redis, *, prefix: str = "loomweight:") -> None:
        self._redis = redis
        self._prefix = prefix

    def announce(self, worker: WorkerInfo, ttl: int) -> None:
        """Say that a worker has its bundle loaded and takes jobs; to be repeated well within `ttl` seconds."""
        with self._redis.pipeline() as pipe:
            pipe.set(self._key(worker.id), worker.model_dump_json(), ex=ttl)
            pipe.sadd(self._ids, worker.id)
            pipe.execute()

    def leave(self, worker_id: str) -> None:
        """Say that a worker takes no more jobs."""
        with self._redis.pipeline() as pipe:
            pipe.delete(self._key(worker_id))
            pipe.srem(self._ids, worker_id)
            pipe.execute()

    def alive(self) -> list[WorkerInfo]:
        """Return the workers whose time to live has not run out, by id."""
        ids = sorted(cast("set[str]", self._redis.smembers(self._ids)))
        if not ids:
            return []
        found = cast("list[str | None]", self._redis.mget([self._key(worker_id) for worker_id in ids]))
        gone = [worker_id for worker_id, info in zip(ids, found, strict=True) if info is None]
        if gone:
            self._redis.srem(self._ids, *gone)
        return [WorkerInfo.model_validate_json(info) for info in found if info is not None]

    @property
    def _ids(self) -> str:
        return self._prefix + "workers"

    def _key(self, worker_id: str) -> str:
        return f"{self._prefix}worker:{worker_id}"
