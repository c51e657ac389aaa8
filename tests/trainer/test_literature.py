"""What the literature's recipes ask of the stages: whole data sets, many seeds, whole weights, latents alone."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from loomweight import alignment
from tests.loomweight.made import seeded
from tests.trainer.test_data import labelled
from tests.trainer.test_zoo import fresh
from trainer import bank, diffusion, recipe, tasks, vae, zoo
from trainer.recipe import GeneratorRecipe, Recipe, ZooRecipe

TINY = recipe.load("tiny")
AS_PUBLISHED = {"behaviour_only": 0.0, "behaviour": 0.0, "from_zoo": 1.0, "latent_loss": 0.5, "closed_form": False}


def with_target(name: str, **parts: object) -> Recipe:
    return replace(TINY, targets={name: replace(TINY.targets[name], **parts)})  # type: ignore[arg-type]


def test_whole_data_sets_come_in_turn_with_their_classes_in_order() -> None:
    shipped = recipe.load("table4")
    domains = {name: labelled(name, 10) for name in shipped.data.domains}
    count = shipped.targets["cnn-l"].zoo.models
    drawn = [tasks.whole(shipped, domains, i) for i in range(count)]
    assert {t.classes for t in drawn} == {tuple(range(10))}
    names = [t.variant.domain for t in drawn]
    assert names[:4] == ["mnist", "fashion-mnist", "cifar10", "mnist"]
    assert {names.count(name) for name in shipped.data.domains} == {count // 3}
    assert {t.variant.view for t in drawn} == {"plain"}


def test_a_whole_photograph_set_leaves_out_the_withheld_classes() -> None:
    photographs = replace(TINY, data=replace(TINY.data, domains=("cifar100",)))
    task = tasks.whole(photographs, {"cifar100": labelled("cifar100", 100)}, 3)
    assert len(task.classes) == 76
    assert not any(c % 5 == 4 or c % 25 == 23 for c in task.classes)


def test_seeds_of_a_data_set_are_aligned_to_its_first(tiny_run: Path, tmp_path: Path) -> None:
    # Given two seeds of two data sets, and the last of them built alone
    seeds = with_target("cnn-s", zoo=ZooRecipe(models=4, tasks="whole", init="independent", epochs=1, lr=1e-2))
    whole, part = fresh(tiny_run, tmp_path / "whole"), fresh(tiny_run, tmp_path / "part")
    zoo.build(seeds, whole, "cnn-s")
    zoo.build(seeds, part, "cnn-s", shard=3, shards=4)
    models = list(zoo.models(whole, "cnn-s"))
    assert [m.task.variant.domain for m in models] == ["glyphs", "textures", "glyphs", "textures"]
    # Then it stands in the order that matches it to the first of its data set, and not in another's
    spec = zoo.spec_of(whole, "cnn-s")
    found = alignment.match(spec, models[3].weights, models[1].weights, seeded())
    assert all(torch.equal(order, torch.arange(len(order))) for order in found.values())
    assert [zoo.reference_of(seeds, "cnn-s", i) for i in range(4)] == [0, 0, 0, 1]
    # and its shard made its references for itself
    alone = next(m for m in zoo.models(part, "cnn-s") if m.index == 3)
    assert all(torch.equal(alone.weights[k], v) for k, v in models[3].weights.items())


def trainer(run: Path, target: str) -> diffusion.Trainer:
    settings = replace(TINY.targets[target].diffusion, train_decoder=False, **AS_PUBLISHED)
    return diffusion.Trainer(with_target(target, diffusion=settings), run, target, bank.load(TINY, run))


@pytest.mark.parametrize("target", ["cnn-s", "head"])
def test_without_the_closed_form_latents_are_whole_weights(tiny_run: Path, target: str) -> None:
    # Given zoo models as the denoiser is to make them
    t = trainer(tiny_run, target)
    with torch.no_grad():
        models, picks = t.zoo_tasks(seeded())
        support = t.episodes.episode(picks, 2, 2, seeded())[0].support
        latents = t.zoo_latents(models, support)
        rows, base = t.loom.rows(latents, t.loom.trunks(latents), support)
        # Then the way back gives the autoencoder's own rows, whatever the images
        wanted = torch.stack([c.rows for c in models])
        assert torch.allclose(rows, t.loom.vae.decode_row(t.loom.vae.encode_row(wanted)), atol=1e-5)
        assert base.abs().max() < 1e-6 * wanted.abs().max()


def test_the_closed_form_stays_silent_in_what_is_loaded(tiny_run: Path) -> None:
    t = trainer(tiny_run, "head")
    assert not any(p.requires_grad for p in t.loom.closed_form.parameters())
    # and speaks where the recipe does not say otherwise
    assert diffusion.new_loom(TINY, tiny_run, "head").closed_form.scale[0] > 0


def test_latents_alone_are_learned_from_the_zoo_alone(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(tiny_run, "cnn-s")
    monkeypatch.setattr(t, "fresh", lambda generator: pytest.fail("a task without a zoo model"))
    monkeypatch.setattr(t.loom, "logits", lambda *_: pytest.fail("a network ran"))
    generator = seeded()
    for i in range(6):
        loss, figures = t.step(i, generator)
        assert set(figures) == {"latent"}
        assert loss.item() == pytest.approx(0.5 * figures["latent"])
        assert loss.requires_grad


def test_an_autoencoder_without_behaviour_runs_no_network(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fresh(tiny_run, tmp_path / "run")
    (run / "zoo").symlink_to(tiny_run / "zoo")
    monkeypatch.setattr(vae, "task_images", lambda *_: pytest.fail("images were asked for"))
    vae.train(with_target("head", vae=replace(TINY.targets["head"].vae, steps=2, behaviour=0.0)), run)
    assert json.loads((run / "vae" / "head.json").read_text())["kept"] > 0.5


def test_younger_settings_leave_the_hash_of_older_recipes_alone() -> None:
    # Given a stage as it was, and with a setting that came later
    @dataclass(frozen=True)
    class Old:
        steps: int = 3

    @dataclass(frozen=True)
    class New(Old):
        flag: bool = field(default=True, metadata=recipe.LATER)

    assert recipe._settings({"a": New()}) == recipe._settings({"a": Old()}) == {"a": {"steps": 3}}
    assert recipe._settings(New(flag=False)) == {"steps": 3, "flag": False}
    # Then a recipe's hash follows what such a setting says, where it says something else
    changed = [
        with_target("head", zoo=replace(TINY.targets["head"].zoo, tasks="whole")),
        with_target("head", diffusion=replace(TINY.targets["head"].diffusion, closed_form=False)),
        with_target("head"),
    ]
    assert len({TINY.sha256, *(r.sha256 for r in changed)}) == 4


def test_settings_that_learn_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="every step needs a latent one"):
        GeneratorRecipe(behaviour=0.0, behaviour_only=0.5)
    with pytest.raises(ValueError, match="every step needs a latent one"):
        GeneratorRecipe(behaviour=0.0, behaviour_only=0.0, latent_loss=0.0)
    with pytest.raises(ValueError, match='"drawn" or "whole", not \'all\''):
        ZooRecipe(tasks="all")
