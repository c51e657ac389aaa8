"""What only a directory has: links, crashes, other processes, and people who put files there."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store import Corrupt, InvalidKey, NotFound, StoreUnavailable, open_store
from model_store.local import LocalStore

KIND = "application/octet-stream"


def hidden(store: LocalStore) -> list[str]:
    return sorted(path.name for path in store.root.rglob(".*"))


def python(code: str, *arguments: object, **options: object) -> "subprocess.Popen[bytes]":
    """Another process with `store` opened on the first argument."""
    opening = "import sys\nfrom pathlib import Path\nfrom model_store.local import LocalStore\n"
    opening += "from model_store import *\nstore = LocalStore(Path(sys.argv[1]))\n"
    return subprocess.Popen([sys.executable, "-c", opening + code, *map(str, arguments)], **options)  # type: ignore[call-overload, no-any-return]


def test_objects_are_plain_files(local: LocalStore) -> None:
    local.put("m/1/weights", b"bytes", content_type=KIND)

    assert (local.root / "m/1/weights").read_bytes() == b"bytes"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_opened_by_url_or_path(tmp_path: Path, scheme: str) -> None:
    open_store(f"{scheme}{tmp_path}/new store/", access_key=None).put("a", b"x", content_type=KIND)

    assert (tmp_path / "new store" / "a").exists()


@pytest.mark.parametrize("url", ["", "http://host/x", "s3://", "s3:///key", "file://host/dir", "s3://bucket?x=1"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not a store"):
        open_store(url)


def test_links_lead_nowhere(local: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    local.put("real/object", b"x", content_type=KIND)
    (local.root / "folder").symlink_to(outside)
    (local.root / "file").symlink_to(outside / "secret")
    (local.root / "new").symlink_to(outside / "new")
    (local.root / "inward").symlink_to(local.root / "real")

    for key in ("folder/secret", "folder/new", "file", "new", "inward/object"):
        for ask in (local.get, local.head, local.delete):
            with pytest.raises(InvalidKey):
                ask(key)
        with pytest.raises(InvalidKey):
            local.put(key, b"overwritten", content_type=KIND)

    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert [entry.key for entry in local.list("")] == ["real/object"]


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    LocalStore(tmp_path / "link").put("a/b", b"x", content_type=KIND)

    assert (tmp_path / "real/a/b").exists()


segments = st.text(max_size=12) | st.sampled_from(["..", ".", "", "~", "a", "\0", "..\\..", "C:", "-", "%2e%2e", "con"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.lists(segments, max_size=5).map("/".join) | st.text(max_size=300))
def test_no_key_escapes_and_every_accepted_one_works(local: LocalStore, tmp_path: Path, key: str) -> None:
    around = {path.name for path in tmp_path.iterdir()}
    try:
        local.put(key, b"body", content_type=KIND, metadata={"k": "v"})
    except InvalidKey:
        for ask in (local.get, local.delete):
            with pytest.raises(InvalidKey):
                ask(key)
        assert local.list("") == []
    else:
        assert (local.root / key).resolve().is_relative_to(local.root)
        assert local.get(key) == b"body"
        assert local.head(key).metadata == {"k": "v"}
        assert [entry.key for entry in local.list(key)] == [key]
        local.delete(key)
    assert [*local.root.iterdir()] == []
    assert {path.name for path in tmp_path.iterdir()} == around


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(st.text("ab-/.~é", min_size=1, max_size=6).filter(lambda name: "." not in name), max_size=8),
    prefix=st.text("ab-/", max_size=2),
    limit=st.integers(1, 4),
)
def test_listing_agrees_with_sorting(local: LocalStore, names: set[str], prefix: str, limit: int) -> None:
    stored = set()
    for name in sorted(names):
        try:
            local.put(name, b"", content_type=KIND)
            stored.add(name)
        except InvalidKey:
            continue
    try:
        listed, after = [], None
        while page := local.list(prefix, after=after, limit=limit):
            listed += [entry.key for entry in page]
            after = listed[-1]
        assert listed == sorted(key for key in stored if key.startswith(prefix))
    except InvalidKey:
        assert "/" in prefix
    for key in stored:
        local.delete(key)
    assert [*local.root.iterdir()] == []


def test_a_key_cannot_be_another_keys_folder(local: LocalStore) -> None:
    local.put("a/b", b"x", content_type=KIND)

    for key in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(InvalidKey):
            local.put(key, b"y", content_type=KIND)
    assert local.get("a/b") == b"x"
    assert len(hidden(local)) == 1


def test_versions_and_deletes_leave_nothing_behind(local: LocalStore) -> None:
    for _ in range(3):
        local.put("a/b", b"x", content_type=KIND)
    assert len(hidden(local)) == 1

    local.delete("a/b")
    assert [*local.root.iterdir()] == []


def test_a_file_without_description_is_read_as_it_is(local: LocalStore) -> None:
    (local.root / "m").mkdir()
    (local.root / "m/card.json").write_bytes(b"{}")

    head = local.head("m/card.json")

    assert local.get("m/card.json") == b"{}"
    assert (head.size, head.content_type, head.metadata) == (2, "application/json", {})
    assert head.sha256 == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_flipped_bit_is_noticed(local: LocalStore) -> None:
    local.put("a", b"0123456789", content_type=KIND)
    path = local.root / "a"
    status = path.stat()
    path.write_bytes(b"012345678X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(Corrupt):
        local.get("a")


def test_a_broken_description_is_noticed(local: LocalStore) -> None:
    local.put("a", b"0123456789", content_type=KIND)
    (local.root / hidden(local)[0]).write_text('{"sha')

    with pytest.raises(Corrupt):
        local.head("a")


def test_foreign_hidden_files_are_left_alone(local: LocalStore) -> None:
    (local.root / ".snapshot").mkdir()
    (local.root / ".snapshot/a").write_text("x")
    (local.root / ".DS_Store").write_text("x")

    assert local.list("") == []
    assert local.vacuum(timedelta(0)) == 0
    assert hidden(local) == [".DS_Store", ".snapshot"]


def test_a_writer_killed_halfway_leaves_no_object(local: LocalStore) -> None:
    # Given a process that dies after the first megabytes of a body
    local.put("kept", b"kept", content_type=KIND)
    code = "store.put('dir/a', sys.stdin.buffer, content_type='x')"
    process = python(code, local.root, stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(bytes(5 << 20))
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not list(local.root.glob("dir/.*.draft")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()

    # Then nobody sees an object, and only what is old enough goes
    assert [entry.key for entry in local.list("")] == ["kept"]
    with pytest.raises(NotFound):
        local.get("dir/a")
    assert local.vacuum(timedelta(hours=1)) == 0
    assert local.vacuum(timedelta(0)) == 1
    assert local.get("kept") == b"kept"
    assert len(hidden(local)) == 1


def test_processes_agree_on_one_winner(local: LocalStore) -> None:
    code = """
