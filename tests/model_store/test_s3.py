"""What only S3 has: signatures, retries, public URLs, and a network that fails."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError

from model_store import AlreadyExists, Corrupt, NotFound, S3Settings, StoreUnavailable, open_store
from model_store.s3 import PART, S3Store
from tests.model_store.conftest import BUCKET
from tests.model_store.faults import FaultyProxy, faulty_proxy
from tests.servers import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KIND = "application/octet-stream"
LARGE = bytes(PART + 1)


@pytest.fixture
def proxy(s3: S3Store, s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.endpoint) as found:
        yield found


@pytest.fixture
def behind(proxy: FaultyProxy, s3_server: S3Server) -> Iterator[S3Store]:
    """A store that reaches the server through the proxy."""
    settings: S3Settings = {**s3_server.settings, "endpoint_url": proxy.endpoint}
    store = S3Store(BUCKET, prefix=f"run/{uuid4().hex}", **settings)
    yield store
    store.close()


def foreign(server: S3Server) -> "closing[S3Client]":
    """Another program's client."""
    return closing(
        boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
        )
    )


def test_a_presigned_url_needs_no_credentials(s3: S3Store) -> None:
    s3.put("m/weights", b"0123456789", content_type=KIND)

    url = s3.presign("m/weights", expires=60, filename='m-1 "é".safetensors')
    assert url is not None
    whole, part = httpx.get(url), httpx.get(url, headers={"Range": "bytes=2-4"})

    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["content-type"] == KIND
    assert whole.headers["content-disposition"] == (
        "attachment; filename=\"m-1____.safetensors\"; filename*=UTF-8''m-1%20%22%C3%A9%22.safetensors"
    )
    assert (part.status_code, part.content) == (206, b"234")


def test_a_tampered_or_expired_url_is_refused(s3: S3Store) -> None:
    for key in ("m/mine", "m/other"):
        s3.put(key, b"secret", content_type=KIND)
    url = s3.presign("m/mine", expires=60, filename="mine")
    short = s3.presign("m/mine", expires=1)
    assert url is not None
    assert short is not None
    flipped = url[:-1] + ("0" if url[-1] != "0" else "1")

    for tampered in (
        url.replace("m/mine", "m/other"),
        flipped,
        url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
        url.replace("filename", "elifname"),
        url.partition("?")[0],
    ):
        assert tampered != url
        answer = httpx.get(tampered)
        assert answer.status_code == 403
        assert b"secret" not in answer.content
    assert httpx.put(url, content=b"mine now").status_code == 403
    time.sleep(2.1)
    assert httpx.get(short).status_code == 403


def test_urls_are_signed_for_the_public_endpoint(s3_server: S3Server) -> None:
    # Given the same server under two names, the one for clients not being the one the service uses
    public = s3_server.endpoint.replace("127.0.0.1", "localhost")
    settings: S3Settings = {**s3_server.settings, "public_endpoint_url": public}
    store = S3Store(BUCKET, prefix=uuid4().hex, **settings)
    store.ensure_bucket()
    store.put("a", b"body", content_type=KIND)

    url = store.presign("a", expires=60)

    assert url is not None
    assert urlsplit(url).netloc == urlsplit(public).netloc
    assert urlsplit(url).path.startswith(f"/{BUCKET}/")
    assert httpx.get(url).content == b"body"
    assert httpx.get(url.replace("localhost", "127.0.0.1")).status_code == 403
    store.close()


@pytest.mark.parametrize("expires", [0, -1, 7 * 24 * 3600 + 1])
def test_urls_expire_within_a_week(s3: S3Store, expires: int) -> None:
    with pytest.raises(ValueError, match="expires"):
        s3.presign("a", expires=expires)


def test_prefixes_do_not_see_each_other(s3_server: S3Server, s3: S3Store) -> None:
    url = f"s3://{BUCKET}/other/{uuid4().hex}/"
    other = open_store(url, **s3_server.settings)
    s3.put("a", b"mine", content_type=KIND)
    other.put("a", b"theirs", content_type=KIND)

    assert s3.get("a") == b"mine"
    assert [entry.key for entry in other.list("")] == ["a"]
    other.delete("a")
    assert s3.get("a") == b"mine"
    other.close()


