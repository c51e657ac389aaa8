import json
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from redis import ConnectionError as NoRedis
from redis import Redis

from service.jobs import reaper as reaper_module
from service.jobs.reaper import Reaper
from tests.service.conftest import Start
from tests.service.gateway import Gateway, save_model
from workers import jobs as jobs_module


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


def test_a_lost_message_is_sent_again(gateway: Gateway, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "SEND_AGAIN_S", 0)
    job_id = gateway.post().json()["id"]
    redis.delete("generate")
    Reaper(gateway.services).tick()
    assert messages(redis) == [job_id]


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


def test_old_uploads_are_swept(start: Start) -> None:
    gateway = start(inline_bytes=0)
    old, new = (gateway.jobs.get(gateway.post().json()["id"]).inputs for _ in range(2))
    assert old
    assert new
    root = Path(gateway.services.settings.store_url)
    day_before = time.time() - 86_500
    os.utime(root / old.key, (day_before, day_before))
    assert Reaper(gateway.services).sweep() == 1
    assert [entry.key for entry in gateway.store.list("inputs/")] == [new.key]


@pytest.mark.parametrize("error", [RuntimeError("nobody thought of this"), NoRedis("away")])
def test_the_reaper_outlives_an_outage(start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    gateway = start(reaper_interval_s=0.05)
    looked = threading.Semaphore(0)

    def fail() -> list[str]:
        looked.release()
        raise error

    monkeypatch.setattr(gateway.jobs, "orphans", fail)
    assert looked.acquire(timeout=10)
    assert looked.acquire(timeout=10)


def test_jobs_that_no_worker_ended_are_filed(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = gateway.post().json()["id"]
    gateway.client.post(f"/jobs/{job_id}/cancel")
    Reaper(gateway.services).tick()
    assert gateway.store.list("jobs/") == [], "whoever ended it goes first"
    monkeypatch.setattr(reaper_module, "_FILE_GRACE_S", 0)
    Reaper(gateway.services).tick()
    assert [entry.key for entry in gateway.store.list("jobs/")] == [f"jobs/{job_id}.json"]
    assert gateway.store.list("inputs/") == []
    assert gateway.jobs.unfiled() == []


def test_a_long_queue_is_not_filled_with_copies(
    gateway: Gateway, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "SEND_AGAIN_S", 0)
    ids = [gateway.post().json()["id"] for _ in range(3)]
    Reaper(gateway.services).tick()
    assert sorted(messages(redis)) == sorted(ids)
    redis.lpop("generate")
    Reaper(gateway.services).tick()
    assert redis.llen("generate") == 3


def test_the_store_keeps_things_for_their_time(start: Start) -> None:
    gateway = start(record_ttl_s=60, model_ttl_s=60)
    old, new = save_model(gateway.services.models, "m-old"), save_model(gateway.services.models, "m-new")
    age = {"created_at": old[0].created_at - timedelta(seconds=61)}
    gateway.services.models.delete("m-old")
    gateway.services.models.save(old[0].model_copy(update=age), old[1], b"onnx bytes")
    for name in ("j-old", "j-new"):
        gateway.store.put(f"jobs/{name}.json", b"{}", content_type="application/json")
    past = time.time() - 61
    os.utime(Path(gateway.services.settings.store_url) / "jobs/j-old.json", (past, past))

    assert Reaper(gateway.services).sweep() == 2

    assert [card.id for card in gateway.services.models.list().models] == [new[0].id]
    assert not gateway.services.models.exists("m-old")
    assert [entry.key for entry in gateway.store.list("jobs/")] == ["jobs/j-new.json"]
