import base64
import hashlib
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis import Redis

from service.jobs import service as jobs_service
from tests.service.conftest import Start
from tests.service.gateway import JPEG, PARQUET, PNG, WEBP, ZIP, Gateway, samples_form, samples_json
from tests.service.problems import problem
from tests.workers.test_worker import until
from workers.jobs import Idempotency
from workers.messages import unpack_samples

# Happy paths ----------------------------------------------------------------------------------------------------------


def test_samples_become_a_job(gateway: Gateway, redis: Redis) -> None:
    response = gateway.post(
        5,
        options={
            "method": "diffusion",
            "candidates": "16",
            "holdout": "0",
            "guidance": "1.5",
            "seed": "7",
            "steps": "",
        },
    )
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == job["links"]["self"] == f"/jobs/{job['id']}"
    assert response.headers["retry-after"] == "1"
    assert job["status"] == "queued"
    assert job["queue_position"] == 1
    assert job["result"] is None
    assert job["request"] == {
        "target": "cnn-s",
        "method": "diffusion",
        "candidates": 16,
        "keep": 1,
        "holdout": 0.0,
        "steps": None,
        "guidance": 1.5,
        "temperature": None,
        "refine_steps": 0,
        "seed": 7,
        "callback_url": None,
    }

    record = gateway.jobs.get(job["id"])
    assert record.inputs
    stored = gateway.uploaded(job["id"])
    assert record.inputs.key.startswith(f"inputs/{job['id']}/")
    assert (record.inputs.kind, record.inputs.size) == ("samples", len(stored))
    assert record.inputs.sha256 == hashlib.sha256(stored).hexdigest()
    assert unpack_samples(stored) == ([PNG] * 5, ["class 0", "class 1", "class 0", "class 1", "class 0"])

    [message] = redis.lrange("generate", 0, -1)
    assert job["id"] in json.loads(message)["headers"]["kwargsrepr"]
    assert gateway.jobs.due() == []


def test_what_a_request_leaves_open(gateway: Gateway) -> None:
    for response in (
        gateway.post(),
        gateway.post(options={"holdout": ""}),
        gateway.client.post("/generate", json=samples_json(holdout=None)),
    ):
        request = response.json()["request"]
        assert (request["method"], request["candidates"], request["holdout"]) == ("conditional-mean", 8, None)
    assert gateway.post(options={"holdout": "0.2"}).json()["request"]["holdout"] == 0.2


@pytest.mark.parametrize(
    ("body", "content_type"), [(ZIP, "application/zip"), (PARQUET, "application/vnd.apache.parquet")]
)
@pytest.mark.parametrize("inline_bytes", [len(ZIP) - 1, 1_000])
def test_a_dataset_is_kept_as_it_came(start: Start, body: bytes, content_type: str, inline_bytes: int) -> None:
    gateway = start(inline_bytes=inline_bytes)
    response = gateway.client.post("/generate", files={"dataset": ("data", body)}, data={"target": "mlp"})
    assert response.status_code == 202
    job_id = response.json()["id"]
    inputs = gateway.jobs.get(job_id).inputs
    assert inputs
    assert (inputs.kind, inputs.content_type) == ("dataset", content_type)
    assert inputs.inline == (inline_bytes == 1_000)
    assert gateway.uploaded(job_id) == body
    assert len(gateway.store.list("inputs/")) == (not inputs.inline)


def test_json_says_the_same_as_a_form(gateway: Gateway) -> None:
    response = gateway.client.post("/generate", json=samples_json(6, 3, candidates=2, method="kde"))
    assert response.status_code == 202, response.text
    job = gateway.jobs.get(response.json()["id"])
    assert (job.request.candidates, job.request.method) == (2, "kde")
    assert job.inputs
    assert unpack_samples(gateway.uploaded(job.id)) == ([PNG] * 6, [f"class {n % 3}" for n in range(6)])


def test_every_image_format_passes(gateway: Gateway) -> None:
    files = [("samples", ("x", image)) for image in (PNG, JPEG, WEBP)]
    assert gateway.client.post("/generate", files=files, data={"labels": ["a", "b", "b"]}).status_code == 202


