import json
import threading
import time

import pytest
from kombu.exceptions import OperationalError
from redis import Redis

from tests.jobs.samples import a_job
from tests.valkey import free_port
from workers.client import QueueClient, make_celery
from workers.messages import GENERATE_TASK, QUEUES


def test_a_message_is_a_job_id_in_the_jobs_queue(redis: Redis, redis_url: str) -> None:
    client = QueueClient(redis_url, visibility_timeout=3_600)
    jobs = {queue: a_job(queue) for queue in QUEUES}
    for job in jobs.values():
        client.send(job)
    client.close()
    for queue, job in jobs.items():
        [message] = redis.lrange(queue, 0, -1)
        headers = json.loads(message)["headers"]
        assert headers["task"] == GENERATE_TASK
        assert headers["kwargsrepr"] == repr({"job_id": job.id})


def test_a_real_worker_takes_the_message(redis_url: str) -> None:
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
        job = a_job()
        client = QueueClient(redis_url, visibility_timeout=3_600)
        client.send(job)
        client.close()
        assert arrived.wait(10)
        assert seen == [job.id]
    finally:
        worker.stop(in_sighandler=False)
        thread.join(10)


def test_a_dead_broker_is_reported_soon() -> None:
    client = QueueClient(f"redis://127.0.0.1:{free_port()}/0", visibility_timeout=3_600)
    start = time.monotonic()
    with pytest.raises(OperationalError):
        client.send(a_job())
    assert time.monotonic() - start < 5
