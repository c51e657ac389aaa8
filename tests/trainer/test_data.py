import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer import data, recipe, synthetic, tasks
from trainer.data import Domain
from trainer.recipe import DataRecipe, Recipe

STARTER = recipe.load("starter")
CLASSES = {"cifar100": 100, "tiny-imagenet-32": 200}


def labelled(name: str, classes: int, each: int = 2) -> Domain:
    """A domain that has labels and no pictures worth the name."""
    labels = np.repeat(np.arange(classes), each)
    return Domain(name, np.zeros((len(labels), 1, 1, 3), np.uint8), labels, tuple(map(str, range(classes))))


@pytest.mark.parametrize("name", data.PHOTOGRAPHS)
def test_roles_of_photographs_part_the_classes(name: str) -> None:
    domain = labelled(name, CLASSES[name])
    parts = {role: set(domain.classes_of(role)) for role in data.ROLES}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == CLASSES[name]
    assert parts["test"] == {c for c in range(CLASSES[name]) if c % 5 == 4}
    assert parts["validation"] == {c for c in range(CLASSES[name]) if c % 25 == 23}
    assert parts["generator"] == {c for c in range(CLASSES[name]) if c % 5 == 3 and c % 25 != 23}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_sets_without_withheld_classes_train_everything(name: str) -> None:
    assert labelled(name, 10).classes_of("encoder") == list(range(10))


@pytest.mark.parametrize("name", ["glyphs", "glyphs-coloured", "textures"])
def test_rendered_sets_keep_some_classes_from_the_encoder(name: str) -> None:
    assert labelled(name, 20).classes_of("generator") == [3, 8, 13, 18]
    assert len(labelled(name, 20).classes_of("encoder")) == 16


@pytest.mark.parametrize("name", ["characters", "emblems"])
def test_invented_sets_are_for_the_generator_alone(name: str) -> None:
    assert labelled(name, 20).classes_of("generator") == list(range(20))
    assert not labelled(name, 20).classes_of("encoder", "validation", "test")


def test_members_are_the_images_of_each_class() -> None:
    labels = np.array([2, 0, 2, 3, 0])
    domain = Domain("mnist", np.zeros((5, 1, 1, 3), np.uint8), labels, ("a", "b", "c", "d"))
    assert [m.tolist() for m in domain.members] == [[1, 4], [], [0, 2], [3]]
    assert domain.classes_of("encoder") == [0, 2, 3]  # a class without images is none


def test_no_task_holds_a_test_or_validation_class() -> None:
    # Given the shipped recipe over photographs alone, so that every draw is of a set with withheld classes
    photographs = replace(STARTER, data=DataRecipe(domains=data.PHOTOGRAPHS))
    domains = {name: labelled(name, count) for name, count in CLASSES.items()}
    counts = (20, *STARTER.targets["cnn-l"].zoo.classes)
    # When thousands of tasks are drawn
    drawn: dict[str, set[int]] = {name: set() for name in CLASSES}
    for index in range(4000):
        task = tasks.draw(photographs, domains, counts, index)
        assert len(set(task.classes)) == len(task.classes)
        drawn[task.variant.domain] |= set(task.classes)
    # Then every class that may be trained on came up and no other did
    for name, domain in domains.items():
        assert drawn[name] == set(domain.classes_of("encoder", "generator"))
        assert {data.role(name, c) for c in drawn[name]} == {"encoder", "generator"}


def test_a_task_depends_on_its_number_alone() -> None:
    domains = {name: labelled(name, 100) for name in STARTER.data.domains}
    first = [tasks.draw(STARTER, domains, (5, 10), i) for i in range(20)]
    assert first == [tasks.draw(STARTER, domains, (5, 10), i) for i in range(20)]
    assert len(set(first)) == 20


def test_all_views_of_the_recipe_are_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [tasks.draw_variant(STARTER, rng) for _ in range(3000)]
    assert set(drawn) == set(tasks.variants(STARTER))
    cifar = [v for v in drawn if v.domain == "cifar100"]
    assert np.mean([v.view == "plain" for v in cifar]) == pytest.approx(STARTER.bank.plain, abs=0.06)


def test_images_of_a_task_are_labelled_by_their_place_in_it() -> None:
    # Given a domain whose pictures show their class as brightness
    labels = np.repeat(np.arange(6), 4)
    pictures = np.broadcast_to(labels[:, None, None, None] * 40, (24, 32, 32, 3)).astype(np.uint8)
    domain = Domain("mnist", pictures, labels, tuple("abcdef"))
    x, y = tasks.Task(tasks.Variant("mnist", "plain", 0), (5, 1)).images(domain, 3)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert (x.amax((1, 2, 3)) * 255).round().tolist() == [200.0] * 3 + [40.0] * 3