def test_labels_are_tidied_as_the_worker_does(gateway: Gateway) -> None:
    form = samples_form(2)
    form["data"]["labels"] = ["  cafe\u0301 ", "dog"]
    job_id = gateway.client.post("/generate", **form).json()["id"]
    assert unpack_samples(gateway.uploaded(job_id))[1] == ["caf\u00e9", "dog"]


def test_a_seed_is_drawn_once_and_said(gateway: Gateway) -> None:
    seeds = {gateway.post().json()["request"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_an_empty_file_field_of_a_browser_is_no_source(gateway: Gateway) -> None:
    part = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    samples = [part.format("samples", '; filename="a.jpg"', "JPEG") + part.format("labels", "", n) for n in "ab"]
    body = "".join([*samples, part.format("dataset", '; filename=""', ""), "--b--\r\n"]).encode().replace(b"JPEG", JPEG)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert gateway.client.post("/generate", content=body, headers=headers).status_code == 202


# Prefer: wait ---------------------------------------------------------------------------------------------------------


def test_wait_returns_the_finished_job(gateway: Gateway) -> None:
    with gateway.working():
        response = gateway.post(headers={"Prefer": "respond-async, wait=10"})
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=10"
    assert "retry-after" not in response.headers
    assert response.json()["status"] == "succeeded"
    assert response.json()["result"]["models"][0]["links"]["weights"] == "/models/m-1/weights"


def test_wait_ends_when_the_time_is_up(gateway: Gateway) -> None:
    began = time.monotonic()
    response = gateway.post(headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - began < 3
    assert response.status_code == 202
    assert response.json()["status"] == "queued"


def test_wait_has_a_limit(start: Start) -> None:
    assert start(max_wait_s=0).post(headers={"Prefer": "wait=100000"}).headers["preference-applied"] == "wait=0"


def test_any_number_may_wait(start: Start) -> None:
    gateway = start(max_followers=1)
    with ThreadPoolExecutor(8) as pool, gateway.working():
        answers = list(pool.map(lambda _: gateway.post(headers={"Prefer": "wait=10"}).status_code, range(8)))
    assert answers == [200] * 8


def test_an_end_that_nobody_heard_of_is_found(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_service, "_LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(gateway.services.endings, "_wake", lambda _: None)
    with gateway.working():
        assert gateway.post(headers={"Prefer": "wait=10"}).json()["status"] == "succeeded"


def test_what_ended_while_nobody_listened_is_heard_of_soon(gateway: Gateway, redis: Redis) -> None:
    assert gateway.post().status_code == 202  # the loop runs
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(gateway.post, headers={"Prefer": "wait=30"})
        until(lambda: len(gateway.jobs.page("queued").jobs) == 2)
        time.sleep(0.2)
        began = time.monotonic()
        with redis.pipeline() as pipe:  # nobody hears of the end: the connection is gone before
            pipe.client_kill_filter(_type="pubsub")
            pipe.execute()
        gateway.finish(gateway.jobs.page("queued").jobs[0].id)
        assert held.result().json()["status"] == "succeeded"
        assert time.monotonic() - began < 5


# Idempotency ----------------------------------------------------------------------------------------------------------


def test_the_same_key_and_payload_lead_to_the_same_job(gateway: Gateway) -> None:
    key = {"Idempotency-Key": "k-1"}
    first, again = gateway.post(headers=key), gateway.post(headers=key)
    assert again.status_code == 202
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert len(gateway.jobs.page().jobs) == 1
    problem(gateway.post(6, headers=key), 422, "idempotency-key-reused")
    problem(gateway.post(options={"steps": "3"}, headers=key), 422, "idempotency-key-reused")
    assert gateway.post(headers={"Idempotency-Key": "k-2"}).json()["id"] != first.json()["id"]


def test_a_key_in_flight_is_a_conflict(gateway: Gateway) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: gateway.post(headers={"Idempotency-Key": "k"}), range(16)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert len(gateway.jobs.page().jobs) == 1

    assert gateway.jobs.reserve(Idempotency("held", "payload of another request")) is None
    problem(gateway.post(headers={"Idempotency-Key": "held"}), 422, "idempotency-key-reused")


def test_a_key_held_by_the_same_payload_is_in_flight(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = start(inline_bytes=0)
    put, arrived, go_on = gateway.store.put, threading.Event(), threading.Event()

    def slow_put(*args: Any, **options: Any) -> object:
        arrived.set()
        go_on.wait(5)
        return put(*args, **options)

    monkeypatch.setattr(gateway.store, "put", slow_put)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(gateway.post, headers={"Idempotency-Key": "k"})
        arrived.wait(5)
        problem(
            httpx.post(gateway.url + "/generate", **samples_form(), headers={"Idempotency-Key": "k"}),
            409,
            "idempotency-key-in-flight",
        )
        go_on.set()
        assert first.result().status_code == 202


def test_a_failed_request_frees_its_key(gateway: Gateway, redis: Redis, start: Start) -> None:
    key = {"Idempotency-Key": "k"}
    full = start(max_queued=1)
    assert full.post().status_code == 202
    problem(full.post(headers=key), 503, "queue-full")
    assert gateway.post(headers=key).status_code == 202


def test_keys_have_bounds(gateway: Gateway) -> None:
    problem(gateway.post(headers={"Idempotency-Key": "k" * 256}), 422, "invalid-request")


# What is refused ------------------------------------------------------------------------------------------------------


def test_two_sources_or_none(gateway: Gateway) -> None:
    form = samples_form()
    form["files"].append(("dataset", ("d.zip", ZIP)))
    problem(gateway.client.post("/generate", **form), 422, "invalid-request")
    two = [("dataset", ("d.zip", ZIP)), ("dataset", ("e.zip", ZIP))]
    problem(gateway.client.post("/generate", files=two), 422, "invalid-request")
    none = [("steps", (None, "3"))]
    problem(gateway.client.post("/generate", files=none), 422, "invalid-request")
    problem(gateway.client.post("/generate", json={}), 422, "invalid-request")
    both = samples_json() | {"dataset": "x"}
    problem(gateway.client.post("/generate", json=both), 422, "invalid-request")


@pytest.mark.parametrize(
    ("labels", "slug", "status"),
    [
        (["a", "b", "a"], "invalid-samples", 422),
        (["a"] * 4, "invalid-samples", 422),
        (["a", " a", "a ", "a"], "invalid-samples", 422),
        (["a", "b", " ", "a"], "invalid-samples", 422),
        (["a", "b", "x" * 201, "a"], "invalid-samples", 422),
        ([], "invalid-samples", 422),
    ],
)
def test_labels_that_do_not_fit(gateway: Gateway, labels: list[str], slug: str, status: int) -> None:
    form = samples_form(4)
    form["data"]["labels"] = labels
    problem(gateway.client.post("/generate", **form), status, slug)


def test_labels_without_samples(gateway: Gateway) -> None:
    files = [("labels", (None, "a")), ("labels", (None, "b"))]
    problem(gateway.client.post("/generate", files=files), 422, "invalid-samples")


def test_fields_of_the_wrong_kind(gateway: Gateway) -> None:
    texts = [("samples", (None, "not a file")), ("labels", (None, "a"))]
    assert problem(gateway.client.post("/generate", files=texts), 422, "invalid-request")["errors"] == [
        {"pointer": "/samples", "detail": "`samples` must be sent as a file, with a filename."}
    ]
    files = [("samples", ("a.png", PNG)), ("labels", ("b.txt", b"a"))]
    problem(gateway.client.post("/generate", files=files), 422, "invalid-request")
    option = [("dataset", ("d.zip", ZIP)), ("steps", ("s.txt", b"3"))]
    problem(gateway.client.post("/generate", files=option), 422, "invalid-request")


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"candidates": "0"}, "/candidates"),
        ({"candidates": "many"}, "/candidates"),
        ({"holdout": "1"}, "/holdout"),
        ({"guidance": "nan"}, "/guidance"),
        ({"method": "magic"}, "/method"),
        ({"unheard_of": "1"}, "/unheard_of"),
        ({"seed": "-1"}, "/seed"),
        ({"candidates": "2", "keep": "3"}, "/"),
        ({"steps": ["3", "4"]}, "/steps"),
    ],
)
def test_options_out_of_bounds(gateway: Gateway, options: dict[str, str], pointer: str) -> None:
    body = problem(gateway.post(options=options), 422, "invalid-request")
    assert [error["pointer"] for error in body["errors"]] == [pointer]


def test_json_errors_point_at_the_value(gateway: Gateway) -> None:
    body = samples_json()
    body["samples"][2]["image"] = "not base64!"
    answer = problem(gateway.client.post("/generate", json=body), 422, "invalid-request")
    assert answer["errors"][0]["pointer"] == "/samples/2/image"
    assert "not base64!" not in json.dumps(answer)
    body["samples"] = [{"label": 3, "image": None}] * 200
    assert len(problem(gateway.client.post("/generate", json=body), 422, "invalid-request")["errors"]) == 100


def test_unknown_targets_and_class_counts(gateway: Gateway) -> None:
    body = problem(gateway.post(options={"target": "vgg"}), 422, "unknown-target")
    assert "cnn-s, mlp" in body["detail"]
    assert gateway.post(10, 10, options={"target": "mlp"}).status_code == 202
    assert "2 to 4" in problem(gateway.post(10, 10), 422, "invalid-samples")["detail"]


def test_bytes_that_are_no_image_or_archive(gateway: Gateway) -> None:
    form = samples_form()
    form["files"][2] = ("samples", ("x.png", b"GIF89a", "image/png"))
    body = problem(gateway.client.post("/generate", **form), 415, "unsupported-media-type")
    assert body["errors"][0]["pointer"] == "/samples/2"
    for content in (b"\x80\x04pickle", b"", b"<svg>"):
        problem(gateway.client.post("/generate", files={"dataset": ("d.zip", content)}), 415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_bodies_of_other_types(gateway: Gateway, content_type: str) -> None:
    response = gateway.client.post("/generate", content=b"x", headers={"Content-Type": content_type})
    problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"\xff\xfe"),
        ("application/json", b""),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"not a form"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nno name\r\n--b--\r\n"),
    ],
)
def test_bodies_that_cannot_be_read(gateway: Gateway, content_type: str, body: bytes) -> None:
    response = gateway.client.post("/generate", content=body, headers={"Content-Type": content_type})
    problem(response, 400, "malformed-request")


