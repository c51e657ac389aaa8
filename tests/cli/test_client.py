"""The client against a transport that answers on command."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.client import JobEnded, LoomweightClient, Refused, Unreachable, WrongBytes

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, **options: Any) -> LoomweightClient:
    return LoomweightClient("http://test", transport=httpx.MockTransport(handler), **options)


def job(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "j1", "status": status, **fields}


def test_a_dataset_goes_out_with_its_options_and_a_key() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json=job("queued"))

    with client(handler, token="t0ken") as loomweight:
        assert loomweight.generate_dataset("pets.zip", b"PK", {"seed": 7, "target": None})["id"] == "j1"

    body = seen[0].content.decode()
    assert 'name="dataset"; filename="pets.zip"' in body
    assert 'name="seed"\r\n\r\n7' in body
    assert "target" not in body
    assert seen[0].headers["authorization"] == "Bearer t0ken"
    assert len(seen[0].headers["idempotency-key"]) == 32


def test_samples_go_out_with_their_labels_in_order() -> None:
    bodies: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content.decode())
        return httpx.Response(202, json=job("queued"))

    with client(handler) as loomweight:
        loomweight.generate_samples([b"one", b"two"], ["cat", "dog"], {})

    assert bodies[0].index("cat") < bodies[0].index("dog")
    assert bodies[0].index("one") < bodies[0].index("two")


def test_a_lost_answer_is_asked_for_again_with_the_same_key() -> None:
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("cut off")
        return httpx.Response(202, json=job("queued"))

    with client(handler) as loomweight:
        loomweight.generate_dataset("x.zip", b"", {})

    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_busy_is_waited_for_and_in_the_end_reported() -> None:
    answers = iter([503, 429])

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(answers, 200), json=job("running"), headers={"retry-after": "0"})

    with client(handler) as loomweight:
        assert loomweight.job("j1")["status"] == "running"

    full = client(lambda request: httpx.Response(503, json={"detail": "full"}), patience=0)
    with full, pytest.raises(Refused, match=r"full \(HTTP 503\)"):
        full.job("j1")


def test_no_server_is_unreachable() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with (
        client(handler, patience=0) as loomweight,
        pytest.raises(Unreachable, match="no answer from http://test: refused"),
    ):
        loomweight.targets()


def test_a_refusal_carries_the_problem_and_its_items() -> None:
    problem = {"status": 422, "detail": "Bad options.", "errors": [{"pointer": "/keep", "detail": "too many"}]}

    strict = client(lambda request: httpx.Response(422, json=problem))
    with strict, pytest.raises(Refused, match=r"Bad options\. \(HTTP 422\)\n  /keep: too many") as caught:
        strict.card("m")
    assert caught.value.problem == problem
    with client(lambda request: httpx.Response(500, text="<html>")) as loomweight, pytest.raises(Refused, match="500"):
        loomweight.card("m")


def test_wait_follows_a_job_to_its_end() -> None:
    states = iter([job("queued"), job("running"), job("succeeded", result={})])
    seen: list[str] = []

    with client(lambda request: httpx.Response(200, json=next(states))) as loomweight:
        done = loomweight.wait(job("queued"), on_change=lambda state: seen.append(state["status"]))

    assert done["status"] == "succeeded"
    assert seen == ["queued", "queued", "running", "succeeded"]


def test_wait_raises_for_a_job_that_failed_or_takes_too_long() -> None:
    failed = job("failed", error={"detail": "One class only."})

    with client(lambda request: httpx.Response(200, json=job("running"))) as loomweight:
        with pytest.raises(JobEnded, match=r"the job failed: One class only\."):
            loomweight.wait(failed)
        with pytest.raises(Unreachable, match="still running"):
            loomweight.wait(job("running"), timeout=0)


@pytest.mark.parametrize("part", ["weights", "onnx"])
def test_a_download_is_verified(tmp_path: Path, part: Any) -> None:
    body = b"the very bytes"
    digest = hashlib.sha256(body).hexdigest()
    card = {"sha256": digest, "onnx": {"sha256": digest}}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(part):
            return httpx.Response(307, headers={"location": "http://elsewhere/presigned"})
        return httpx.Response(200, content=body if request.url.host == "elsewhere" else json.dumps(card).encode())

    with client(handler) as loomweight:
        assert loomweight.download("m1", tmp_path / "model", part=part) == digest

    assert (tmp_path / "model").read_bytes() == body


def test_a_bad_download_leaves_nothing(tmp_path: Path) -> None:
    def wrong(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"sha256": "0" * 64})

    def gone(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("weights"):
            return httpx.Response(404, json={"detail": "There is no such model."})
        return wrong(request)

    def cut(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("weights"):
            raise httpx.ReadError("cut off")
        return wrong(request)

    for handler, error in ((wrong, WrongBytes), (gone, Refused), (cut, Unreachable)):
        with client(handler) as loomweight, pytest.raises(error):
            loomweight.download("m1", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
