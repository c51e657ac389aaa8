import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from tests.jobs.samples import ERROR, RESULT, a_job
from workers import jobs as jobs_module
from workers.jobs import (
    Idempotency,
    Jobs,
    KeyInFlight,
    KeyReused,
    QueueCounts,
    QueueFull,
    StaleAttempt,
    UnknownJob,
)
from workers.messages import InputRef

SHORT = 0.05


def names(jobs: Jobs, job_id: str) -> list[tuple[str, str]]:
    """What the event stream says, in short."""
    events = [(event.name, json.loads(event.data)) for event in jobs.events(job_id)]
    return [(name, data["status"] if name == "status" else f"{data['stage']} {data['step']}") for name, data in events]


def lapse(jobs: Jobs, job_id: str) -> int:
    """Claim a job and let the lease run out."""
    token = jobs.claim(job_id, "gone", SHORT)
    assert token
    time.sleep(SHORT * 1.5)
    return token


# The straight road ----------------------------------------------------------------------------------------------------


def test_a_job_goes_from_queued_to_succeeded(jobs: Jobs) -> None:
    inputs = InputRef(kind="dataset", key="inputs/x/upload", size=3, sha256="0" * 64, content_type="application/zip")
    given = a_job().model_copy(update={"inputs": inputs, "owner": "somebody"})

    created = jobs.create(given)
    assert created == given.model_copy(update={"created_at": created.created_at, "queue_position": 1})
    assert created == jobs.get(given.id)
    assert created.status == "queued"

    token = jobs.claim(given.id, "worker-1", 30)
    assert token == 1
    jobs.heartbeat(given.id, token)
    jobs.progress(given.id, token, "sample", 3, 50)
    running = jobs.get(given.id)
    assert running.status == "running"
    assert running.started_at
    assert running.progress
    assert (running.progress.stage, running.progress.step, running.progress.steps) == ("sample", 3, 50)

    jobs.finish(given.id, token, RESULT)
    done = jobs.get(given.id)
    assert done.status == "succeeded"
    assert done.result == RESULT
    assert done.finished_at
    assert done.created_at <= running.started_at <= done.finished_at
    assert names(jobs, given.id) == [
        ("status", "queued"),
        ("status", "running"),
        ("progress", "sample 3"),
        ("status", "succeeded"),
    ]