def test_counts_have_limits(start: Start) -> None:
    gateway = start(max_samples=8, max_classes=3)
    assert gateway.post(8, 3).status_code == 202
    problem(gateway.post(9, 3), 413, "too-large")
    problem(gateway.post(40, 3), 413, "too-large")
    problem(gateway.client.post("/generate", json=samples_json(9, 3)), 413, "too-large")
    problem(gateway.post(8, 4), 413, "too-large")


def test_a_body_over_the_limit_is_refused_before_and_while_it_is_read(start: Start) -> None:
    gateway = start(max_body_bytes=100_000)
    big = ZIP + bytes(200_000)
    problem(gateway.client.post("/generate", files={"dataset": ("d.zip", big)}), 413, "too-large")

    def pieces(body: bytes) -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="dataset"; filename="d.zip"\r\n\r\n'
        yield from (body[start : start + 10_000] for start in range(0, len(body), 10_000))
        yield b"\r\n--b--\r\n"

    chunked = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(gateway.client.post("/generate", content=pieces(big), headers=chunked), 413, "too-large")
    text = iter([b'{"samples": ["', *itertools.repeat(b"x" * 1_000, 200)])
    problem(
        gateway.client.post("/generate", content=text, headers={"Content-Type": "application/json"}), 413, "too-large"
    )
    assert gateway.client.post("/generate", content=pieces(ZIP), headers=chunked).status_code == 202
    assert len(gateway.jobs.page().jobs) == 1


