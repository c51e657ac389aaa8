from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loomweight import candidates
from loomweight.architectures import CNN_S
from loomweight.bundle import Zoo
from loomweight.candidates import Sampling, Scale
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


@pytest.mark.parametrize(("guidance", "expected"), [(1.0, 3.0), (0.0, 1.0), (2.0, 5.0)])
def test_guidance_leads_from_unconditional_past_conditional(guidance: float, expected: float) -> None:
    of, condition = made()
    found = candidates.diffusion(of, told, condition, 3, replace(SAMPLING, guidance=guidance), quiet)
    sampled = [c.latents for c in found if c.origin in ("mean", "diffusion")]
    assert len(sampled) == 1 + SAMPLING.candidates
    for latents in sampled:
        torch.testing.assert_close(latents, torch.full((5, 8), expected))


def test_every_candidate_is_denoised_under_its_own_condition() -> None:
    # Given two tasks whose conditions say different numbers
    condition = Condition(torch.zeros(2, 3, 1), torch.tensor([[3.0], [7.0]]))

    def saying(z: Tensor, t: Tensor, c: Condition, keep: Tensor) -> Tensor:
        return (keep * c.overall[:, 0]).view(-1, 1, 1).expand(z.shape)

    # When both are sampled at once, with guidance, which doubles the batch
    noise = torch.zeros(2, 5, 8)
    found = sample(candidates.guided(saying, condition, 2.0), noise, 4)
    # Then each has its own
    torch.testing.assert_close(found, torch.tensor([6.0, 14.0]).view(2, 1, 1).expand(2, 5, 8))


def test_the_mean_is_the_prediction_from_noise_and_the_scaled_ones_are_made_of_it() -> None:
    of, condition = made()
    found = candidates.diffusion(of, noisy, condition, 3, SAMPLING, quiet)
    mean = candidates.draw_noise(of, 3, SAMPLING).mean(0)
    rest = {c.origin: c.latents for c in found if c.origin != "diffusion"}
    assert list(rest) == [s.origin for s in candidates.SCALES]
    for s in candidates.SCALES:
        expected = torch.cat((s.trunk * mean[:2], s.rows * mean[2:]))
        torch.testing.assert_close(rest[s.origin], expected)


def test_the_scales_end_with_the_closed_form_and_do_not_repeat_without_a_trunk() -> None:
    assert candidates.SCALES[-1] == Scale("closed-form", 0, 0)
    shares = [s.rows for s in candidates.scales(loom(HEAD))]
    assert shares == sorted(set(shares), reverse=True)
    assert candidates.scales(loom(HEAD))[-1].origin == "closed-form"


def test_temperature_zero_leaves_nothing_to_chance() -> None:
    of, condition = made()
    found = candidates.diffusion(of, noisy, condition, 3, replace(SAMPLING, temperature=0.0), quiet)
    assert not any(c.latents.any() for c in found if c.latents is not None)


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