def stored(folder: Path, split: str, classes: int, each: int, side: int) -> None:
    """A small image set in the Hugging Face parquet layout; a picture's brightness is its label."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(classes * each):
        picture = io.BytesIO()
        Image.fromarray(np.full((side, side), 2 * (i % classes), np.uint8)).save(picture, "PNG")
        rows.append({"image": {"bytes": picture.getvalue(), "path": None}, "label": i % classes})
    names = {"info": {"features": {"label": {"names": [f"class {i}" for i in range(classes)]}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def test_stored_sets_are_decoded_once(tmp_path: Path) -> None:
    # Given a set of grey pictures of another size
    for split, each in (("train", 3), ("test", 1)):
        stored(tmp_path / "sets" / "cifar100", split, 30, each, side=48)
    small = Recipe("small", data=DataRecipe(domains=("cifar100",), per_class=2))
    # When the stage has run
    data.prepare(small, tmp_path / "run", tmp_path / "sets")
    # Then there are at most two images of each class, 32x32 RGB, under their labels
    domain = data.load(small, tmp_path / "run", "train", "cifar100")
    assert domain.images.shape == (60, 32, 32, 3)
    assert domain.classes[29] == "class 29"
    assert (domain.images[:, 0, 0, 0] == 2 * domain.labels).all()
    assert data.load(small, tmp_path / "run", "test", "cifar100").images.shape == (30, 32, 32, 3)
    # and running it again needs no source
    data.prepare(small, tmp_path / "run", None)


def test_tiny_imagenet_is_tested_on_its_validation_split(tmp_path: Path) -> None:
    for split, each in (("train", 2), ("validation", 1)):
        stored(tmp_path / "sets" / "tiny-imagenet-32", split, 5, each, side=32)
    small = Recipe("small", data=DataRecipe(domains=("tiny-imagenet-32",)))
    data.prepare(small, tmp_path / "run", tmp_path / "sets")
    assert len(data.load(small, tmp_path / "run", "test", "tiny-imagenet-32").labels) == 5


@pytest.mark.parametrize(("source", "message"), [(None, "needs --data DIR"), ("empty", r"holds no train-\*\.parquet")])
def test_a_missing_source_is_said(tmp_path: Path, source: str | None, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        data.prepare(
            Recipe("small", data=DataRecipe(domains=("mnist",))), tmp_path / "run", source and tmp_path / source
        )


@pytest.mark.parametrize("make", [synthetic.textures, synthetic.characters, synthetic.emblems])
def test_drawn_sets_repeat_and_their_splits_differ(make: Callable[..., tuple[data.Images, data.Labels]]) -> None:
    one, labels = make(3, 1, classes=4, draw_seed=2)
    assert one.shape == (12, 32, 32, 3)
    assert one.dtype == np.uint8
    assert one.reshape(12, -1).std(1).min() > 5  # something shows
    assert np.array_equal(one, make(3, 1, classes=4, draw_seed=2)[0])
    assert not np.array_equal(one, make(3, 1, classes=4, draw_seed=3)[0])
    assert not np.array_equal(one, make(3, 2, classes=4, draw_seed=2)[0])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("make", [synthetic.characters, synthetic.emblems])
def test_a_class_of_a_drawn_set_looks_like_itself(make: Callable[..., tuple[data.Images, data.Labels]]) -> None:
    # Given images of the training split and the test split, drawn by another hand
    (train, labels), (test, truth) = (make(20, 1, classes=5, draw_seed=seed) for seed in (2, 3))
    means = np.stack([train[labels == c].astype(float).mean(0).ravel() for c in range(5)])
    distance = ((test.reshape(len(test), 1, -1) - means) ** 2).sum(-1)
    # Then even mean pixels tell most of the classes: they are the same classes
    assert (distance.argmin(1) == truth).mean() > 0.5


@pytest.mark.parametrize("name", ["textures", "characters", "emblems"])
def test_drawn_domains_have_the_same_classes_in_both_splits(tmp_path: Path, name: str) -> None:
    small = Recipe("small", data=DataRecipe(domains=(name,), rendered_per_class=4, rendered_classes=3))
    data.prepare(small, tmp_path, None)
    train, test = (data.load(small, tmp_path, split, name) for split in ("train", "test"))
    assert train.classes == test.classes == tuple(f"{name}-{i}" for i in range(3))
    assert (len(train.labels), len(test.labels)) == (12, 3)


def test_rendered_sets_repeat() -> None:
    for coloured in (False, True):
        drawn, _ = synthetic.glyphs(2, 1, characters="AБ∑", coloured=coloured)
        assert drawn.shape == (6, 32, 32, 3)
        assert drawn.reshape(6, -1).std(1).min() > 5  # every character shows
        assert np.array_equal(drawn, synthetic.glyphs(2, 1, characters="AБ∑", coloured=coloured)[0])