def test_uploads_at_once_have_a_limit_together(start: Start) -> None:
    gateway = start(max_inflight_bytes=60_000)
    arrived, go_on = threading.Event(), threading.Event()
    headers = {"Content-Type": "application/json"}

    def slowly() -> Any:
        yield b"[" + bytes(40_000)
        arrived.set()
        go_on.wait(5)
        yield b"]"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, gateway.url + "/generate", content=slowly(), headers=headers)
        arrived.wait(5)
        time.sleep(0.1)
        second = gateway.client.post("/generate", content=bytes(40_000), headers=headers)
        assert "at once" in problem(second, 503, "unavailable")["detail"]
        go_on.set()
        problem(first.result(), 400, "malformed-request")
    problem(gateway.client.post("/generate", content=bytes(40_000), headers=headers), 400, "malformed-request")


def test_base64_must_be_clean(gateway: Gateway) -> None:
    body = samples_json()
    body["samples"][0]["image"] = base64.b64encode(PNG).decode() + "\n!"
    problem(gateway.client.post("/generate", json=body), 422, "invalid-request")


def test_long_jobs_wait_in_a_queue_of_their_own(start: Start, redis: Redis) -> None:
    gateway = start(large_bytes=1_000, large_steps=100)
    for options in ({}, {"method": "diffusion", "candidates": "4", "steps": "50"}, {"refine_steps": "101"}):
        assert gateway.post(options=options).status_code == 202
    assert gateway.post(count=20).status_code == 202
    assert (redis.llen("generate"), redis.llen("large")) == (1, 3)


