from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loomweight import candidates
from loomweight.architectures import CNN_S
from loomweight.bundle import Zoo
from loomweight.candidates import CLOSED_FORM, MEAN, SCALES, Kind, Sampling, kinds, weave
from loomweight.denoiser import Condition
from loomweight.diffusion import sample
from loomweight.loom import Loom, Support
from tests.loomweight.made import HEAD, loom, seeded, support

SAMPLING = Sampling(steps=4, guidance=1.0, temperature=1.0, candidates=3, seed=1)


def quiet(step: int, steps: int) -> None:
    """No progress to tell."""


def told(z: Tensor, t: Tensor, condition: Condition, keep: Tensor) -> Tensor:
    """A denoiser that says 3 where it sees the condition and 1 where not."""
    return (1 + 2 * keep).view(-1, 1, 1).expand(z.shape)


def noisy(z: Tensor, t: Tensor, condition: Condition, keep: Tensor) -> Tensor:
    """A denoiser that leaves the noise as it is."""
    return z


def made() -> tuple[Loom, Condition]:
    """A loom of unit scale and the condition of a task."""
    unit = loom(CNN_S)
    unit.spread.fill_(1)
    return unit, unit.condition(support(unit, 3, 4))


def both(of: Loom) -> list[Kind]:
    return kinds(of, "diffusion", SAMPLING.candidates, "mean")


def origins(found: list[Kind]) -> list[str]:
    return [k.origin for k in found]


@pytest.mark.parametrize(("guidance", "expected"), [(1.0, 3.0), (0.0, 1.0), (2.0, 5.0)])
def test_guidance_leads_from_unconditional_past_conditional(guidance: float, expected: float) -> None:
    of, condition = made()
    found = weave(of, told, condition, both(of), replace(SAMPLING, guidance=guidance), quiet)[0]
    sampled = [z for z, k in zip(found, both(of), strict=True) if k.origin in ("mean", "diffusion")]
    assert len(sampled) == 1 + SAMPLING.candidates
    for latents in sampled:
        torch.testing.assert_close(latents, torch.full((5, 8), expected))


def test_every_candidate_is_denoised_under_its_own_condition() -> None:
    # Given two tasks whose conditions say different numbers
    condition = Condition(torch.zeros(2, 3, 1), torch.tensor([[3.0], [7.0]]))
    of, _ = made()

    def saying(z: Tensor, t: Tensor, c: Condition, keep: Tensor) -> Tensor:
        return (keep * c.overall[:, 0]).view(-1, 1, 1).expand(z.shape)

    # When both are woven at once, with guidance, which doubles the batch
    wanted = [k for k in both(of) if k.origin in ("mean", "diffusion")]
    found = weave(of, saying, condition, wanted, replace(SAMPLING, guidance=2.0), quiet)
    # Then each has its own, the conditional mean and every sample
    torch.testing.assert_close(found, torch.tensor([6.0, 14.0]).view(2, 1, 1, 1).expand(2, 4, 5, 8))


def test_the_mean_is_one_prediction_from_nothing_and_the_shares_are_made_of_it() -> None:
    # Given a denoiser that knows whether it is asked about zero latents at full noise
    of, condition = made()
    asked: list[int] = []

    def from_nothing(z: Tensor, t: Tensor, c: Condition, keep: Tensor) -> Tensor:
        asked.append(len(z))
        assert not z.any()
        assert t.tolist() == [1.0]
        return 2 + torch.arange(z.numel()).view(z.shape).float()

    # When nothing is sampled, then it is called once
    found = kinds(of, MEAN, 8, "mean")
    latents = weave(of, from_nothing, condition, found, SAMPLING, quiet)[0]
    assert asked == [1]
    mean = 2 + torch.arange(40).view(5, 8).float()
    for z, k in zip(latents, found, strict=True):
        torch.testing.assert_close(z, torch.cat((k.trunk * mean[:2], k.rows * mean[2:])))


def test_samples_start_from_their_own_noise_the_same_under_every_condition() -> None:
    of, one = made()
    several = Condition(one.classwise.repeat(3, 1, 1), one.overall.repeat(3, 1))
    wanted = [k for k in both(of) if k.origin == "diffusion"]
    found = weave(of, noisy, several, wanted, SAMPLING, quiet)
    noise = torch.stack([noisy_sample(z) for z in candidates.draw_noise(of, 3, SAMPLING)])
    torch.testing.assert_close(found, noise.expand(3, -1, -1, -1))


def noisy_sample(noise: Tensor) -> Tensor:
    """What sampling from this noise ends with where the denoiser says that it is clean."""
    return sample(lambda z, t: z, noise[None], SAMPLING.steps)[0]


