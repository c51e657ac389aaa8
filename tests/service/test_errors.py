import time
from typing import Any

import pytest

from model_store.store import StoreUnavailable
from tests.service.conftest import Start
from tests.service.gateway import Gateway
from tests.service.problems import problem
from tests.valkey import free_port


def test_unknown_paths_and_methods(gateway: Gateway) -> None:
    assert "/nowhere" in problem(gateway.client.get("/nowhere"), 404, "not-found")["detail"]
    problem(gateway.client.get("/jobs/"), 404, "not-found")
    response = gateway.client.delete("/jobs")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET"
    problem(gateway.client.get("/generate"), 405, "method-not-allowed")


def test_request_ids(gateway: Gateway) -> None:
    given = gateway.client.get("/livez", headers={"X-Request-ID": "trace-1.a_b"})
    assert given.headers["x-request-id"] == "trace-1.a_b"
    for bad in ("", "x" * 65, "a b", "<script>"):
        made = gateway.client.get("/nowhere", headers={"X-Request-ID": bad})
        assert len(made.headers["x-request-id"]) == 32
        problem(made, 404, "not-found")


def test_what_nobody_foresaw(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(gateway.jobs, "get", fail)
    response = gateway.client.get("/jobs/x")
    problem(response, 500, "internal-error")
    assert "secret" not in response.text
    assert gateway.client.get("/livez").status_code == 200


def test_a_dead_broker_is_said_soon_and_nothing_is_kept(start: Start) -> None:
    gateway = start(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    began = time.monotonic()
    problem(gateway.post(headers={"Idempotency-Key": "k"}), 503, "unavailable")
    problem(gateway.post(), 503, "unavailable")
    for path in ("/jobs", "/jobs/x", "/jobs/x/events"):
        problem(gateway.client.get(path), 503, "unavailable")
    problem(gateway.client.post("/jobs/x/cancel"), 503, "unavailable")
    assert time.monotonic() - began < 10


def test_a_dead_store_is_said_and_leaves_no_job(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = start(inline_bytes=0)

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        for method in ("put", "get", "list", "check"):
            patch.setattr(gateway.store, method, away)
        key = {"Idempotency-Key": "k"}
        problem(gateway.post(headers=key), 503, "unavailable")
        problem(gateway.client.get("/models"), 503, "unavailable")
        problem(gateway.client.get("/models/m-1"), 503, "unavailable")
        assert "store" in problem(gateway.client.get("/readyz"), 503, "unavailable")["detail"]
        assert gateway.jobs.page().jobs == []
    assert gateway.post(headers=key).status_code == 202


def test_the_console(gateway: Gateway) -> None:
    page = gateway.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name, kind in (("console.js", "text/javascript"), ("console.css", "text/css")):
        assert f"/{name}" in page.text
        assert gateway.client.get(f"/{name}").headers["content-type"].startswith(kind)