def test_a_failed_job_carries_its_problem(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w", 30)
    assert token
    jobs.fail(job.id, token, ERROR)
    assert jobs.get(job.id).status == "failed"
    assert jobs.get(job.id).error == ERROR


def test_unknown_jobs(jobs: Jobs) -> None:
    with pytest.raises(UnknownJob):
        jobs.get("nobody")
    with pytest.raises(UnknownJob):
        jobs.request_cancel("nobody")
    with pytest.raises(UnknownJob):
        jobs.heartbeat("nobody", 1)
    with pytest.raises(UnknownJob):
        jobs.requeue("nobody")
    assert jobs.claim("nobody", "w", 30) is None
    assert jobs.is_cancel_requested("nobody") is False
    jobs.send("nobody")
    assert jobs.due() == []


def test_creating_again_after_a_lost_answer_is_creating_once(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    jobs.claim(job.id, "w", 30)
    assert jobs.create(job).status == "running"
    assert jobs.counts()["generate"] == QueueCounts(0, 1)


def test_prefixes_do_not_meet(redis: Redis) -> None:
    job = Jobs(redis, prefix="a:").create(a_job())
    with pytest.raises(UnknownJob):
        Jobs(redis, prefix="b:").get(job.id)
    assert {key for key in redis.scan_iter() if not key.startswith("a:")} == {job.queue}, "the broker has no prefix"


# Fencing --------------------------------------------------------------------------------------------------------------


def test_of_many_claims_one_wins(jobs: Jobs) -> None:
    ids = [jobs.create(a_job()).id for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: (ids[n % 20], jobs.claim(ids[n % 20], f"w{n}", 30)), range(160)))
    assert Counter(job_id for job_id, token in claims if token) == Counter(ids)


def test_the_second_delivery_finds_nothing_to_do(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w1", 30)
    assert token
    assert jobs.claim(job.id, "w2", 30) is None
    assert jobs.claim(job.id, "w1", 30) is None
    jobs.finish(job.id, token, RESULT)
    assert jobs.claim(job.id, "w2", 30) is None


def test_a_stale_token_is_refused_everywhere(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    old = lapse(jobs, job.id)
    new = jobs.claim(job.id, "w2", 30)
    assert new == old + 1
    with pytest.raises(StaleAttempt):
        jobs.heartbeat(job.id, old)
    with pytest.raises(StaleAttempt):
        jobs.progress(job.id, old, "sample", 1, 2)
    with pytest.raises(StaleAttempt):
        jobs.finish(job.id, old, RESULT)
    with pytest.raises(StaleAttempt):
        jobs.fail(job.id, old, ERROR)
    with pytest.raises(StaleAttempt):
        jobs.finish_canceled(job.id, old)
    jobs.finish(job.id, new, RESULT)
    with pytest.raises(StaleAttempt):
        jobs.fail(job.id, new, ERROR)
    assert jobs.get(job.id).status == "succeeded"


def test_a_late_worker_may_still_finish_if_nobody_took_over(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    jobs.finish(job.id, lapse(jobs, job.id), RESULT)
    assert jobs.get(job.id).status == "succeeded"
    assert jobs.orphans() == []


def test_heartbeats_keep_the_lease(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w", 0.3)
    assert token
    for _ in range(4):
        time.sleep(0.15)
        jobs.heartbeat(job.id, token)
    assert jobs.orphans() == []
    assert jobs.claim(job.id, "other", 30) is None


def test_cancel_and_finish_race_to_one_end(jobs: Jobs) -> None:
    def attempt(finish_first: bool) -> tuple[str, list[str]]:
        job = jobs.create(a_job())
        token = jobs.claim(job.id, "w", 30)
        assert token
        refused: list[str] = []

        def end(action: str) -> None:
            try:
                if action == "finish":
                    jobs.finish(job.id, token, RESULT)
                else:
                    jobs.finish_canceled(job.id, token)
            except StaleAttempt:
                refused.append(action)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(end, ["finish", "cancel"] if finish_first else ["cancel", "finish"]))
        return jobs.get(job.id).status, refused

    for number in range(40):
        status, refused = attempt(number % 2 == 0)
        assert (status, refused) in [("succeeded", ["cancel"]), ("canceled", ["finish"])]


# Cancel and expire ----------------------------------------------------------------------------------------------------


def test_a_waiting_job_is_canceled_at_once(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    assert jobs.request_cancel(job.id) == "canceled"
    assert jobs.claim(job.id, "w", 30) is None
    assert jobs.counts()["generate"] == QueueCounts(0, 0)
    assert jobs.request_cancel(job.id) == "canceled"


def test_a_running_job_is_asked_to_stop(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w", 30)
    assert token
    assert not jobs.is_cancel_requested(job.id)
    assert jobs.request_cancel(job.id) == "running"
    assert jobs.request_cancel(job.id) == "running"
    assert jobs.is_cancel_requested(job.id)
    assert jobs.get(job.id).cancel_requested
    assert len(jobs.events(job.id)) == 3, "asking twice is one event"
    jobs.finish_canceled(job.id, token)
    assert jobs.get(job.id).status == "canceled"


def test_canceling_a_job_whose_worker_is_gone_ends_it(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = lapse(jobs, job.id)
    assert jobs.request_cancel(job.id) == "canceled"
    with pytest.raises(StaleAttempt):
        jobs.finish(job.id, token, RESULT)


def test_only_waiting_jobs_expire(jobs: Jobs) -> None:
    waiting, running = jobs.create(a_job()), jobs.create(a_job())
    jobs.claim(running.id, "w", 30)
    assert jobs.overdue(60) == []
    assert jobs.overdue(0) == [waiting.id]
    assert jobs.expire(waiting.id, ERROR) == "expired"
    assert jobs.expire(running.id, ERROR) == "running"
    assert jobs.get(waiting.id).error == ERROR


# Orphans --------------------------------------------------------------------------------------------------------------


def test_an_orphan_returns_to_the_queue(jobs: Jobs, redis: Redis) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w1", 30)
    assert token
    jobs.progress(job.id, token, "sample", 1, 2)
    assert jobs.requeue(job.id) == "running", "its worker is alive"

    job = jobs.create(a_job())
    lapse(jobs, job.id)
    assert jobs.orphans() == [job.id]
    sent = redis.llen(job.queue)
    assert jobs.requeue(job.id) == "queued"
    again = jobs.get(job.id)
    assert (again.status, again.progress, again.started_at, again.attempt) == ("queued", None, None, 1)
    assert redis.llen(job.queue) == sent + 1, "its message was sent again"
    assert jobs.orphans() == []
    assert jobs.requeue(job.id) == "queued", "a second reaper changes nothing"
    assert redis.llen(job.queue) == sent + 1
    assert jobs.claim(job.id, "w2", 30) == 2


def test_a_job_that_kills_its_workers_is_given_up(redis: Redis) -> None:
    jobs = Jobs(redis, max_attempts=2)
    job = jobs.create(a_job())
    lapse(jobs, job.id)
    lapse(jobs, job.id)
    assert jobs.claim(job.id, "w3", 30) is None
    failed = jobs.get(job.id)
    assert failed.status == "failed"
    assert failed.error
    assert "2 workers" in failed.error.detail
    assert [(entry["id"], entry["attempts"]) for entry in jobs.dead_letters()] == [(job.id, 2)]


def test_an_orphan_that_was_to_be_canceled_is(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w", SHORT)
    assert token
    jobs.request_cancel(job.id)
    time.sleep(SHORT * 1.5)
    assert jobs.requeue(job.id) == "canceled"


def test_many_reapers_requeue_once(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    lapse(jobs, job.id)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: jobs.requeue(job.id), range(16))) == {"queued"}
    assert names(jobs, job.id) == [("status", "queued"), ("status", "running"), ("status", "queued")]


# Queues ---------------------------------------------------------------------------------------------------------------


def test_places_and_counts(jobs: Jobs) -> None:
    first, second, other = jobs.create(a_job()), jobs.create(a_job()), jobs.create(a_job("large"))
    for place, job in ((1, first), (2, second), (1, other)):
        assert job.queue_position == jobs.get(job.id).queue_position == place
    assert {job.id: job.queue_position for job in jobs.page().jobs} == {first.id: 1, second.id: 2, other.id: 1}
    jobs.claim(first.id, "w", 30)
    assert [jobs.get(job.id).queue_position for job in (first, second)] == [None, 1]
    assert jobs.counts() == {
        "generate": QueueCounts(1, 1),
        "similarity": QueueCounts(0, 0),
        "large": QueueCounts(1, 0),
    }


def test_a_full_queue_takes_no_more(redis: Redis) -> None:
    jobs = Jobs(redis, max_queued=2)
    first = jobs.create(a_job())
    jobs.create(a_job())
    with pytest.raises(QueueFull):
        jobs.create(a_job())
    jobs.create(a_job("large"))
    jobs.claim(first.id, "w", 30)
    jobs.create(a_job())


# Listing and forgetting -----------------------------------------------------------------------------------------------


def test_pages_go_from_new_to_old(jobs: Jobs) -> None:
    ids = [jobs.create(a_job()).id for _ in range(5)]
    token = jobs.claim(ids[3], "w", 30)
    assert token
    jobs.finish(ids[3], token, RESULT)

    first = jobs.page(limit=2)
    second = jobs.page(limit=2, cursor=first.next_cursor)
    last = jobs.page(limit=2, cursor=second.next_cursor)
    assert [job.id for page in (first, second, last) for job in page.jobs] == ids[::-1]
    assert last.next_cursor is None
    assert [job.id for job in jobs.page("succeeded").jobs] == [ids[3]]
    assert [job.id for job in jobs.page("queued").jobs] == [ids[4], ids[2], ids[1], ids[0]]
    with pytest.raises(ValueError):
        jobs.page(cursor="not-a-cursor")


def test_ended_jobs_are_forgotten_with_every_trace(redis: Redis) -> None:
    jobs = Jobs(redis, ttl=1)
    old = jobs.create(a_job(), idempotency=Idempotency("k", "payload"))
    jobs.request_cancel(old.id)
    time.sleep(1.1)
    with pytest.raises(UnknownJob):
        jobs.get(old.id)
    assert jobs.events(old.id) == []
    assert jobs.page().jobs == []
    new = jobs.create(a_job())
    # What stays a while longer is that it was there, and whose.
    assert [key for key in redis.scan_iter() if old.id in key] == [f"loomweight:forgotten:{old.id}"]
    assert redis.zrange("loomweight:jobs", 0, -1) == [new.id]
    assert redis.zrange("loomweight:jobs:canceled", 0, -1) == []


# Idempotency ----------------------------------------------------------------------------------------------------------


def test_a_key_leads_to_one_job(jobs: Jobs) -> None:
    assert jobs.reserve(Idempotency("k", "payload")) is None
    with pytest.raises(KeyInFlight):
        jobs.reserve(Idempotency("k", "payload"))
    with pytest.raises(KeyReused):
        jobs.reserve(Idempotency("k", "another"))
    job = jobs.create(a_job(), idempotency=Idempotency("k", "payload"))
    assert jobs.reserve(Idempotency("k", "payload")) == job.id
    with pytest.raises(KeyReused):
        jobs.reserve(Idempotency("k", "another"))
    assert jobs.reserve(Idempotency("k2", "payload")) is None


def test_a_key_whose_reservation_ran_out_still_leads_to_one_job(jobs: Jobs, redis: Redis) -> None:
    # Given a first request that takes so long that its reservation is gone, and a second one that is faster
    jobs.reserve(Idempotency("k", "payload"))
    for key in redis.scan_iter("*idempotency*"):
        redis.delete(key)
    assert jobs.reserve(Idempotency("k", "payload")) is None
    second = jobs.create(a_job(), idempotency=Idempotency("k", "payload"))
    # When the first comes through after all, it is given the second's job
    assert jobs.create(a_job(), idempotency=Idempotency("k", "payload")).id == second.id
    assert [job.id for job in jobs.page().jobs] == [second.id]


def test_a_job_entered_after_its_reservation_ran_out_keeps_its_key(jobs: Jobs, redis: Redis) -> None:
    slow = Idempotency("k", "payload")
    jobs.reserve(slow)
    for key in redis.scan_iter("*idempotency*"):
        redis.delete(key)
    job = jobs.create(a_job(), idempotency=slow)
    assert jobs.reserve(slow) == job.id
    with pytest.raises(KeyReused):
        jobs.reserve(Idempotency("k", "another"))
    with pytest.raises(KeyReused):
        jobs.create(a_job(), idempotency=Idempotency("k", "another"))
    [key] = redis.scan_iter("*idempotency*")
    assert redis.ttl(key) > jobs_module.RESERVED_S


def test_a_released_key_can_be_used_again(jobs: Jobs) -> None:
    jobs.reserve(Idempotency("k", "payload"))
    jobs.release("k")
    assert jobs.reserve(Idempotency("k", "another")) is None
    job = jobs.create(a_job(), idempotency=Idempotency("k", "another"))
    jobs.release("k")
    assert jobs.reserve(Idempotency("k", "another")) == job.id


def test_of_many_reservations_one_wins(jobs: Jobs) -> None:
    def reserve(_: int) -> str:
        try:
            return str(jobs.reserve(Idempotency("k", "payload")))
        except KeyInFlight:
            return "in flight"

    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(reserve, range(32))) == {"None": 1, "in flight": 31}


# Events ---------------------------------------------------------------------------------------------------------------


def test_events_replay_from_any_id(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w", 30)
    assert token
    for step in range(5):
        jobs.progress(job.id, token, "sample", step, 5)
    events = jobs.events(job.id)
    assert len(events) == 7
    assert jobs.events(job.id, after=events[3].id) == events[4:]
    assert jobs.events(job.id, after=events[-1].id) == []


def test_the_event_stream_is_capped(jobs: Jobs) -> None:
    job = jobs.create(a_job())
    token = jobs.claim(job.id, "w", 30)
    assert token
    for step in range(1_300):
        jobs.progress(job.id, token, "sample", step, 1_300)
    assert 1_000 <= len(jobs.events(job.id, limit=5_000)) < 1_200