def test_the_closed_form_is_always_among_the_kinds_and_the_prior_first() -> None:
    for spec in (CNN_S, HEAD):
        of = loom(spec)
        for method in (MEAN, "diffusion"):
            for count in (1, 2, 8):
                for prior in ("mean", "mean-half", "closed-form"):
                    found = kinds(of, method, count, prior)
                    assert found[0].origin == prior
                    assert found.count(CLOSED_FORM) == 1
                    assert len(set(found)) == len(found)
    assert origins(kinds(loom(CNN_S), MEAN, 8, "mean")) == [k.origin for k in SCALES]
    assert origins(kinds(loom(CNN_S), "diffusion", 2, "mean")) == [*(k.origin for k in SCALES), *["diffusion"] * 2]


def test_candidates_bound_the_shares_of_the_mean_beside_the_closed_form() -> None:
    of = loom(CNN_S)
    assert origins(kinds(of, MEAN, 1, "mean-half")) == ["mean-half", "closed-form"]
    assert origins(kinds(of, MEAN, 2, "mean-half")) == ["mean-half", "mean", "closed-form"]
    assert len(kinds(of, MEAN, 64, "mean")) == len(SCALES)


def test_without_a_trunk_rows_are_shared_and_the_nearest_mean_stands_alone_as_well() -> None:
    of = loom(HEAD)
    found = kinds(of, MEAN, 8, "mean")
    assert origins(found) == ["mean", "mean-half", "mean-quarter", "closed-form", "nearest-mean"]
    # Given latents of nothing, then the two closed forms are the two of the task
    task = support(of, 3, 5)
    nothing = torch.zeros(of.latent_shape(1, 3))[0]
    made = {k.origin: candidates.decode(of, candidates.pending(nothing, k), task).rows for k in found if k.closed}
    features = task.trunk_features, task.mask
    torch.testing.assert_close(made["closed-form"], of.closed_form(*features)[0])
    torch.testing.assert_close(made["nearest-mean"], of.closed_form(*features, ridge_share=0)[0])
    assert not torch.allclose(made["closed-form"], made["nearest-mean"])


def test_temperature_zero_leaves_nothing_to_chance() -> None:
    of, condition = made()
    assert not weave(of, noisy, condition, both(of), replace(SAMPLING, temperature=0.0), quiet).any()


def test_more_candidates_leave_the_noise_of_the_first_as_it_was() -> None:
    few, many = (candidates.draw_noise(loom(CNN_S), 2, replace(SAMPLING, candidates=n)) for n in (2, 7))
    assert torch.equal(many[:2], few)


def zoo_of(of: Loom, tasks: list[Support], codes: Tensor) -> Zoo:
    """One model a task, told apart by the values of its trunk and rows."""
    k, trunk = tasks[0].classes, of.config.vae.trunk
    numbers = torch.arange(len(tasks), dtype=torch.float)
    return Zoo(
        {
            "set_codes": codes,
            "class_counts": torch.tensor([t.classes for t in tasks]),
            "row_models": torch.arange(len(tasks)).repeat_interleave(k),
            "class_means": torch.cat([t.features[0].mean(1) for t in tasks]).half(),
            "rows": torch.arange(len(tasks) * k).view(-1, 1).expand(-1, of.config.vae.row).half(),
            "trunks": numbers.view(-1, 1).expand(-1, trunk).half(),
            "trunk_codes": torch.zeros(len(tasks), of.config.vae.latents, of.config.vae.dim),
        }
    )


def test_retrieval_finds_the_task_and_puts_its_rows_in_the_request_s_order() -> None:
    # Given a zoo of four tasks, and a request that is task 2 with its classes in another order
    of = loom(CNN_S)
    tasks = [support(of, 3, 6, seed=seed) for seed in range(4)]
    codes = torch.cat([of.set_encoder(t.features, t.mask)[1] for t in tasks])
    order = torch.tensor([2, 0, 1])
    t = tasks[2]
    request = Support(t.images[:, order], t.features[:, order], t.trunk_features[:, order], t.mask[:, order])
    # When the nearest are asked for, then task 2's model comes first, its rows 6, 7, 8 reordered
    found = candidates.retrieve(of, request, zoo_of(of, tasks, codes), SAMPLING)
    assert len(found) == 3
    assert found[0].trunk.unique().tolist() == [2.0]
    assert found[0].rows[:, 0].tolist() == [8.0, 6.0, 7.0]


def test_retrieval_passes_over_models_with_too_few_classes() -> None:
    of = loom(CNN_S)
    tasks = [support(of, 3, 6, seed=seed) for seed in range(2)]
    codes = torch.randn(2, 16, generator=seeded())
    assert candidates.retrieve(of, support(of, 4, 2), zoo_of(of, tasks, codes), SAMPLING) == []