def test_ensure_bucket_may_be_raced(s3_server: S3Server) -> None:
    name = f"b-{uuid4().hex}"
    stores = [S3Store(name, **s3_server.settings) for _ in range(4)]
    with pytest.raises(StoreUnavailable):
        stores[0].check()

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(S3Store.ensure_bucket, stores):
            pass

    for store in stores:
        store.check()
        store.ensure_bucket()
        store.close()


def test_a_missing_bucket_is_not_a_missing_object(s3_server: S3Server) -> None:
    store = S3Store(f"b-{uuid4().hex}", **s3_server.settings)

    with pytest.raises(StoreUnavailable):
        store.check()
    with pytest.raises(StoreUnavailable):
        store.get("a")
    with pytest.raises(StoreUnavailable):
        store.put("a", b"", content_type=KIND)
    store.close()


def test_wrong_credentials_are_not_hidden(s3_server: S3Server, s3: S3Store) -> None:
    settings: S3Settings = {**s3_server.settings, "secret_key": "wrong"}
    store = S3Store(BUCKET, **settings)

    with pytest.raises(StoreUnavailable):
        store.check()
    with pytest.raises(ClientError):
        store.get("a")
    store.close()


def test_there_are_no_default_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    store = S3Store(BUCKET, endpoint_url=s3_server.endpoint)

    with pytest.raises(StoreUnavailable, match="credentials"):
        store.check()
    store.close()


def test_objects_of_other_programs_can_be_read(s3: S3Store, s3_server: S3Server) -> None:
    s3.put("ours", b"ours", content_type=KIND)
    with foreign(s3_server) as client:
        client.put_object(Bucket=BUCKET, Key=f"{s3._prefix}theirs", Body=b"theirs", Metadata={"k": "v"})

    assert s3.get("theirs") == b"theirs"
    assert s3.get("theirs", start=1, end=3) == b"he"
    assert s3.head("theirs").sha256 is None
    assert s3.head("theirs").metadata == {"k": "v"}


def test_bytes_that_do_not_fit_their_hash_are_not_given_out(s3: S3Store, s3_server: S3Server) -> None:
    info = s3.put("a", b"0123456789", content_type=KIND)
    with foreign(s3_server) as client:
        assert info.sha256
        client.put_object(Bucket=BUCKET, Key=f"{s3._prefix}a", Body=b"012345678X", Metadata={"sha256": info.sha256})

    with pytest.raises(Corrupt):
        s3.get("a")
    pieces = s3.stream("a", chunk=6)
    assert next(pieces) == b"012345"
    with pytest.raises(Corrupt):
        next(pieces)


def test_parts_nobody_completed_are_vacuumed(s3: S3Store, s3_server: S3Server) -> None:
    with foreign(s3_server) as client:
        key = f"{s3._prefix}half"
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=LARGE)

    assert s3.list("") == []
    assert s3.vacuum(timedelta(hours=1)) == 0
    assert s3.vacuum(timedelta(0)) == 1
    assert s3.vacuum(timedelta(0)) == 0


def test_a_race_of_large_bodies_has_one_winner(s3: S3Store) -> None:
    def claim(number: int) -> int | None:
        try:
            s3.put("claim", bytes([number]) * (PART + 1), content_type=KIND, if_absent=True)
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(4) as pool:
        winners = [number for number in pool.map(claim, range(4)) if number is not None]

    assert len(winners) == 1
    assert s3.get("claim", end=1) == bytes(winners)
    assert s3.vacuum(timedelta(0)) == 0


