"""Webhooks: signed, persistent, and never sent where a client must not reach."""

import base64
import hashlib
import hmac
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from service.access.keys import Keys
from service.webhooks.outbox import Delivery
from service.webhooks.sender import MOST_BYTES, Sender, payload
from service.webhooks.signing import secret_of, sign
from tests.jobs.samples import ERROR, RESULT
from tests.service.conftest import Start
from tests.service.gateway import Gateway, running, samples_json
from tests.service.problems import problem
from tests.valkey import free_port
from workers.messages import GenerateRequest, JobRecord

MASTER = "a-master-secret-for-tests-0123456789"
LOOPBACK = ("127.0.0.0/8",)
QUICK: dict[str, Any] = {
    "callback_secret": MASTER,
    "callback_networks": LOOPBACK,
    "callback_interval_s": 0.02,
    "callback_retries_s": (0.05, 0.05, 0.05),
}


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers with `statuses` in turn, then with the last for ever."""

    url: str
    statuses: list[int] = field(default_factory=lambda: [204])
    received: list[Received] = field(default_factory=list)
    location: str = ""

    def wait(self, count: int, seconds: float = 10) -> list[Received]:
        end = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < end, f"{len(self.received)} of {count}"
            time.sleep(0.01)
        return self.received


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = receiver.statuses[min(len(receiver.received), len(receiver.statuses) - 1)]
            receiver.received.append(Received({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(status)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook?a=b")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def ended(gateway: Gateway, url: str) -> str:
    """A job with this callback, done."""
    job: str = gateway.post(options={"callback_url": url}).json()["id"]
    gateway.finish(job)
    return job


def is_signed(message: Received, secret: str) -> bool:
    """Verify as a receiver does, by the letter of the specification."""
    content = f"{message.headers['webhook-id']}.{message.headers['webhook-timestamp']}.".encode() + message.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return expected in message.headers["webhook-signature"].split(" ")


def outcomes(gateway: Gateway) -> dict[str, float]:
    found = {}
    for line in gateway.client.get("/metrics").text.splitlines():
        if line.startswith("loomweight_webhooks_total{"):
            name, value = line.split('outcome="')[1].split('"} ')
            found[name] = float(value)
    return found


def settled(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Telling --------------------------------------------------------------------------------------------------------------


def test_the_end_of_a_job_is_told_signed(start: Start, receiver: Receiver, redis: Redis) -> None:
    gateway = start(**QUICK)
    job = ended(gateway, receiver.url)
    [message] = receiver.wait(1)
    assert is_signed(message, secret_of(MASTER, "local", 1))
    assert not is_signed(message, secret_of(MASTER, "local", 2))
    assert message.headers["webhook-id"] == f"msg_{job}"
    assert abs(int(message.headers["webhook-timestamp"]) - time.time()) < 5
    assert message.headers["content-type"] == "application/json"
    assert message.headers["host"] == receiver.url.split("/")[2]
    event = json.loads(message.body)
    assert event["type"] == "job.succeeded"
    assert event["data"] == gateway.client.get(f"/jobs/{job}").json()
    settled(lambda: not redis.exists(f"loomweight:callback:{job}"))
    assert redis.zcard("loomweight:callbacks") == 0
    time.sleep(0.2)
    assert len(receiver.received) == 1


@pytest.mark.parametrize("how", ["failed", "canceled", "expired"])
def test_every_end_is_told(start: Start, receiver: Receiver, how: str) -> None:
    gateway = start(**QUICK)
    job = gateway.post(options={"callback_url": receiver.url}).json()["id"]
    if how == "failed":
        token = gateway.jobs.claim(job, "w", 30)
        assert token
        gateway.jobs.fail(job, token, ERROR)
    elif how == "canceled":
        gateway.client.post(f"/jobs/{job}/cancel")
    else:
        gateway.jobs.expire(job, ERROR)
    assert json.loads(receiver.wait(1)[0].body)["type"] == f"job.{how}"


def test_nothing_is_told_before_the_end_or_without_being_asked(start: Start, receiver: Receiver, redis: Redis) -> None:
    gateway = start(**QUICK)
    gateway.post(options={"callback_url": receiver.url})
    gateway.finish(gateway.post().json()["id"])
    time.sleep(0.2)
    assert receiver.received == []
    assert redis.zcard("loomweight:callbacks") == 0


def test_a_key_signs_with_its_own_secrets_old_and_new(start: Start, receiver: Receiver) -> None:
    gateway = start(**QUICK, require_keys=True, key_cache_s=0)
    keys = Keys(gateway.store)
    (key, token), other = keys.create("k"), keys.create("other").key
    keys.rotate_webhook(key.id)
    keys.rotate_webhook(key.id)
    answer = gateway.post(options={"callback_url": receiver.url}, headers={"Authorization": f"Bearer {token}"})
    gateway.finish(answer.json()["id"])
    [message] = receiver.wait(1)
    good = [is_signed(message, secret_of(MASTER, key.id, version)) for version in (1, 2, 3)]
    assert good == [False, True, True]
    assert not is_signed(message, secret_of(MASTER, other.id, 1))


def test_a_revoked_key_tells_nothing_more(start: Start, receiver: Receiver) -> None:
    gateway = start(**QUICK, require_keys=True, key_cache_s=0, open_metrics=True)
    key, token = Keys(gateway.store).create("k")
    answer = gateway.post(options={"callback_url": receiver.url}, headers={"Authorization": f"Bearer {token}"})
    Keys(gateway.store).revoke(key.id)
    gateway.finish(answer.json()["id"])
    settled(lambda: outcomes(gateway) == {"dropped": 1})
    assert receiver.received == []


def test_a_large_result_is_told_by_its_links() -> None:
    request, long = GenerateRequest(target="mlp"), tuple(f"{n:0200}" for n in range(200))
    record = JobRecord(
        id="job-1", kind="generate", queue="generate", status="succeeded", request=request, result=RESULT
    )
    assert json.loads(payload(record))["data"]["result"]["classes"] == ["cat", "dog"]
    body = payload(record.model_copy(update={"result": RESULT.model_copy(update={"classes": long})}))
    assert len(body) < MOST_BYTES
    assert set(json.loads(body)["data"]) == {"id", "status", "links"}


def test_the_signature_is_that_of_the_specification() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    signed = sign([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


# Failing --------------------------------------------------------------------------------------------------------------


def test_what_fails_is_tried_again_with_the_same_id(start: Start, receiver: Receiver) -> None:
    receiver.statuses = [500, 404, 200]
    gateway = start(**QUICK)
    ended(gateway, receiver.url)
    messages = receiver.wait(3)
    assert len({message.headers["webhook-id"] for message in messages}) == 1
    assert all(is_signed(message, secret_of(MASTER, "local", 1)) for message in messages)
    settled(lambda: outcomes(gateway) == {"failed": 2, "delivered": 1})


def test_in_the_end_it_is_given_up(start: Start, receiver: Receiver, redis: Redis) -> None:
    receiver.statuses = [503]
    gateway = start(**QUICK)
    ended(gateway, receiver.url)
    receiver.wait(4)
    settled(lambda: outcomes(gateway) == {"failed": 3, "given-up": 1})
    assert redis.keys("loomweight:callback*") == []


def test_a_restart_keeps_what_is_to_be_sent(start: Start, receiver: Receiver, redis: Redis) -> None:
    away = f"http://127.0.0.1:{free_port()}/"
    first = start(**QUICK | {"callback_retries_s": (0.5,) * 3})
    job = ended(first, away)
    settled(lambda: outcomes(first) == {"failed": 1})
    redis.hset(f"loomweight:callback:{job}", "url", receiver.url)
    start(**QUICK)
    receiver.wait(1)
    assert redis.ttl(f"loomweight:callback:{job}") != -1


@contextmanager
def sending(start: Start) -> Iterator[Gateway]:
    """A gateway that sends until the block ends, beside one that stays and sends nothing."""
    stays = start(**QUICK | {"callback_interval_s": 3_600})
    with running(stays.services.settings.model_copy(update={"callback_interval_s": 0.02})) as leaves:
        yield leaves


def test_a_gateway_that_stops_hands_on_what_it_was_sending(start: Start, redis: Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(10)
        with sending(start) as gateway:
            job = ended(gateway, f"http://127.0.0.1:{silent.getsockname()[1]}/")
            on_its_way, _ = silent.accept()
        on_its_way.close()
    assert 0 < (redis.zscore("loomweight:callbacks", job) or 0) <= time.time()
    assert redis.hget(f"loomweight:callback:{job}", "attempts") == "0"


def test_a_gateway_that_stopped_takes_nothing_more(start: Start, redis: Redis) -> None:
    with sending(start) as gateway:
        gateway.services.outbox.register("job-1", "http://127.0.0.1/", "local")
        redis.zadd("loomweight:callbacks", {"job-1": time.time() + 0.5})
        redis.client_pause(2_000)
        time.sleep(0.1)  # for it to be asking while Redis does not answer
    time.sleep(1)
    assert 0 < (redis.zscore("loomweight:callbacks", "job-1") or 0) <= time.time()


def test_the_sender_outlives_what_nobody_foresaw(
    start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(**QUICK)
    take, failed = gateway.services.outbox.take, threading.Event()

    def fail_once(most: int) -> list[Delivery]:
        if failed.is_set():
            return take(most)
        failed.set()
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(gateway.services.outbox, "take", fail_once)
    assert failed.wait(10)
    ended(gateway, receiver.url)
    receiver.wait(1)


def test_a_receiver_that_is_gone_is_left_alone(start: Start, receiver: Receiver) -> None:
    receiver.statuses = [410]
    gateway = start(**QUICK)
    waiting = gateway.post(options={"callback_url": receiver.url}).json()["id"]
    ended(gateway, receiver.url)
    receiver.wait(1)
    settled(lambda: outcomes(gateway) == {"gone": 1})
    body = problem(gateway.post(options={"callback_url": receiver.url}), 422, "invalid-request")
    assert "410" in body["detail"]
    gateway.finish(waiting)
    settled(lambda: outcomes(gateway) == {"gone": 1, "dropped": 1})
    assert len(receiver.received) == 1


def test_redirects_are_failures(start: Start, receiver: Receiver) -> None:
    with receiving() as secret:
        receiver.statuses, receiver.location = [302, 307, 308, 301], secret.url
        gateway = start(**QUICK)
        ended(gateway, receiver.url)
        settled(lambda: outcomes(gateway) == {"failed": 3, "given-up": 1})
        assert secret.received == []


def test_a_receiver_that_never_answers_holds_nobody_up(
    start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.webhooks.sender.TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        gateway = start(**QUICK)
        ended(gateway, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        ended(gateway, receiver.url)
        receiver.wait(1, 2)
        settled(lambda: outcomes(gateway).get("given-up") == 1)


# Where they may go ----------------------------------------------------------------------------------------------------


def test_a_request_with_a_bad_address_is_refused_at_once(start: Start) -> None:
    gateway = start(callback_secret=MASTER)
    for url in ("https://169.254.169.254/latest", "http://example.com/", "https://[::ffff:10.0.0.1]/", "x"):
        body = problem(gateway.post(options={"callback_url": url}), 422, "invalid-request")
        assert body["errors"][0]["pointer"] == "/callback_url"
        problem(gateway.client.post("/generate", json=samples_json(callback_url=url)), 422, "invalid-request")
    assert gateway.jobs.page().jobs == []
    without = start()
    body = problem(without.post(options={"callback_url": "https://example.com/"}), 422, "invalid-request")
    assert "LOOMWEIGHT_CALLBACK_SECRET" in body["detail"]


def test_a_name_that_changes_its_mind_is_asked_once(
    start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: allowed when asked first, internal when asked again. The connection must go where was looked."""
    asked = []
    port = int(receiver.url.split(":")[2].split("/")[0])

    async def rebinding(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.99"]

    monkeypatch.setattr(Sender.__init__, "__defaults__", (rebinding, None))
    gateway = start(**QUICK | {"callback_networks": ("127.0.0.1/32",)})
    ended(gateway, f"http://rebinding.example:{port}/")
    [message] = receiver.wait(1)
    assert message.headers["host"] == f"rebinding.example:{port}"
    assert asked == ["rebinding.example"]
    ended(gateway, f"http://rebinding.example:{port}/")
    settled(lambda: outcomes(gateway).get("refused", 0) >= 1)
    assert len(receiver.received) == 1


def test_tls_asks_for_the_name_at_the_address_that_was_checked(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hooks.example"]
    command += ["-addext", "subjectAltName=DNS:hooks.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(Sender.__init__, "__defaults__", (resolve, None))
    with receiving(server) as receiver:
        port = receiver.url.split(":")[2].split("/")[0]
        distrusting = start(**QUICK)
        ended(distrusting, f"https://hooks.example:{port}/")
        settled(lambda: outcomes(distrusting).get("given-up") == 1)
        assert receiver.received == []
        monkeypatch.setattr(Sender.__init__, "__defaults__", (resolve, trusting))
        gateway = start(**QUICK, redis_prefix="another:")  # the first one would send for it
        for name in ("other.example", "hooks.example"):
            ended(gateway, f"https://{name}:{port}/{name}")
        assert receiver.wait(1)[0].headers["host"].startswith("hooks.example")
        time.sleep(0.2)
        assert all(message.headers["host"].startswith("hooks.example") for message in receiver.received)
