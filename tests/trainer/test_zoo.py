import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loomweight import architectures
from trainer import recipe, zoo
from trainer.recipe import Recipe, ZooRecipe

TINY = recipe.load("tiny")


def fresh(tiny_run: Path, folder: Path) -> Path:
    """A run as it stands before the zoo is built."""
    folder.mkdir(parents=True)
    for part in ("data", "encoder", "shared", "bank"):
        (folder / part).symlink_to(tiny_run / part)
    return folder


def products(run: Path, target: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(zoo.folder(run, target).glob("*.safetensors"))}


def facts(run: Path, target: str) -> list[dict[str, object]]:
    """What is written beside the weights, but for the time it took."""
    found = [json.loads(p.read_text()) for p in sorted(zoo.folder(run, target).glob("*.json"))]
    return [{k: v for k, v in meta.items() if k != "seconds"} for meta in found]


KILLED = """
import os, signal, sys
from pathlib import Path
from trainer import cli, zoo

write, count = zoo._write, 0

def dying(path, content):
    global count
    count += 1
    if count == 6:  # the third model's weights are there, its description is not, and a half-written file is
        path.with_name(f".{path.name}.1").write_bytes(content[:5])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

zoo._write = dying
cli.main(["zoo", "--recipe", "tiny", "--run", sys.argv[1], "--processes", "1"])
"""


def test_a_killed_zoo_goes_on_and_ends_with_the_same_files(tiny_run: Path, tmp_path: Path) -> None:
    # Given a build that is killed in the middle of a model
    run = fresh(tiny_run, tmp_path / "run")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(run)], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert len(products(run, "cnn-s")) == 3
    assert len(facts(run, "cnn-s")) == 2
    whole = zoo.folder(run, "cnn-s") / "00000.safetensors"
    age = whole.stat().st_mtime_ns
    # When it is started again
    for target in TINY.targets:
        zoo.build(TINY, run, target)
    # Then the files are those of a build that nobody killed, and finished models were not made twice
    for target in TINY.targets:
        assert products(run, target) == products(tiny_run, target)
        assert facts(run, target) == facts(tiny_run, target)
    assert whole.stat().st_mtime_ns == age


def test_shards_in_processes_make_the_files_of_one_build(tiny_run: Path, tmp_path: Path) -> None:
    run = fresh(tiny_run, tmp_path / "run")
    zoo.build(TINY, run, "cnn-s", shard=1, shards=2, processes=2)
    assert list(products(run, "cnn-s")) == [f"{i:05d}.safetensors" for i in range(1, 12, 2)]
    zoo.build(TINY, run, "cnn-s", shard=0, shards=2)
    assert products(run, "cnn-s") == products(tiny_run, "cnn-s")
    assert facts(run, "cnn-s") == facts(tiny_run, "cnn-s")


def independent() -> Recipe:
    settings = replace(
        TINY.targets["cnn-s"], zoo=ZooRecipe(models=3, init="independent", classes=(3,), epochs=1, lr=1e-2)
    )
    return replace(TINY, targets={"cnn-s": settings})


def test_independent_seeds_are_aligned_to_model_zero_wherever_it_is_built(tiny_run: Path, tmp_path: Path) -> None:
    # Given a zoo of independent seeds, built whole, and its last model built alone
    whole, part = fresh(tiny_run, tmp_path / "whole"), fresh(tiny_run, tmp_path / "part")
    zoo.build(independent(), whole, "cnn-s")
    zoo.build(independent(), part, "cnn-s", shard=2, shards=3)
    # Then the model is the same, though its shard had to make the reference for itself
    assert products(part, "cnn-s")["00002.safetensors"] == products(whole, "cnn-s")["00002.safetensors"]
    models = list(zoo.models(whole, "cnn-s"))
    assert [m.index for m in models] == [0, 1, 2]
    assert not torch.equal(models[0].weights["conv1.weight"], models[1].weights["conv1.weight"])


def test_models_of_a_zoo_are_what_their_description_says(tiny_run: Path) -> None:
    for target in TINY.targets:
        models = list(zoo.models(tiny_run, target))
        assert [m.index for m in models] == list(range(12))
        spec = zoo.spec_of(tiny_run, target)
        for model in models[:3]:
            assert spec.classes(model.weights) == len(model.task.classes)
            assert model.task == zoo.task_of(TINY, tiny_run, target, model.index)
            x, y = zoo.test_images(TINY, tiny_run, target, model.task)
            assert zoo.accuracy(spec, model.weights, x, y) == pytest.approx(model.test_accuracy)
        # trained networks know more than chance
        chance = sum(1 / len(m.task.classes) for m in models) / len(models)
        assert sum(m.test_accuracy for m in models) / len(models) > chance + 0.15


def test_heads_are_judged_by_images_they_were_not_fitted_to(tiny_run: Path) -> None:
    task = zoo.task_of(TINY, tiny_run, "head", 0)
    x, _ = zoo.training_images(TINY, tiny_run, "head", task, 0)
    held, _ = zoo.test_images(TINY, tiny_run, "head", task)
    assert len(x) == 2 * len(held) == 20 * len(task.classes)
    assert torch.cdist(x, held).min() > 1e-3


def test_a_shared_zoo_starts_from_the_shared_trunk(tiny_run: Path) -> None:
    shared = load_file(tiny_run / "shared" / "cnn-s.safetensors")
    other = architectures.CNN_S.initial(3, torch.Generator().manual_seed(0))
    for model in zoo.models(tiny_run, "cnn-s"):
        near = (model.weights["conv1.weight"] - shared["conv1.weight"]).norm()
        assert near < 0.5 * (other["conv1.weight"] - shared["conv1.weight"]).norm()