wins = 0
for number in range(50):
    try:
        store.put(f'claims/{number}', sys.argv[2].encode(), content_type='x', if_absent=True)
        wins += 1
    except AlreadyExists:
        pass
print(wins)
"""
    processes = [python(code, local.root, number, stdout=subprocess.PIPE) for number in range(3)]
    wins = [int(process.communicate(timeout=60)[0]) for process in processes]

    assert sum(wins) == 50
    assert len(local.list("claims/")) == 50
    assert len(hidden(local)) == 50


def test_processes_overwrite_under_readers(local: LocalStore) -> None:
    code = """
for number in range(100):
    store.put('a', sys.argv[2].encode() * 1000, content_type='x', metadata={'by': sys.argv[2]})
    if number % 5 == 0:
        store.delete('a')
"""
    processes = [python(code, local.root, letter) for letter in "xy"]
    while any(process.poll() is None for process in processes):
        try:
            with local.stream("a") as pieces:
                body = b"".join(pieces)  # its hash fits, or this raises `Corrupt`
                assert pieces.info.metadata["by"].encode() == body[:1]
        except NotFound:
            pass
    assert [process.returncode for process in processes] == [0, 0]


def test_a_directory_that_vanished_is_not_made_anew(local: LocalStore) -> None:
    local.root.rmdir()

    with pytest.raises(StoreUnavailable):
        local.check()
    with pytest.raises(StoreUnavailable):
        local.put("a/b", b"x", content_type=KIND)
    assert not local.root.exists()


def test_a_process_out_of_descriptors_is_unavailable(local: LocalStore) -> None:
    local.put("a", b"x", content_type=KIND)
    code = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
try:
    while True:
        os.dup(0)
except OSError:
    pass
for ask in (store.check, lambda: store.get('a'), lambda: store.put('b', b'', content_type='x'), lambda: store.list('')):
    try:
        ask()
        sys.exit(1)
    except StoreUnavailable:
        pass
"""
    assert python(code, local.root).wait(30) == 0


def test_a_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StoreUnavailable):
        open_store(f"{tmp_path}/file/store")
