"""What stages hand to each other: roles all the way down to the bank, the gate, and a bundle at the end."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loomweight.bundle import Bundle
from loomweight.errors import GateFailed
from tests.loomweight.made import seeded
from trainer import bank, data, encoder, recipe, vae, zoo
from trainer.bank import Episodes, Shelf
from trainer.recipe import BankRecipe, DataRecipe, EncoderRecipe, Recipe, TargetRecipe
from trainer.tasks import Variant

TINY = recipe.load("tiny")
PHOTOGRAPHS = Recipe(
    "photographs",
    data=DataRecipe(domains=("cifar100",)),
    encoder=EncoderRecipe(steps=1, batch=8, width=2),
    bank=BankRecipe(per_class=6, per_class_views=4, views={"cifar100": ("invert",)}),
    targets={"head": TargetRecipe()},
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its bank on a stand-in for CIFAR-100: every picture shows its class as brightness."""
    run = tmp_path_factory.mktemp("photographs")
    for split, each in (("train", 6), ("test", 2)):
        labels = np.repeat(np.arange(100), each)
        images = np.broadcast_to((2 * labels)[:, None, None, None], (len(labels), 32, 32, 3)).astype(np.uint8)
        folder = run / "data" / "cifar100" / split
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", images)
        np.save(folder / "labels.npy", labels)
        (folder / "domain.json").write_text(json.dumps({"classes": [str(i) for i in range(100)]}))
    encoder.train(PHOTOGRAPHS, run)
    bank.build(PHOTOGRAPHS, run)
    return run


