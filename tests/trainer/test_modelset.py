import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from trainer import data, modelset, nets, pairs, recipe
from trainer.data import Domain
from trainer.pairs import PairTask
from trainer.recipe import ModelSetRecipe, Recipe

SETTINGS = ModelSetRecipe(
    domain="glyphs",
    tasks=3,
    withheld_tasks=0,
    seeds=2,
    networks=("plain-4-batch-relu",),
    epochs=6,
    batch=16,
    lr=1e-2,
    per_class=40,
)
SMALL: Recipe = replace(recipe.load("tiny"), modelset=SETTINGS)


def fresh(tiny_run: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "data").symlink_to(tiny_run / "data")
    return folder


def products(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(modelset.folder(run).glob("*.safetensors"))}


def facts(run: Path) -> list[dict[str, object]]:
    """What is written beside the weights, but for the time it took."""
    index = json.loads((modelset.folder(run) / "index.json").read_text())
    return [{**m, "task": part["task"], "seconds": 0} for part in index["tasks"] for m in part["models"]]


@pytest.fixture(scope="module")
def built(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fresh(tiny_run, tmp_path_factory.mktemp("set") / "run")
    modelset.build(SMALL, run)
    return run


def test_shards_in_processes_make_the_files_of_one_build(tiny_run: Path, built: Path, tmp_path: Path) -> None:
    run = fresh(tiny_run, tmp_path / "run")
    modelset.build(SMALL, run, shard=1, shards=2, processes=2)
    assert list(products(run)) == ["001.safetensors"]
    modelset.build(SMALL, run, shard=0, shards=2)
    assert products(run) == products(built)
    assert facts(run) == facts(built)


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tests.trainer.test_modelset import SMALL
from trainer import modelset

write = modelset._write

def dying(path, content):
    if path.name == "001.json":  # the second task's weights are there, its description is not
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

modelset._write = dying
modelset.build(SMALL, Path(sys.argv[1]))
"""


def test_a_killed_build_goes_on_and_ends_with_the_same_files(tiny_run: Path, built: Path, tmp_path: Path) -> None:
    # Given a build that is killed in its second task
    run = fresh(tiny_run, tmp_path / "run")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(run)], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    age = (modelset.folder(run) / "000.safetensors").stat().st_mtime_ns
    # When it is started again, then the files are those of a build that nobody killed
    modelset.build(SMALL, run)
    assert products(run) == products(built)
    assert facts(run) == facts(built)
    assert (modelset.folder(run) / "000.safetensors").stat().st_mtime_ns == age


def test_models_are_what_the_index_says(built: Path) -> None:
    models = modelset.load(built)
    assert [(m.task.number, m.seed) for m in models.models] == [(t, s) for t in range(3) for s in range(2)]
    test = data.load(SMALL, built, "test", "glyphs")
    for model in models.models:
        net = nets.make(model.network, 2, Generator())
        net.load_state_dict(models.tensors(model))
        found = modelset.accuracy(net, modelset.images(SETTINGS, test, model.task))
        assert found == pytest.approx(model.test_accuracy)
    first, second = (models.tensors(m)["conv1.weight"] for m in models.models[:2])
    assert not torch.equal(first, second)


def test_trained_networks_know_more_than_chance(built: Path) -> None:
    found = [m.train_accuracy for m in modelset.load(built).models]
    assert sum(found) / len(found) > 0.6


def variant(tiny_run: Path, folder: Path, **changed: object) -> modelset.ModelSet:
    run = fresh(tiny_run, folder)
    modelset.build(replace(SMALL, modelset=replace(SETTINGS, **changed)), run)  # type: ignore[arg-type]
    return modelset.load(run)


def test_a_shared_initialisation_is_the_same_for_every_task_and_seed(tiny_run: Path, tmp_path: Path) -> None:
    models = variant(tiny_run, tmp_path / "shared", init="shared", epochs=0)
    weights = [models.tensors(m)["conv1.weight"] for m in models.models]
    assert all(torch.equal(w, weights[0]) for w in weights)


def test_untrained_and_shuffled_controls_know_nothing(tiny_run: Path, tmp_path: Path) -> None:
    for name, changed in {"untrained": {"epochs": 0}, "shuffled": {"labels": "shuffled", "seeds": 3}}.items():
        models = variant(tiny_run, tmp_path / name, **changed)
        mean = np.mean([m.test_accuracy for m in models.models])
        assert 0.2 < mean < 0.8, name


def test_networks_and_optimizers_take_turns(tiny_run: Path, tmp_path: Path) -> None:
    names = ("cnn-s", "residual-4-group-gelu")
    models = variant(tiny_run, tmp_path / "mixed", networks=names, optimizers=("adamw", "sgd"), epochs=1)
    assert [m.network for m in models.models] == list(names) * 3
    assert [m.optimizer for m in models.models[:4]] == ["adamw", "sgd", "sgd", "adamw"]


def test_the_published_network_has_its_number_of_weights() -> None:
    net = nets.make("plain-32-batch-relu", 2, Generator())
    assert sum(p.numel() for p in net.parameters()) == 389_890


@pytest.mark.parametrize("name", ["plain-4", "plain-4-layer-relu", "plain-4-batch-swish", "vgg", "plain-x-batch-relu"])
def test_unknown_networks_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        nets.make(name, 2, Generator())


def cifar() -> Domain:
    names = tuple(sorted(n for group in pairs.SUPERCLASSES.values() for n in group.split()))
    return Domain("cifar100", np.zeros((100, 1, 1, 3), np.uint8), np.arange(100), names)


@pytest.mark.parametrize("pairing", ["alphabetical", "random", "superclass"])
def test_withheld_classes_stand_apart_and_first_rounds_share_no_class(pairing: str) -> None:
    withheld = 4 if pairing == "superclass" else 10
    found = pairs.tasks(ModelSetRecipe(pairing=pairing, withheld_tasks=withheld), cifar())
    assert len({t.classes for t in found}) == len(found) == 50 + withheld
    assert all(t.withheld == all(c % 5 == 4 for c in t.classes) for t in found)
    assert all(t.withheld == any(c % 5 == 4 for c in t.classes) for t in found)
    first = [c for t in found[:30] for c in t.classes]
    assert len(first) == len(set(first)) or pairing == "superclass"


def test_alphabetical_pairs_are_neighbours() -> None:
    found = pairs.tasks(ModelSetRecipe(), cifar())
    assert found[0].names == ("apple", "aquarium_fish")
    assert next(t.names for t in found if t.withheld) == ("beaver", "bottle")


def test_superclasses_cover_all_classes_once() -> None:
    assert len(pairs.SUPERCLASS_OF) == 100
    assert {len(v.split()) for v in pairs.SUPERCLASSES.values()} == {5}


def test_relation_counts_shared_superclasses() -> None:
    def task(a: str, b: str) -> PairTask:
        return PairTask(0, (0, 1), (a, b), False)

    assert pairs.relation(task("trout", "rose"), task("shark", "tulip")) == 1
    assert pairs.relation(task("trout", "rose"), task("shark", "wolf")) == pytest.approx(1 / 3)
    assert pairs.relation(task("trout", "rose"), task("bus", "wolf")) == 0


def test_too_many_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="makes 79 alphabetical pairs"):
        pairs.tasks(ModelSetRecipe(tasks=80), cifar())
    with pytest.raises(ValueError, match="no pairing 'odd'"):
        pairs.tasks(ModelSetRecipe(pairing="odd"), cifar())


@pytest.mark.parametrize("path", sorted(recipe.RECIPES.glob("modelset*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_name_networks_and_tasks_that_exist(path: Path) -> None:
    settings = recipe.load(path.stem).modelset
    for name in settings.networks:
        nets.make(name, 2, Generator())
    assert len(pairs.tasks(settings, cifar())) == settings.tasks + settings.withheld_tasks
