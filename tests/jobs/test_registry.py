import time
from datetime import UTC, datetime

from redis import Redis

from workers.messages import WorkerInfo
from workers.registry import Registry


def a_worker(name: str) -> WorkerInfo:
    return WorkerInfo(
        id=name,
        host="here",
        pid=1,
        bundle="starter-000000000000",
        targets=("mlp",),
        device="cpu",
        started_at=datetime.now(UTC),
    )


def test_workers_come_and_go(redis: Redis) -> None:
    registry = Registry(redis)
    assert registry.alive() == []
    registry.announce(a_worker("b"), ttl=30)
    registry.announce(a_worker("a"), ttl=30)
    registry.announce(a_worker("a"), ttl=30)
    assert [worker.id for worker in registry.alive()] == ["a", "b"]
    registry.leave("a")
    assert [worker.id for worker in registry.alive()] == ["b"]


def test_a_silent_worker_is_forgotten(redis: Redis) -> None:
    registry = Registry(redis)
    registry.announce(a_worker("a"), ttl=1)
    time.sleep(1.1)
    assert registry.alive() == []
    assert not list(redis.scan_iter())