def test_the_encoder_sees_its_own_classes_alone(photographs: Path) -> None:
    sampler = encoder.Sampler(data.load_all(PHOTOGRAPHS, photographs, "train"), {})
    shown = set((sampler.images[0][:, 0, 0, 0] // 2).tolist())
    assert shown == {c for c in range(100) if data.role("cifar100", c) == "encoder"}
    assert sampler.classes == len(shown)
    assert set(sampler.labels[0].tolist()) == set(range(len(shown)))


def test_the_encoder_passes_over_domains_that_are_the_generator_s_alone(photographs: Path) -> None:
    # Given a domain of invented characters before one that the encoder learns
    own = data.load_all(PHOTOGRAPHS, photographs, "train")
    labels = np.repeat(np.arange(4), 3)
    invented = data.Domain("characters", np.full((12, 32, 32, 3), 255, np.uint8), labels, tuple("abcd"))
    alone, both = encoder.Sampler(own, {"cifar100": 2.0}), encoder.Sampler([invented, *own], {"cifar100": 2.0})
    # Then nothing of it is in what the encoder learns, not even a weight
    assert both.classes == alone.classes
    assert len(both.images) == len(own)
    (x, y), (z, w) = (s.draw(16, seeded()) for s in (alone, both))
    assert torch.equal(x, z)
    assert torch.equal(y, w)


def test_no_test_class_is_in_the_bank_and_no_validation_class_in_a_training_episode(photographs: Path) -> None:
    shelves = bank.load(PHOTOGRAPHS, photographs)
    assert {v.view for v in shelves} == {"plain", "invert"}
    for shelf in shelves.values():
        assert "test" not in shelf.roles
        assert not any(int(c) % 5 == 4 for c in shelf.classes)
        assert "validation" in shelf.roles
    episodes = Episodes(PHOTOGRAPHS, shelves, "head", 16)
    generator = seeded()
    drawn: dict[bool, set[str]] = {False: set(), True: set()}
    for validation in drawn:
        for _ in range(200):
            shelf = episodes.shelf(generator)
            places = episodes.classes(shelf, 4, generator, validation=validation)
            assert len(set(places.tolist())) == 4
            drawn[validation] |= {shelf.roles[i] for i in places}
    assert drawn == {False: {"encoder", "generator"}, True: {"validation"}}


def test_pictures_in_the_bank_stand_under_their_classes(photographs: Path) -> None:
    shelf = next(s for v, s in bank.load(PHOTOGRAPHS, photographs).items() if v.view == "plain")
    assert shelf.images.shape == (80, 6, 3, 32, 32)
    assert (shelf.images.flatten(1) == 2 * shelf.classes[:, None]).all()


def shelf_of(classes: int, images: int) -> Shelf:
    """Every picture another: its number shows in the pixels and in the features."""
    number = torch.arange(classes * images).view(classes, images)
    pictures = number.view(classes, images, 1, 1, 1).expand(-1, -1, 3, 32, 32).to(torch.uint8)
    features = number[..., None].float().expand(-1, -1, 8)
    return Shelf(Variant("glyphs", "plain", 0), torch.arange(classes), ("encoder",) * classes, pictures, features, {})


@pytest.mark.parametrize("rich", [0, 4, 100])
def test_what_conditions_never_judges(rich: int) -> None:
    shelf = shelf_of(5, 10)
    episodes = Episodes(TINY, {shelf.variant: shelf}, "head", 8)
    classes = torch.tensor([4, 0, 2])
    episode, many = episodes.episode([(shelf, classes), (shelf, classes)], 3, 5, seeded(), rich=rich)
    for task in range(2):
        support = episode.support.features[task, ..., 0]  # (k, m) numbers of pictures
        queries = episode.query_images[task, :, 0].view(3, 5)
        assert (support // 10 == classes[:, None]).all()
        assert (queries // 10 == classes[:, None]).all()
        assert not set(support.flatten().tolist()) & set(queries.flatten().tolist())
        if many is not None:
            assert many.features.shape[2] == min(rich, 5)
            assert not set(many.features[task, ..., 0].flatten().tolist()) & set(queries.flatten().tolist())
    assert episode.query_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert (many is None) == (rich == 0)


def test_a_shelf_too_small_to_judge_is_refused() -> None:
    shelf = shelf_of(3, 4)
    episodes = Episodes(TINY, {shelf.variant: shelf}, "head", 8)
    with pytest.raises(ValueError, match="4 images a class to condition on leave none of 4 to ask about"):
        episodes.episode([(shelf, torch.arange(3))], 4, 5, seeded())


def with_vae(change: Callable[[recipe.VaeRecipe], recipe.VaeRecipe]) -> Recipe:
    target = TINY.targets["head"]
    return replace(TINY, targets={"head": replace(target, vae=change(target.vae))})


def test_a_zoo_that_does_not_survive_its_codes_stops_the_run(tiny_run: Path, tmp_path: Path) -> None:
    # Given a finished zoo, and an autoencoder with one value where a head row has sixty-five
    for part in ("data", "encoder", "shared", "bank", "zoo"):
        (tmp_path / part).symlink_to(tiny_run / part)
    narrow = with_vae(lambda v: replace(v, steps=1, dim=1, gate=0.95))
    # When its stage has run, then it says so and the figures can be read
    with pytest.raises(GateFailed, match=r"head: decoded models keep .* of their originals' test accuracy"):
        vae.train(narrow, tmp_path)
    report = json.loads((tmp_path / "vae" / "head.json").read_text())
    assert report["kept"] < 0.95


def test_the_gate_lets_a_perfect_code_through(tiny_run: Path) -> None:
    # Given an autoencoder as wide as what it encodes
    spec = zoo.spec_of(tiny_run, "head")
    codes = vae.codes(spec, list(zoo.models(tiny_run, "head")))
    wide = vae.WeightVae(vae.WeightVaeConfig(0, spec.width + 1, 0, spec.width + 1)).requires_grad_(False)
    wide.encode_rows.weight.copy_(torch.eye(spec.width + 1))
    wide.decode_rows.weight.copy_(torch.eye(spec.width + 1))
    # Then everything is kept: centred rows answer as the rows themselves
    report = vae.gate(TINY, tiny_run, "head", wide, codes)
    assert report["kept"] == pytest.approx(1)
    assert report["kept_held_out"] == pytest.approx(1)


def test_every_seventh_model_is_held_out() -> None:
    assert [i for i in range(20) if vae.held_out(i)] == [6, 13]


def test_the_bundle_says_what_it_is_made_of(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    card = bundle.manifest["card"]
    assert set(card["training_data"]) == {"glyphs", "textures"}
    assert card["recipe_sha256"] == TINY.sha256
    assert {f"{stage} {t}" for stage in ("vae", "diffusion") for t in TINY.targets} <= set(card["stage_seconds"])
    assert all(0 < card["gate"][t]["kept"] <= 1.1 for t in TINY.targets)
    assert bundle.manifest["defaults"]["steps"] == TINY.sampling.steps
    assert [t.max_classes for t in bundle.targets] == [6, 6]
