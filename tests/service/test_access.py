"""Keys: who gets in, with what, and for how long."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from model_store.store import StoreUnavailable
from service.access.gate import is_local_name, neighbourhood
from service.access.keys import Allowance, Keys, Secret, digest, parse
from service.access.limits import RateLimits
from tests.service.conftest import Start
from tests.service.gateway import samples_form
from tests.service.keyed import BOOTSTRAP, METRICS, Keyed, keyed
from tests.service.problems import problem
from tests.valkey import free_port

__all__ = ["keyed"]


# Getting in -----------------------------------------------------------------------------------------------------------


def test_without_a_key_only_what_is_open_answers(keyed: Keyed) -> None:
    nobody = keyed.client(None)
    for path in ("/livez", "/", "/console.js", "/console.css", "/docs", "/openapi.json"):
        assert nobody.get(path).status_code == 200, path
    assert nobody.get("/readyz").status_code == 503
    for path in ("/jobs", "/models", "/targets", "/metrics", "/nowhere", "/livez/", "/LIVEZ"):
        body = nobody.get(path)
        problem(body, 401, "unauthorized")
        assert body.headers["www-authenticate"] == 'Bearer realm="loomweight"'
    problem(nobody.post("/generate", **samples_form()), 401, "unauthorized")


@pytest.mark.parametrize(
    "value",
    [
        "Bearer wrong",
        "Bearer lw_0123456789ab_" + "x" * 43,
        "bearer  lw_../../etc_" + "x" * 43,
        "Bearer " + "x" * 5_000,
        "Bearer \xff\xfe",
    ],
)
def test_keys_that_are_none(keyed: Keyed, value: str) -> None:
    headers = [(b"Authorization", value.encode("latin-1"))]
    answer = httpx.get(keyed.gateway.url + "/jobs", headers=headers)
    problem(answer, 401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("value", ["Basic bG9vbTp3ZWlnaHQ=", "Bearer", "lw_0123456789ab_x", ""])
def test_headers_without_a_token(keyed: Keyed, value: str) -> None:
    problem(httpx.get(keyed.gateway.url + "/jobs", headers={"Authorization": value}), 401, "unauthorized")


def test_the_secret_must_be_the_keys_own(keyed: Keyed) -> None:
    keyed.made()
    keyed.made()
    [one, other] = [issued.token for issued in keyed.issued]
    mixed = one[:16] + other[16:]
    assert parse(mixed)
    problem(keyed.client(mixed).get("/jobs"), 401, "unauthorized")
    assert keyed.client(one).get("/jobs").status_code == 200


def test_no_body_is_read_for_a_request_that_may_not_be_made(keyed: Keyed) -> None:
    sent = 0

    def pieces() -> Any:
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield bytes(100_000)

    began = time.monotonic()
    answer = httpx.post(
        keyed.gateway.url + "/generate", content=pieces(), headers={"Content-Type": "application/json"}, timeout=10
    )
    problem(answer, 401, "unauthorized")
    assert keyed.gateway.store.list("inputs/") == []
    assert time.monotonic() - began < 5


def test_scopes(keyed: Keyed) -> None:
    reader, maker, scraper, admin = (keyed.made(scope) for scope in ("read", "generate", "metrics", "admin"))
    assert reader.get("/targets").status_code == 200
    refused = reader.post("/generate", **samples_form())
    assert "'generate'" in problem(refused, 403, "forbidden")["detail"]
    assert refused.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="generate"'
    assert maker.post("/generate", **samples_form()).status_code == 202
    problem(maker.get("/jobs"), 403, "forbidden")
    problem(reader.get("/metrics"), 403, "forbidden")
    assert 'route="/metrics",status="403"' in scraper.get("/metrics").text
    problem(scraper.get("/jobs"), 403, "forbidden")
    for path in ("/jobs", "/metrics", "/models"):
        assert admin.get(path).status_code == 200
    problem(admin.get("/nowhere"), 404, "not-found")
    problem(reader.get("/nowhere"), 403, "forbidden")


def test_keys_of_the_environment(keyed: Keyed) -> None:
    assert keyed.client(BOOTSTRAP).get("/jobs").status_code == 200
    assert keyed.client(METRICS).get("/metrics").status_code == 200
    problem(keyed.client(METRICS).get("/jobs"), 403, "forbidden")


def test_metrics_can_be_opened(start: Start) -> None:
    gateway = start(require_keys=True, open_metrics=True)
    assert gateway.client.get("/metrics").status_code == 200
    problem(gateway.client.get("/jobs"), 401, "unauthorized")


# Keys in time ---------------------------------------------------------------------------------------------------------


def test_revoked_rotated_and_over(keyed: Keyed) -> None:
    client = keyed.made()
    key, token = keyed.issued[0]
    assert client.get("/jobs").status_code == 200
    again = keyed.keys.rotate(key.id, timedelta(hours=1))
    assert again.token != token
    assert keyed.client(again.token).get("/jobs").status_code == 200
    assert client.get("/jobs").status_code == 200
    last = keyed.keys.rotate(key.id, timedelta(0))
    for old in (token, again.token):
        problem(keyed.client(old).get("/jobs"), 401, "unauthorized")
    assert keyed.client(last.token).get("/jobs").status_code == 200
    keyed.keys.revoke(key.id)
    problem(keyed.client(last.token).get("/jobs"), 401, "unauthorized")
    brief = keyed.made(lifetime=timedelta(milliseconds=1))
    time.sleep(0.01)
    problem(brief.get("/jobs"), 401, "unauthorized")


def test_a_grace_never_grows(keyed: Keyed) -> None:
    key = keyed.keys.create("k").key
    first = keyed.keys.rotate(key.id, timedelta(minutes=1)).key.secrets[1].expires_at
    again = keyed.keys.rotate(key.id, timedelta(days=1)).key.secrets
    assert first
    assert [secret.expires_at for secret in again][2] == first
    assert len(again) == 3


def test_what_is_stored_is_no_secret(keyed: Keyed) -> None:
    issued = keyed.keys.create("k")
    secret = issued.token.split("_", 2)[2]
    for entry in keyed.gateway.store.list(""):
        assert secret.encode() not in keyed.gateway.store.get(entry.key)
    assert Secret(sha256=digest(secret), created_at=datetime.now(UTC)).matches(secret, datetime.now(UTC))


def test_keys_outlive_redis_and_are_remembered_while_the_store_is_away(
    start: Start, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(require_keys=True, key_cache_s=0)
    token = Keys(gateway.store).create("k").token
    headers = {"Authorization": f"Bearer {token}"}
    assert gateway.client.get("/jobs", headers=headers).status_code == 200
    redis.flushall()
    assert gateway.client.get("/jobs", headers=headers).status_code == 200

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(gateway.store, "get", away)
    assert gateway.client.get("/jobs", headers=headers).status_code == 200
    stranger = {"Authorization": "Bearer lw_0123456789ab_" + "x" * 43}
    problem(gateway.client.get("/jobs", headers=stranger), 503, "unavailable")


def test_a_record_that_cannot_be_read_opens_nothing(keyed: Keyed) -> None:
    client = keyed.made()
    keyed.gateway.store.put(f"access/{keyed.issued[0].key.id}.json", b"{}", content_type="application/json")
    problem(client.get("/jobs"), 401, "unauthorized")


def test_the_last_use_is_noted(keyed: Keyed, redis: Redis) -> None:
    keyed.made().get("/jobs")
    used = RateLimits(redis, "loomweight:").last_used()
    assert abs((used[keyed.issued[0].key.id] - datetime.now(UTC)).total_seconds()) < 5


# Limits ---------------------------------------------------------------------------------------------------------------


def test_requests_a_minute(keyed: Keyed) -> None:
    client = keyed.made(allowance=Allowance(per_minute=3))
    answers = [client.get("/targets") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers[:3]] == [
        '"requests";r=2',
        '"requests";r=1',
        '"requests";r=0',
    ]
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=60'
    problem(answers[3], 429, "too-many-requests")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert keyed.made().get("/targets").status_code == 200


def test_the_allowance_comes_back_steadily(redis: Redis) -> None:
    limits = RateLimits(redis, "test:")
    assert [limits.request("k", 1200).granted for _ in range(1201)].count(False) <= 1
    while limits.request("k", 1200).granted:
        pass
    time.sleep(0.12)
    assert [limits.request("k", 1200).granted for _ in range(2)] == [True, True]


def test_jobs_a_day(keyed: Keyed) -> None:
    client = keyed.made(allowance=Allowance(jobs_per_day=2))
    key = {"Idempotency-Key": "k"}
    assert client.post("/generate", **samples_form(), headers=key).status_code == 202
    assert client.post("/generate", **samples_form(), headers=key).headers["idempotent-replayed"] == "true"
    problem(client.post("/generate", **samples_form(10, 10)), 422, "invalid-samples")
    assert client.post("/generate", **samples_form()).status_code == 202
    refused = client.post("/generate", **samples_form())
    problem(refused, 429, "too-many-requests")
    assert 0 < int(refused.headers["retry-after"]) <= 86_400


def test_a_job_that_could_not_be_created_does_not_count(start: Start, redis: Redis) -> None:
    gateway = start(require_keys=True, max_queued=1)
    token = Keys(gateway.store).create("k", allowance=Allowance(jobs_per_day=2)).token
    headers = {"Authorization": f"Bearer {token}"}
    assert gateway.post(headers=headers).status_code == 202
    for _ in range(3):
        problem(gateway.post(headers=headers), 503, "queue-full")
    assert [redis.get(name) for name in redis.scan_iter("loomweight:quota:*")] == ["1"]


def test_jobs_at_once(keyed: Keyed) -> None:
    client = keyed.made(allowance=Allowance(active_jobs=2))
    ids = [client.post("/generate", **samples_form()).json()["id"] for _ in range(2)]
    problem(client.post("/generate", **samples_form()), 429, "too-many-requests")
    assert keyed.made().post("/generate", **samples_form()).status_code == 202
    assert client.post(f"/jobs/{ids[0]}/cancel").status_code == 200
    assert client.post("/generate", **samples_form()).status_code == 202
    problem(client.post("/generate", **samples_form()), 429, "too-many-requests")
    keyed.gateway.finish(ids[1])
    assert client.post("/generate", **samples_form()).status_code == 202


def test_who_guesses_is_told_to_wait(start: Start) -> None:
    gateway = start(require_keys=True, wrong_keys_per_minute=3)
    known, unseen = ({"Authorization": f"Bearer {Keys(gateway.store).create('k').token}"} for _ in range(2))
    assert gateway.client.get("/jobs", headers=known).status_code == 200
    wrong = {"Authorization": "Bearer lw_0123456789ab_" + "x" * 43}
    statuses = [gateway.client.get("/jobs", headers=wrong).status_code for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert gateway.client.get("/jobs", headers=unseen).status_code == 429
    assert gateway.client.get("/jobs", headers=known).status_code == 200
    assert gateway.client.get("/livez").status_code == 200


def test_limits_need_no_redis(start: Start) -> None:
    gateway = start(require_keys=True, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    token = Keys(gateway.store).create("k").token
    assert gateway.client.get("/targets", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("socket", "unknown"),
    ],
)
def test_one_client_has_one_address(address: str, expected: str) -> None:
    assert neighbourhood(address) == expected


# The console ----------------------------------------------------------------------------------------------------------


def test_the_console_signs_in_with_a_cookie_that_works_from_it_alone(keyed: Keyed) -> None:
    keyed.made()
    token, origin = keyed.issued[0].token, {"Origin": keyed.gateway.url}
    with httpx.Client(base_url=keyed.gateway.url) as browser:
        problem(browser.put("/session", headers=origin), 401, "unauthorized")
        problem(browser.put("/session", headers={**origin, "Authorization": "Bearer x"}), 401, "unauthorized")
        elsewhere = {"Origin": "https://evil.example", "Authorization": f"Bearer {token}"}
        problem(browser.put("/session", headers=elsewhere), 403, "forbidden")
        signed = browser.put("/session", headers={**origin, "Authorization": f"Bearer {token}"})
        assert signed.status_code == 204
        assert {"HttpOnly", "SameSite=strict"} <= set(signed.headers["set-cookie"].split("; "))
        assert browser.get("/jobs").status_code == 200
        assert browser.post("/generate", **samples_form(), headers=origin).status_code == 202
        for bad in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            problem(browser.post("/generate", **samples_form(), headers=bad), 403, "forbidden")
        assert browser.delete("/session").status_code == 204
        problem(browser.get("/jobs"), 401, "unauthorized")


# Without keys ---------------------------------------------------------------------------------------------------------


def test_without_keys_foreign_pages_get_nothing(start: Start) -> None:
    gateway = start()
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Host": "[::1"},
    ):
        problem(gateway.post(headers=headers), 403, "forbidden")
    problem(gateway.client.get("/jobs", headers={"Host": "evil.example"}), 403, "forbidden")
    assert gateway.post(headers={"Origin": gateway.url}).status_code == 202
    opened = start(open_to_network_without_keys=True)
    assert opened.client.get("/jobs", headers={"Host": "evil.example"}).status_code == 200
    problem(opened.post(headers={"Origin": "https://evil.example"}), 403, "forbidden")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "a.localhost", "127.9.9.9"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_local_name(host)


def test_bootstrap_keys_are_long(tmp_path: Path, start: Start) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        start(bootstrap_key="short")
