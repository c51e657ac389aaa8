"""Ablations are the stage with one part less: the stage itself where none is left out, and really less elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loomweight import architectures
from loomweight.denoiser import Condition
from loomweight.loom import Support
from tests.loomweight.made import loom, seeded, support
from trainer import ablated, ablations, bank, recipe, tasks
from trainer.ablations import ABLATIONS
from trainer.recipe import Recipe

TINY = recipe.load("tiny")
STARTER = recipe.load("starter")
SPEC = architectures.CNN_S
NO_PHOTOGRAPHS = ("photographs",)  # the tiny recipe has none


def short(steps: int) -> Recipe:
    return ablations.of_generator(TINY, "cnn-s", steps=steps)


def test_the_full_ablation_is_the_stage_bit_for_bit(tiny_run: Path, tmp_path: Path) -> None:
    ablations.train("full", TINY, tiny_run, "cnn-s", bank.load(TINY, tiny_run), tmp_path)
    ours, stage = (load_file(p) for p in (tmp_path / "loom.safetensors", tiny_run / "diffusion" / "cnn-s.safetensors"))
    assert set(ours) == set(stage)
    assert all(torch.equal(ours[k], stage[k]) for k in stage)


@pytest.mark.parametrize("name", [n for n in ABLATIONS if n not in NO_PHOTOGRAPHS])
def test_every_ablation_trains_and_is_found_again(name: str, tiny_run: Path, tmp_path: Path) -> None:
    # Given a short recipe
    few = short(2)
    # When an ablation is trained and loaded
    ablations.train(name, few, tiny_run, "cnn-s", bank.load(TINY, tiny_run), tmp_path)
    made = ablations.load(name, few, tiny_run, "cnn-s", tmp_path)
    # Then it answers a task with a network
    task = support(made, classes=3, images=4)
    z = torch.randn(made.latent_shape(1, 3), generator=seeded())
    latents = made.unscale(made.denoise(z, torch.ones(1), made.condition(task)))
    rows, _ = made.rows(latents, made.trunks(latents), task)
    assert torch.isfinite(rows).all()
    # And its denoiser, which starts at zero, has learned
    assert made.denoiser.latent_out.weight.abs().sum() > 0


def test_what_is_trained_from_elsewhere_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*") if p.is_file()}
    ablations.train("zoo-40", short(1), tiny_run, "cnn-s", bank.load(TINY, tiny_run), tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*") if p.is_file()} == before


def test_a_smaller_zoo_has_the_first_models_and_an_autoencoder_of_its_own(tiny_run: Path, tmp_path: Path) -> None:
    run = ablations.smaller_zoo(TINY, tiny_run, "cnn-s", 5, tmp_path)
    assert sorted(p.stem for p in (run / "zoo" / "cnn-s").glob("*.json")) == [f"{i:05d}" for i in range(5)]
    ours, theirs = (load_file(r / "vae" / "cnn-s.safetensors") for r in (run, tiny_run))
    assert torch.equal(ours["shared"], theirs["shared"])
    assert not torch.equal(ours["decode_trunk.weight"], theirs["decode_trunk.weight"])


def test_fewer_domains_and_views_are_those_of_the_full_recipe() -> None:
    everything = set(tasks.variants(STARTER))
    photographs = tasks.variants(ABLATIONS["photographs"].change(STARTER, "cnn-l"))
    assert {v.domain for v in photographs} == {"cifar100", "tiny-imagenet-32"}
    known = tasks.variants(ABLATIONS["known-classes"].change(STARTER, "cnn-l"))
    left = everything - set(known)
    assert {v.view for v in left} == {"turn-90", "turn-180", "turn-270", "jigsaw"}
    # A view's seed depends on its place: another seed would be other images, which no bank has.
    assert set(photographs) | set(known) <= everything


def conditions(kind: type[ablated.Ablated], task: Support) -> tuple[ablated.Ablated, Condition]:
    made = kind.of(loom(SPEC), 0).eval().requires_grad_(False)
    torch.nn.init.normal_(made.denoiser.latent_out.weight, std=0.5, generator=seeded(3))
    return made, made.condition(task)


def answer(made: ablated.Ablated, task: Support) -> torch.Tensor:
    z = torch.zeros(made.latent_shape(1, task.classes))
    with torch.no_grad():
        return made.denoise(z, torch.ones(1), made.condition(task))


@pytest.fixture
def task() -> Support:
    return support(loom(SPEC), classes=3, images=4)


@pytest.fixture
def other() -> Support:
    return support(loom(SPEC), classes=3, images=4, seed=9)


@pytest.mark.parametrize("kind", [ablated.Ablated, ablated.WithoutCodes, ablated.ClassPlaces])
def test_a_conditional_loom_answers_another_task_otherwise(
    kind: type[ablated.Ablated], task: Support, other: Support
) -> None:
    made, _ = conditions(kind, task)
    assert not torch.allclose(answer(made, task), answer(made, other))


def test_an_unconditional_loom_answers_every_task_alike(task: Support, other: Support) -> None:
    made, _ = conditions(ablated.Unconditional, task)
    assert torch.equal(answer(made, task), answer(made, other))


@pytest.mark.parametrize("kind", [ablated.WithoutCodes, ablated.WithoutEncoder])
def test_what_is_blank_says_nothing_and_the_rest_is_as_it_was(kind: type[ablated.Ablated], task: Support) -> None:
    made, ours = conditions(kind, task)
    _, full = conditions(ablated.Ablated, task)
    features, codes = made.config.set_encoder.inputs, made.config.set_encoder.width
    first = features if kind is ablated.WithoutCodes else 0
    for mine, theirs in ((ours.classwise, full.classwise), (ours.overall, full.overall)):
        assert mine.shape == theirs.shape
        assert not mine[..., first : features + codes].any()
        assert theirs[..., first : features + codes].any()
        assert torch.equal(mine[..., :first], theirs[..., :first])
        assert torch.equal(mine[..., features + codes :], theirs[..., features + codes :])


def test_without_the_encoder_its_features_are_not_read(task: Support) -> None:
    made, _ = conditions(ablated.WithoutEncoder, task)
    moved = replace(task, features=task.features.flip(0) + 1)
    assert torch.equal(answer(made, task), answer(made, moved))


def test_an_unaligned_set_encoder_is_not_the_aligned_one() -> None:
    full = loom(SPEC)
    made = ablated.Unaligned.of(full, 1)
    assert not torch.equal(made.set_encoder.embed.weight, full.set_encoder.embed.weight)
    assert torch.equal(made.vae.decode_trunk.weight, full.vae.decode_trunk.weight)
    assert not any(p.requires_grad for p in made.set_encoder.parameters())


def test_places_break_the_exact_symmetry_of_classes(task: Support) -> None:
    order = torch.tensor([2, 0, 1])
    moved = Support(*(x[:, order] for x in (task.images, task.features, task.trunk_features, task.mask)))
    for kind, symmetric in ((ablated.Ablated, True), (ablated.ClassPlaces, False)):
        made, _ = conditions(kind, task)
        first = made.config.vae.latents
        there = torch.cat((torch.arange(first), first + order))
        assert torch.allclose(answer(made, moved), answer(made, task)[:, there], atol=1e-4) is symmetric


def test_pooled_conditions_do_not_say_which_class_is_which(task: Support) -> None:
    order = torch.tensor([2, 0, 1])
    moved = Support(*(x[:, order] for x in (task.images, task.features, task.trunk_features, task.mask)))
    made, ours = conditions(ablated.Pooled, task)
    torch.testing.assert_close(ours.classwise, made.condition(moved).classwise, atol=1e-4, rtol=1e-4)


def test_the_behavioural_loss_does_not_reach_the_denoiser_of_latents_alone(task: Support) -> None:
    for kind, reached in ((ablated.Ablated, True), (ablated.LatentsAlone, False)):
        made = kind.of(loom(SPEC), 0)
        torch.nn.init.normal_(made.denoiser.latent_out.weight, std=0.5)
        clean = made.denoise(torch.zeros(made.latent_shape(1, 3)), torch.ones(1), made.condition(task))
        latents = made.unscale(clean)
        rows, _ = made.rows(latents, made.trunks(latents), task)
        rows.square().sum().backward()  # type: ignore[no-untyped-call]
        assert (made.denoiser.latent_out.weight.grad is not None) is reached
        assert made.closed_form.scale.grad is not None


def test_a_zero_head_starts_at_nothing(task: Support) -> None:
    made = ablated.ZeroHead.of(loom(SPEC), 0)
    zero = torch.zeros(made.latent_shape(1, 3))
    rows, base = made.rows(zero, made.trunks(zero), task)
    assert not rows.any()
    assert not base.any()


def test_raw_weights_are_exact_and_zero_is_the_shared_network() -> None:
    full = loom(architectures.CNN_L)
    full.vae.scale.copy_(0.5 + torch.rand(full.vae.scale.shape, generator=seeded()))
    full.vae.row_scale.copy_(0.5 + torch.rand(full.vae.row_scale.shape, generator=seeded()))
    made = ablated.RawWeights.of(full, 0)
    coder, config = made.vae, made.config.vae
    trunk, rows = torch.randn(2, config.trunk, generator=seeded(1)), torch.randn(2, 5, config.row, generator=seeded(2))
    code, row_code = coder.encode(trunk, rows)
    assert code.shape == (2, 37, ablated.TOKEN)  # 10,643 values below the head
    assert row_code.shape == (2, 5, ablated.TOKEN)
    torch.testing.assert_close(coder.decode(code), trunk)
    torch.testing.assert_close(coder.decode_row(row_code), rows)
    assert torch.equal(coder.decode(torch.zeros_like(code))[0], full.vae.shared)
    assert not hasattr(coder, "decode_trunk")
