import json
import threading
from typing import Any

from redis import Redis

from tests.jobs.samples import a_job
from workers import logs
from workers.client import make_celery, message
from workers.jobs import Jobs
from workers.messages import GENERATE_TASK, QUEUES


def taken(redis: Redis, queue: str) -> dict[str, Any]:
    [text] = redis.lrange(queue, 0, -1)
    redis.delete(queue)
    return json.loads(text)  # type: ignore[no-any-return]


def test_a_message_is_what_celery_would_have_sent(redis: Redis, redis_url: str, jobs: Jobs) -> None:
    celery = make_celery(redis_url, visibility_timeout=3_600)
    for queue in QUEUES:
        job = a_job(queue)
        jobs.create(job)
        ours = taken(redis, queue)
        celery.send_task(GENERATE_TASK, kwargs={"job_id": job.id}, queue=queue, task_id=job.id)
        theirs = taken(redis, queue)
        for envelope in (ours, theirs):
            assert envelope["properties"].pop("delivery_tag")
            assert envelope["headers"].pop("origin")
            envelope["properties"].pop("reply_to")  # nobody listens there: there is no result backend
        assert ours == theirs
    celery.close()


def test_every_copy_has_a_tag_of_its_own(redis: Redis, jobs: Jobs) -> None:
    job = jobs.create(a_job())
    jobs.send(job.id)
    messages = [json.loads(text) for text in redis.lrange(job.queue, 0, -1)]
    assert len({m["properties"]["delivery_tag"] for m in messages}) == 2
    assert {m["headers"]["id"] for m in messages} == {job.id}


def test_every_copy_says_whose_request_it_was(redis: Redis, jobs: Jobs) -> None:
    with logs.serving(logs.request_id, "r-1"):
        job = jobs.create(a_job())
    jobs.send(job.id)
    assert [json.loads(text)["headers"]["request_id"] for text in redis.lrange(job.queue, 0, -1)] == ["r-1", "r-1"]


def test_a_real_worker_takes_the_message(redis_url: str, jobs: Jobs) -> None:
    app = make_celery(redis_url, visibility_timeout=3_600)
    seen: list[str] = []
    arrived = threading.Event()

    @app.task(name=GENERATE_TASK)  # type: ignore[untyped-decorator]
    def generate(job_id: str) -> None:
        seen.append(job_id)
        arrived.set()

    worker = app.WorkController(pool_cls="solo", concurrency=1, loglevel="ERROR", without_mingle=True)
    thread = threading.Thread(target=worker.start, daemon=True)
    thread.start()
    try:
        job = jobs.create(a_job())
        assert arrived.wait(10)
        assert seen == [job.id]
    finally:
        worker.stop(in_sighandler=False)
        thread.join(10)


def test_a_message_that_no_record_holds_has_its_tag_open() -> None:
    assert json.loads(message(a_job()))["properties"]["delivery_tag"] == "@tag@"