# Datasets elsewhere ---------------------------------------------------------------------------------------------------


def test_a_dataset_in_an_allowed_bucket_becomes_a_job(start: Start) -> None:
    gateway = start(dataset_buckets=("pets",))
    uri = "s3://pets/cats and dogs/train.zip"
    for body in ({"json": {"dataset_uri": uri}}, {"files": [("dataset_uri", (None, uri))]}):
        answer = gateway.client.post("/generate", **body)
        assert answer.status_code == 202, answer.text
        inputs = gateway.jobs.get(answer.json()["id"]).inputs
        assert inputs
        assert (inputs.kind, inputs.key) == ("uri", uri)
    file = [("dataset_uri", ("u.txt", uri.encode()))]
    problem(gateway.client.post("/generate", files=file), 422, "invalid-request")
    assert gateway.store.list("inputs/") == []
    key = {"Idempotency-Key": "k"}
    assert gateway.client.post("/generate", json={"dataset_uri": uri}, headers=key).status_code == 202
    other = gateway.client.post("/generate", json={"dataset_uri": uri + "2"}, headers=key)
    problem(other, 422, "idempotency-key-reused")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://other/x.zip",
        "s3://pets",
        "s3://pets/",
        "s3://pets/../secrets",
        "s3://pets/a//b",
        "s3://pets/.hidden",
        "s3://pets@other/x",
        "https://pets/x.zip",
        "file:///etc/passwd",
        "s3://pets/x\n",
        "",
    ],
)
def test_datasets_elsewhere_are_refused(start: Start, uri: str) -> None:
    gateway = start(dataset_buckets=("pets",))
    problem(gateway.client.post("/generate", json={"dataset_uri": uri}), 422, "invalid-request")
    closed = start()
    problem(closed.client.post("/generate", json={"dataset_uri": "s3://pets/x.zip"}), 422, "invalid-request")
    both = samples_json() | {"dataset_uri": "s3://pets/x.zip"}
    problem(gateway.client.post("/generate", json=both), 422, "invalid-request")
    assert gateway.jobs.page().jobs == []


def test_the_stores_own_objects_are_no_datasets(start: Start, s3_bucket: dict[str, Any]) -> None:
    bucket = s3_bucket["store_url"].split("/")[2]
    gateway = start(**s3_bucket, dataset_buckets=(bucket,))
    body = {"dataset_uri": f"s3://{bucket}/prefix/inputs/job-1/dataset"}
    problem(gateway.client.post("/generate", json=body), 422, "invalid-request")
