"""A run that pods build together: through a store, on disks of their own."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from model_store.local import LocalStore
from model_store.store import open_store
from tests.servers import S3Server
from tests.trainer.test_zoo import facts, fresh, products
from trainer import cli, recipe
from trainer.mirror import Mirror, zoo_shard

TARGETS = tuple(recipe.load("tiny").targets)


def test_only_what_is_finished_goes_and_descriptions_go_last(tmp_path: Path) -> None:
    run, store = tmp_path / "run", LocalStore(tmp_path / "store")
    for name in (
        "zoo/head/00001.json",
        "zoo/head/00001.safetensors",
        "zoo/head/.00002.1",
        "vae/x.tmp",
        "a/tensorboard/e",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(name.encode())
    sent: list[str] = []
    put = store.put
    store.put = lambda key, *a, **k: (sent.append(key), put(key, *a, **k))[1]  # type: ignore[method-assign]
    mirror = Mirror(store, run)
    assert mirror.push(growing=False) == 2
    assert sent == ["zoo/head/00001.safetensors", "zoo/head/00001.json"]
    assert mirror.push() == 1, "now the log too"
    assert mirror.push() == 0
    (run / "zoo/head/00001.json").write_bytes(b"changed")
    assert mirror.push() == 1

    other = Mirror(store, tmp_path / "other")
    assert other.pull(lambda name: name.startswith("zoo")) == 2
    assert (tmp_path / "other/zoo/head/00001.json").read_bytes() == b"changed"
    assert other.pull() == 1
    assert other.push() == 0


def test_a_shard_leaves_the_models_of_others_where_they_are() -> None:
    wanted = zoo_shard(3, 8)
    assert wanted("zoo/head/00003.safetensors")
    assert wanted("zoo/head/00011.json")
    assert not wanted("zoo/head/00004.json")
    assert wanted("bank/00004.safetensors")


DYING = """
import os, signal, sys, time
from trainer import cli, mirror, zoo

mirror._EVERY_S = 0.05
write, count = zoo._write, 0

def dying(path, content):
    global count
    count += 1
    if count == 4:  # the second model's weights are there and its description is not
        time.sleep(1)  # what was finished before is handed over meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

zoo._write = dying
cli.main(sys.argv[1:])
"""


def test_shard_3_of_8_killed_and_started_again_on_another_disk_builds_the_same_zoo(
    tiny_run: Path, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an undisturbed build, and a run in S3 that stands before its zoo
    whole = fresh(tiny_run, tmp_path / "whole")
    zoo = ["zoo", "--recipe", "tiny", "--processes", "1"]
    cli.main([*zoo, "--run", str(whole)])
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    url = f"s3://runs-{uuid.uuid4().hex}/tiny"
    store = open_store(url)
    store.ensure_bucket()  # type: ignore[attr-defined]
    begun = fresh(tiny_run, tmp_path / "begun")
    for part in begun.iterdir():
        for path in part.resolve().rglob("*"):  # links, which a mirror does not follow
            if path.is_file():
                store.put(f"{part.name}/{path.relative_to(part.resolve()).as_posix()}", path, content_type="a/b")

    # When eight pods build it, each on its own disk, the one with shard 3 dies and another takes its place
    def pod(shard: int, disk: str) -> list[str]:
        return [*zoo, "--shard", f"{shard}/8", "--run", str(tmp_path / disk), "--store", url]

    died = subprocess.run([sys.executable, "-c", DYING, *pod(3, "died")], check=False, env=os.environ.copy())
    assert died.returncode == -9
    left = {entry.key for entry in store.list("zoo/")}
    assert f"zoo/{TARGETS[0]}/00003.json" in left, "the finished model was handed over"
    assert f"zoo/{TARGETS[0]}/00011.json" not in left
    for shard in (0, 1, 2, 4, 5, 6, 7, 3):
        cli.main(pod(shard, f"disk-{shard}"))

    # Then the zoo is the same, bit for bit
    together = tmp_path / "together"
    Mirror(store, together).pull()
    for target in TARGETS:
        assert products(together, target) == products(whole, target)
        assert facts(together, target) == facts(whole, target)
    store.close()