@pytest.mark.parametrize("body", [b"small", LARGE], ids=["whole", "parts"])
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_lost_answer_does_not_lose_the_write(
    behind: S3Store, proxy: FaultyProxy, body: bytes, if_absent: bool
) -> None:
    # Given the server stored the object, and only its answer got lost, so that the retry finds the object there
    completing = "POST" if body is LARGE and not if_absent else "PUT"
    lost = [1]
    proxy.plan = lambda method, path: (
        "lose the answer" if method == completing and "uploads" not in path and lost and lost.pop() else None
    )

    info = behind.put("a", body, content_type=KIND, if_absent=if_absent)

    assert not lost
    assert behind.head("a").sha256 == info.sha256
    with pytest.raises(AlreadyExists):
        behind.put("a", body, content_type=KIND, if_absent=True)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_one_bad_answer_is_retried(behind: S3Store, proxy: FaultyProxy, status: int) -> None:
    proxy.once("PUT", status)
    behind.put("a", b"body", content_type=KIND)
    proxy.once("GET", status)
    assert behind.get("a") == b"body"


def test_bad_answers_without_end_mean_unavailable(behind: S3Store, proxy: FaultyProxy) -> None:
    proxy.plan = lambda method, path: 503

    with pytest.raises(StoreUnavailable):
        behind.get("a")
    with pytest.raises(StoreUnavailable):
        behind.put("a", b"body", content_type=KIND)
    assert len(proxy.requests) == 6


def test_a_conflict_is_tried_again_then_lost(behind: S3Store, proxy: FaultyProxy) -> None:
    proxy.once("PUT", 409)
    behind.put("a", b"body", content_type=KIND, if_absent=True)
    assert behind.get("a") == b"body"

    proxy.once("PUT", 409, times=99)
    with pytest.raises(AlreadyExists):
        behind.put("b", b"body", content_type=KIND, if_absent=True)


def test_a_body_cut_short_is_noticed(behind: S3Store, proxy: FaultyProxy) -> None:
    behind.put("a", b"x" * 1000, content_type=KIND)
    proxy.once("GET", "cut the body")

    with pytest.raises(StoreUnavailable):
        behind.get("a")
    assert behind.get("a") == b"x" * 1000


def test_parts_that_cannot_go_up_are_taken_back(behind: S3Store, proxy: FaultyProxy) -> None:
    proxy.plan = lambda method, path: 503 if "partNumber=2" in path else None

    with pytest.raises(StoreUnavailable):
        behind.put("a", LARGE, content_type=KIND)

    proxy.plan = lambda method, path: None
    assert behind.vacuum(timedelta(0)) == 0
    with pytest.raises(NotFound):
        behind.head("a")


def test_a_server_that_is_gone_is_noticed_soon() -> None:
    with socket.socket() as reserved:  # bound, never listening: every connection is refused
        reserved.bind(("127.0.0.1", 0))
        store = S3Store(
            BUCKET, endpoint_url=f"http://127.0.0.1:{reserved.getsockname()[1]}", access_key="a", secret_key="b"
        )
        began = time.monotonic()

        for ask in (
            store.check,
            lambda: store.get("a"),
            lambda: store.head("a"),
            lambda: store.list(""),
            lambda: store.put("a", b"", content_type=KIND),
            lambda: store.delete("a"),
            lambda: store.vacuum(timedelta(0)),
        ):
            with pytest.raises(StoreUnavailable):
                ask()

        assert time.monotonic() - began < 7 * 4
        store.close()


def test_a_server_that_hangs_is_noticed_in_time(s3: S3Store, s3_server: S3Server) -> None:
    limits: S3Settings = {"connect_timeout": 0.5, "read_timeout": 0.5, "max_attempts": 2}
    settings: S3Settings = {**s3_server.settings, **limits}
    impatient = S3Store(BUCKET, **settings)
    s3.put("a", b"body", content_type=KIND)

    # When the server's process is stopped where it stands: it still accepts connections, and never answers
    os.kill(s3_server.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            impatient.check()
        with pytest.raises(StoreUnavailable):
            impatient.get("a")
        assert time.monotonic() - began < 2 * (2 * 0.5 + 2)
    finally:
        os.kill(s3_server.pid, signal.SIGCONT)

    impatient.close()
    assert s3.get("a") == b"body"
