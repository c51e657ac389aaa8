"""What every backend promises, held against the directory and a real S3 server alike."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest

from model_store import AlreadyExists, InvalidKey, NotFound, ObjectStore, RangeNotSatisfiable

KIND = "application/octet-stream"
TEN = b"0123456789"
BAD_KEYS = [
    *("", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "a//b", "a/", "./a", "a/.", ".hidden", "a/.hidden/b"),
    *("a\0b", "a\nb", "a\\..\\b", "\ud800", "\u202ex", "x" * 201, "é" * 101, "/".join(["x" * 100] * 9)),
]


class OneWay(io.RawIOBase):
    """A body that can be read once and not rewound, like a socket."""

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._body.readinto(buffer)


def test_what_was_put_comes_back_described(store: ObjectStore) -> None:
    before = datetime.now(UTC)

    put = store.put("a/b c/ü.bin", TEN, content_type="text/plain; charset=utf-8", metadata={"seed": "7", "x-y": "a b"})

    assert store.get("a/b c/ü.bin") == TEN
    head = store.head("a/b c/ü.bin")
    assert head.key == put.key == "a/b c/ü.bin"
    assert head.size == put.size == 10
    assert head.sha256 == put.sha256 == hashlib.sha256(TEN).hexdigest()
    assert head.content_type == put.content_type == "text/plain; charset=utf-8"
    assert head.metadata == put.metadata == {"seed": "7", "x-y": "a b"}
    assert abs(head.modified - before) < timedelta(seconds=10)
    assert abs(put.modified - before) < timedelta(seconds=10)


@pytest.mark.parametrize("key", ["x" * 200, "é" * 100, "/".join(["y" * 79] * 10), "a b/+&=%2e?#'\"<>|*:;,@~$()[]{}^`!"])
def test_long_and_strange_keys_work(store: ObjectStore, key: str) -> None:
    store.put(key, TEN, content_type=KIND)

    assert store.get(key) == TEN
    assert [entry.key for entry in store.list(key)] == [key]
    store.delete(key)
    assert store.list("") == []


def test_bodies_may_be_bytes_paths_and_files(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(TEN)
    halfway = io.BytesIO(b"skipped" + TEN)
    halfway.seek(7)

    for body in (TEN, path, halfway, io.BufferedReader(OneWay(TEN))):
        info = store.put("body", body, content_type=KIND)
        assert (info.size, info.sha256) == (10, hashlib.sha256(TEN).hexdigest())
        assert store.get("body") == TEN

    assert not halfway.closed


def test_a_missing_path_is_not_a_missing_object(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put("a", tmp_path / "absent", content_type=KIND)


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"", content_type=KIND)

    assert store.get("empty") == b""
    assert list(store.stream("empty")) == []
    assert store.head("empty").size == 0
    with pytest.raises(RangeNotSatisfiable):
        store.get("empty", start=0)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 1, b"0"), (3, 7, b"3456"), (9, None, b"9"), (None, 4, b"0123"), (8, 99, b"89"), (0, None, TEN), (0, 10, TEN)],
)
def test_ranges_are_like_slices(store: ObjectStore, start: int | None, end: int | None, expected: bytes) -> None:
    store.put("ten", TEN, content_type=KIND)

    assert store.get("ten", start=start, end=end) == expected
    with store.stream("ten", start=start, end=end, chunk=3) as pieces:
        assert (pieces.length, pieces.info.size) == (len(expected), 10)
        assert b"".join(pieces) == expected


@pytest.mark.parametrize(("start", "end"), [(10, None), (11, 20), (5, 5), (5, 3), (-1, None), (None, 0)])
def test_a_range_without_bytes_is_refused(store: ObjectStore, start: int | None, end: int | None) -> None:
    store.put("ten", TEN, content_type=KIND)

    with pytest.raises(RangeNotSatisfiable):
        store.get("ten", start=start, end=end)
    with pytest.raises(RangeNotSatisfiable):
        store.stream("ten", start=start, end=end)


def test_a_stream_keeps_to_its_chunks_and_may_be_dropped(store: ObjectStore) -> None:
    store.put("ten", TEN, content_type=KIND)

    assert [len(piece) for piece in store.stream("ten", chunk=4)] == [4, 4, 2]
    dropped = store.stream("ten", chunk=4)
    assert next(dropped) == b"0123"
    dropped.close()
    dropped.close()
    assert list(dropped) == []


def test_a_missing_key_is_not_found_everywhere(store: ObjectStore) -> None:
    for ask in (store.get, store.head, store.stream, lambda key: store.get(key, start=1)):
        with pytest.raises(NotFound):
            ask("no/such/key")


def test_a_folder_is_not_an_object(store: ObjectStore) -> None:
    store.put("folder/object", TEN, content_type=KIND)

    for ask in (store.get, store.head, store.stream):
        with pytest.raises(NotFound):
            ask("folder")
    store.delete("folder")
    assert store.get("folder/object") == TEN


def test_an_overwrite_replaces_body_and_description(store: ObjectStore) -> None:
    store.put("a", TEN, content_type="text/plain", metadata={"version": "1"})
    store.put("a", b"new", content_type="text/html", metadata={"version": "2"})

    assert store.get("a") == b"new"
    head = store.head("a")
    assert (head.size, head.content_type, head.metadata) == (3, "text/html", {"version": "2"})
    assert [entry.key for entry in store.list("")] == ["a"]


def test_readers_see_one_version_or_the_other(store: ObjectStore) -> None:
    bodies = [bytes([digit]) * 50_000 for digit in range(4)]
    store.put("a", bodies[0], content_type=KIND)

    def write(body: bytes) -> None:
        for _ in range(5):
            store.put("a", body, content_type=KIND)

    with ThreadPoolExecutor(5) as pool:
        writes = [pool.submit(write, body) for body in bodies]
        while not all(write.done() for write in writes):
            assert store.get("a") in bodies  # and its hash fits, or this raised `Corrupt`
        for done in writes:
            done.result()


def test_if_absent_keeps_the_first(store: ObjectStore) -> None:
    store.put("a", b"first", content_type="text/plain", if_absent=True)

    with pytest.raises(AlreadyExists):
        store.put("a", b"second", content_type=KIND, if_absent=True)

    assert store.get("a") == b"first"
    assert store.head("a").content_type == "text/plain"
    store.delete("a")
    store.put("a", b"third", content_type=KIND, if_absent=True)
    assert store.get("a") == b"third"


def test_a_race_of_sixteen_has_one_winner(store: ObjectStore) -> None:
    barrier = Barrier(16)

    def claim(number: int) -> int | None:
        barrier.wait()
        try:
            store.put("claim", str(number).encode(), content_type=KIND, metadata={"by": str(number)}, if_absent=True)
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(claim, range(16)) if number is not None]

    assert len(winners) == 1
    assert store.get("claim") == str(winners[0]).encode()
    assert store.head("claim").metadata == {"by": str(winners[0])}


def test_twelve_megabytes(store: ObjectStore, tmp_path: Path) -> None:
    body = os.urandom(12 * 1024 * 1024 + 1)
    path = tmp_path / "large"
    path.write_bytes(body)

    info = store.put("large", path, content_type="application/x-large", metadata={"k": "v"}, if_absent=True)

    assert info.sha256 == hashlib.sha256(body).hexdigest()
    assert store.head("large").sha256 == info.sha256
    assert store.head("large").content_type == "application/x-large"
    assert store.head("large").metadata == {"k": "v"}
    assert store.get("large") == body
    assert store.get("large", start=8 * 1024 * 1024 - 5, end=8 * 1024 * 1024 + 5) == body[8388603:8388613]
    with pytest.raises(AlreadyExists):
        store.put("large", path, content_type=KIND, if_absent=True)
    assert store.vacuum(timedelta(0)) == 0  # nothing half-written is left


def test_delete_is_idempotent(store: ObjectStore) -> None:
    store.put("a/b", TEN, content_type=KIND)

    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")

    with pytest.raises(NotFound):
        store.get("a/b")
    assert store.list("") == []


def test_listing_is_in_key_order_and_pages(store: ObjectStore) -> None:
    keys = [f"m/{number:02d}/{name}" for number in range(7) for name in ("card.json", "weights")]
    for key in reversed(keys):
        store.put(key, key.encode(), content_type=KIND)
    store.put("n/other", TEN, content_type=KIND)

    assert [entry.key for entry in store.list("m/")] == keys
    assert [entry.key for entry in store.list("")] == [*keys, "n/other"]
    assert [entry.key for entry in store.list("m/03")] == ["m/03/card.json", "m/03/weights"]
    assert [entry.key for entry in store.list("m/", after="m/03/card.json", limit=2)] == keys[7:9]
    assert [entry.key for entry in store.list("m/", after="m/03/a-key-that-is-gone")] == keys[6:]
    assert [entry.key for entry in store.list("m/", after="m/03/zzz", limit=3)] == keys[8:11]
    assert store.list("m/", after=keys[-1]) == []
    assert store.list("zzz/") == []
    entry = store.list("m/", limit=1)[0]
    assert entry.size == len(keys[0])
    assert abs(entry.modified - datetime.now(UTC)) < timedelta(seconds=10)


def test_many_writers_and_deleters_of_one_folder(store: ObjectStore) -> None:
    def churn(number: int) -> None:
        for _ in range(10):
            store.put(f"deep/er/{number}", TEN, content_type=KIND)
            store.delete(f"deep/er/{number}")

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(churn, range(8)):
            pass

    assert store.list("") == []


@pytest.mark.parametrize("key", BAD_KEYS)
def test_hostile_keys_are_refused(store: ObjectStore, key: str) -> None:
    for ask in (store.get, store.head, store.stream, store.delete, lambda key: store.presign(key, expires=1)):
        if ask.__name__ == "<lambda>" and store.presign("a", expires=1) is None:
            continue
        with pytest.raises(InvalidKey):
            ask(key)
    with pytest.raises(InvalidKey):
        store.put(key, TEN, content_type=KIND)


@pytest.mark.parametrize("prefix", ["/", "../", "a//", "..", "a\0"])
def test_hostile_prefixes_are_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(InvalidKey):
        store.list(prefix)
    with pytest.raises(InvalidKey):
        store.list("", after=prefix)


@pytest.mark.parametrize(
    ("kind", "metadata"),
    [
        ("text/plain\r\nx: y", {}),
        ("", {}),
        (KIND, {"Upper": "v"}),
        (KIND, {"k": "line\nbreak"}),
        (KIND, {"k": "ü"}),
        (KIND, {"k": " padded "}),
        (KIND, {"k": "x" * 1501}),
    ],
)
def test_descriptions_that_headers_cannot_carry(store: ObjectStore, kind: str, metadata: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        store.put("a", TEN, content_type=kind, metadata=metadata)
    assert store.list("") == []


def test_a_body_that_breaks_off_leaves_nothing(store: ObjectStore) -> None:
    class Broken(OneWay):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            if self._body.tell():
                raise ConnectionResetError("the client left")
            return super().readinto(buffer)

    with pytest.raises(ConnectionResetError):
        store.put("a", io.BufferedReader(Broken(bytes(9 << 20))), content_type=KIND)

    assert store.list("") == []
    assert store.vacuum(timedelta(0)) == 0


def test_a_ready_store_says_so(store: ObjectStore) -> None:
    store.check()
    assert store.list("") == []
