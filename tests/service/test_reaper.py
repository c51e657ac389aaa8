import json
import os
import time
from pathlib import Path

import pytest
from redis import Redis

from service.jobs.reaper import Reaper
from tests.service.conftest import Start
from tests.service.gateway import Gateway
from workers import jobs as jobs_module
from workers.client import QueueClient


def messages(redis: Redis) -> list[str]:
    return [json.loads(message)["headers"]["id"] for message in redis.lrange("generate", 0, -1)]


def test_a_lost_workers_job_is_queued_and_sent_again(start: Start, redis: Redis) -> None:
    gateway = start(reaper_interval_s=0.05)
    job_id = gateway.post().json()["id"]
    redis.delete("generate")
    assert gateway.jobs.claim(job_id, "doomed", 0.1)
    deadline = time.monotonic() + 5
    while messages(redis) != [job_id]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert gateway.jobs.get(job_id).status == "queued"
    assert gateway.jobs.due() == []
    assert gateway.services.metrics.registry.get_sample_value("loomweight_jobs_reaped_total", {"status": "queued"}) == 1


def test_a_job_whose_message_could_not_be_sent_is_not_lost(
    gateway: Gateway, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "SEND_GRACE_S", 0)
    dead = QueueClient("redis://127.0.0.1:1/0", 3_600)
    alive = gateway.services.queue
    object.__setattr__(gateway.services, "queue", dead)
    response = gateway.post()
    assert response.status_code == 202
    job_id = response.json()["id"]
    assert messages(redis) == []

    Reaper(gateway.services).tick()
    assert gateway.jobs.due() == [job_id], "the broker is still away"

    object.__setattr__(gateway.services, "queue", alive)
    Reaper(gateway.services).tick()
    assert messages(redis) == [job_id]
    assert gateway.jobs.due() == []


def test_jobs_expire_that_nobody_begins(start: Start) -> None:
    gateway = start(queue_ttl_s=1)
    job_id = gateway.post().json()["id"]
    Reaper(gateway.services).tick()
    assert gateway.jobs.get(job_id).status == "queued"
    time.sleep(1.1)
    Reaper(gateway.services).tick()
    job = gateway.client.get(f"/jobs/{job_id}").json()
    assert job["status"] == "expired"
    assert job["error"]["detail"].startswith("No worker began the job within 1 seconds")
    assert (
        gateway.services.metrics.registry.get_sample_value("loomweight_jobs_reaped_total", {"status": "expired"}) == 1
    )


def test_old_uploads_are_swept(gateway: Gateway) -> None:
    old, new = (gateway.jobs.get(gateway.post().json()["id"]).inputs for _ in range(2))
    assert old
    assert new
    root = Path(gateway.services.settings.store_url)
    day_before = time.time() - 86_500
    os.utime(root / old.key, (day_before, day_before))
    assert Reaper(gateway.services).sweep() == 1
    assert [entry.key for entry in gateway.store.list("inputs/")] == [new.key]


def test_the_reaper_outlives_an_outage(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[str]:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(gateway.jobs, "orphans", fail)
    Reaper(gateway.services).tick()
