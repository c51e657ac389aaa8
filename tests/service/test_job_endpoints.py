import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import pytest
from redis import Redis

from tests.jobs.samples import ERROR, RESULT
from tests.service.conftest import Start
from tests.service.gateway import Gateway
from tests.service.problems import problem
from workers import filing


class Sent(NamedTuple):
    """One server-sent event as a client reads it."""

    id: str
    event: str
    data: dict[str, object]


def events(response: httpx.Response) -> Iterator[Sent | str]:
    """Read a stream; comments come as strings."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            yield line
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Sent(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


def read_events(gateway: Gateway, job_id: str, last_event_id: str = "") -> list[Sent]:
    """Read a stream of events to its end."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with httpx.stream("GET", f"{gateway.url}/jobs/{job_id}/events", headers=headers, timeout=10) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        return [event for event in events(response) if isinstance(event, Sent)]


# Looking --------------------------------------------------------------------------------------------------------------


def test_a_job_shows_how_it_stands(gateway: Gateway) -> None:
    job_id = gateway.post().json()["id"]
    path = f"/jobs/{job_id}"
    response = gateway.client.get(path)
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["links"] == {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"}

    token = gateway.jobs.claim(job_id, "w", 30)
    assert token
    gateway.jobs.progress(job_id, token, "sample", 3, 30)
    running = gateway.client.get(path).json()
    assert running["status"] == "running"
    assert running["queue_position"] is None
    assert running["progress"] == {"stage": "sample", "step": 3, "steps": 30}
    assert running["attempt"] == 1

    gateway.jobs.finish(job_id, token, RESULT)
    response = gateway.client.get(path)
    assert "retry-after" not in response.headers
    done = response.json()
    assert done["status"] == "succeeded"
    assert done["started_at"] < done["finished_at"]
    assert done["result"] == {
        "models": [
            {
                "id": "m-1",
                "rank": 0,
                "holdout_accuracy": 0.9,
                "links": {"card": "/models/m-1", "weights": "/models/m-1/weights", "onnx": "/models/m-1/onnx"},
            }
        ],
        "classes": ["cat", "dog"],
        "seed": 7,
        "method": "conditional-mean",
        "bundle": "starter-000000000000",
        "ranked_on": "cross-validation",
        "baselines": {"retrieve": 0.4},
        "novelty": {"score": 0.1, "warning": None},
        "timings_ms": {"queue": 1.0},
    }


def test_a_failed_job_carries_its_problem(gateway: Gateway) -> None:
    job_id = gateway.post().json()["id"]
    token = gateway.jobs.claim(job_id, "w", 30)
    assert token
    gateway.jobs.fail(job_id, token, ERROR)
    job = gateway.client.get(f"/jobs/{job_id}").json()
    assert job["status"] == "failed"
    assert job["error"] == ERROR.model_dump(mode="json")


def test_places_in_the_queue(gateway: Gateway) -> None:
    assert [gateway.post().json()["queue_position"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("path", ["/jobs/nobody", "/jobs/nobody/events", "/jobs/%00", "/jobs/" + "x" * 2_000])
def test_unknown_jobs(gateway: Gateway, path: str) -> None:
    problem(gateway.client.get(path), 404, "not-found")


def test_canceling_an_unknown_job(gateway: Gateway) -> None:
    problem(gateway.client.post("/jobs/nobody/cancel"), 404, "not-found")


def test_pages(gateway: Gateway) -> None:
    ids = [gateway.post().json()["id"] for _ in range(5)]
    gateway.finish(ids[1])
    first = gateway.client.get("/jobs", params={"limit": 3}).json()
    second = gateway.client.get("/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for page in (first, second) for job in page["jobs"]] == ids[::-1]
    assert second["next_cursor"] is None
    done = gateway.client.get("/jobs", params={"status": "succeeded"}).json()["jobs"]
    assert [job["id"] for job in done] == [ids[1]]
    for params in ({"cursor": "x"}, {"limit": "0"}, {"limit": "201"}, {"status": "asleep"}):
        [error] = problem(gateway.client.get("/jobs", params=params), 422, "invalid-request")["errors"]
        assert error["pointer"] == f"/{next(iter(params))}"


# Canceling ------------------------------------------------------------------------------------------------------------


def test_cancel_a_waiting_job(gateway: Gateway) -> None:
    links = gateway.post().json()["links"]
    for _ in range(2):
        response = gateway.client.post(links["cancel"])
        assert response.status_code == 200
        assert response.json()["status"] == "canceled"


def test_cancel_a_running_job(gateway: Gateway) -> None:
    job_id = gateway.post().json()["id"]
    token = gateway.jobs.claim(job_id, "w", 30)
    assert token
    response = gateway.client.post(f"/jobs/{job_id}/cancel")
    assert response.status_code == 202
    assert response.json()["status"] == "running"
    assert gateway.jobs.is_cancel_requested(job_id)
    gateway.jobs.finish_canceled(job_id, token)
    assert gateway.client.post(f"/jobs/{job_id}/cancel").status_code == 200


def test_cancel_comes_too_late(gateway: Gateway) -> None:
    job_id = gateway.post().json()["id"]
    gateway.finish(job_id)
    assert "succeeded" in problem(gateway.client.post(f"/jobs/{job_id}/cancel"), 409, "conflict")["detail"]


# Following ------------------------------------------------------------------------------------------------------------


def test_events_come_as_they_happen_and_end_with_the_job(gateway: Gateway) -> None:
    job_id = gateway.post().json()["id"]
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("GET", f"{gateway.url}/jobs/{job_id}/events", timeout=10) as response,
    ):
        reader = events(response)
        assert next(reader) == Sent(gateway.jobs.events(job_id)[0].id, "status", {"status": "queued", "attempt": 0})
        pool.submit(gateway.finish, job_id).result()
        rest = [event for event in reader if isinstance(event, Sent)]
    assert [(event.event, event.data) for event in rest] == [
        ("status", {"status": "running", "attempt": 1}),
        ("progress", {"stage": "sample", "step": 1, "steps": 2}),
        ("status", {"status": "succeeded", "attempt": 1}),
    ]


def test_a_client_that_returns_gets_what_it_missed(gateway: Gateway) -> None:
    job_id = gateway.post().json()["id"]
    gateway.finish(job_id)
    everything = read_events(gateway, job_id)
    assert len(everything) == 4
    for seen in range(1, 4):
        assert read_events(gateway, job_id, everything[seen - 1].id) == everything[seen:]
    assert read_events(gateway, job_id, "not one of ours") == everything

    headers = {"Last-Event-ID": everything[-1].id}
    assert gateway.client.get(f"/jobs/{job_id}/events", headers=headers).status_code == 204


def test_silence_is_filled_with_comments(start: Start) -> None:
    gateway = start(keepalive_s=0.1)
    job_id = gateway.post().json()["id"]
    with httpx.stream("GET", f"{gateway.url}/jobs/{job_id}/events", timeout=10) as response:
        reader = events(response)
        assert [isinstance(next(reader), Sent) for _ in range(3)] == [True, False, False]


def test_many_follow_one_job(gateway: Gateway) -> None:
    job_id = gateway.post().json()["id"]
    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read_events, gateway, job_id) for _ in range(10)]
        time.sleep(0.2)
        gateway.finish(job_id)
        streams = [reader.result() for reader in readers]
    assert all(stream == streams[0] for stream in streams)
    assert len(streams[0]) == 4


def test_a_follower_that_leaves_frees_its_connection(start: Start, redis: Redis) -> None:
    gateway = start(max_followers=1)
    job_id = gateway.post().json()["id"]
    for _ in range(3):
        with httpx.stream("GET", f"{gateway.url}/jobs/{job_id}/events", timeout=10) as response:
            assert isinstance(next(events(response)), Sent)
        time.sleep(0.1)


def test_a_stream_without_a_connection_left_ends_and_can_be_taken_up(start: Start) -> None:
    gateway = start(max_followers=1)
    job_id = gateway.post().json()["id"]
    go_on = threading.Event()

    def hold() -> None:
        with httpx.stream("GET", f"{gateway.url}/jobs/{job_id}/events", timeout=10) as response:
            reader = events(response)  # dropped, it would close the response
            next(reader)
            go_on.wait(5)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        time.sleep(0.3)
        assert read_events(gateway, job_id) == []
        go_on.set()
        holding.result()
    time.sleep(0.1)
    gateway.finish(job_id)
    assert len(read_events(gateway, job_id)) == 4


def test_a_job_that_was_forgotten_is_gone_rather_than_unknown(gateway: Gateway, redis: Redis) -> None:
    job = gateway.post().json()["id"]
    gateway.finish(job)
    redis.delete(f"loomweight:job:{job}")
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        problem(gateway.client.request(method, f"/jobs/{job}{path}"), 410, "expired")
    redis.delete(f"loomweight:forgotten:{job}")
    problem(gateway.client.get(f"/jobs/{job}"), 404, "not-found")


def test_cursors_are_numbers_of_ours(gateway: Gateway) -> None:
    for cursor in ("1_0", "-1", "\u0661", "1e3", "9" * 16, "x"):
        problem(gateway.client.get("/jobs", params={"cursor": cursor}), 422, "invalid-request")
    assert gateway.client.get("/jobs", params={"cursor": ""}).status_code == 200


# Ended jobs that Redis lost -------------------------------------------------------------------------------------------


def test_an_ended_job_is_answered_from_the_store_when_redis_lost_it(gateway: Gateway, redis: Redis) -> None:
    job_id = gateway.post().json()["id"]
    gateway.finish(job_id)
    filing.file(gateway.jobs, gateway.services.models, job_id)
    known = gateway.client.get(f"/jobs/{job_id}").json()

    redis.flushall()

    assert gateway.client.get(f"/jobs/{job_id}").json() == known
    assert known["status"] == "succeeded"
    assert gateway.client.get(f"/jobs/{job_id}/events").status_code == 204
    problem(gateway.client.post(f"/jobs/{job_id}/cancel"), 409, "conflict")
    problem(gateway.client.get("/jobs/job-0"), 404, "not-found")
    problem(gateway.client.post("/jobs/job-0/cancel"), 404, "not-found")
