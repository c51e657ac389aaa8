from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from loomweight.diffusion import CosineSchedule, sample
from tests.loomweight.made import seeded

SCHEDULE = CosineSchedule()
MEAN, STD = 1.5, 0.4


def gaussian(z: Tensor, t: Tensor) -> Tensor:
    """The perfect denoiser of data from N(MEAN, STD^2): the posterior mean of the clean value."""
    alpha, sigma = (f(t).view(-1, 1, 1) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 1, generator=seeded(seed), dtype=torch.double)


def test_signal_falls_from_one_to_nothing_and_variance_is_preserved() -> None:
    t = torch.linspace(0, 1, 1001, dtype=torch.double)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert (alpha.diff() < 0).all()
    assert alpha[0].item() == pytest.approx(1, abs=1e-6)
    assert alpha[-1].item() == 0
    assert sigma[-1].item() == 1


def test_diffusing_scales_each_item_by_its_own_time() -> None:
    clean, eps = torch.ones(3, 2, 4), torch.full((3, 2, 4), 5.0)
    t = torch.tensor([0.0, 0.5, 1.0])
    z = SCHEDULE.diffuse(clean, t, eps)
    torch.testing.assert_close(z[0], clean[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(z[2], eps[2])
    torch.testing.assert_close(z[1], (SCHEDULE.alpha(t) + 5 * SCHEDULE.sigma(t))[1].expand(2, 4))


def test_one_step_is_the_conditional_mean() -> None:
    z = sample(gaussian, noise(5), 1)
    torch.testing.assert_close(z, torch.full_like(z, MEAN))


def test_ddim_follows_the_flow_that_carries_noise_to_the_data() -> None:
    # The probability flow between Gaussians is known: it carries a noise e to MEAN + STD e.
    start = noise(64)
    exact = MEAN + STD * start
    coarse, fine = (sample(gaussian, start, n) for n in (50, 1000))
    torch.testing.assert_close(fine, exact, atol=0.02, rtol=0)
    assert (fine - exact).abs().max() < 0.25 * (coarse - exact).abs().max()  # first order in the step


@pytest.mark.parametrize("steps", [2, 8, 50])
def test_ddim_of_few_steps_is_the_affine_map_it_should_be(steps: int) -> None:
    # Each step is affine in z for this denoiser: compose the steps by hand, as scale and shift
    times = torch.linspace(1, 0, steps + 1, dtype=torch.double)
    scale, shift = 1.0, 0.0
    for now, then in pairwise(times):
        a, s, a2, s2 = (f(x).item() for x in (now, then) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        gain = a * STD**2 / (a**2 * STD**2 + s**2)
        slope, offset = gain, MEAN * (1 - gain * a)  # clean = slope z + offset
        ratio = s2 / s
        scale, shift = (
            (a2 * slope + ratio * (1 - a * slope)) * scale,
            (a2 * slope + ratio * (1 - a * slope)) * shift + (a2 - ratio * a) * offset,
        )
    start = noise(16)
    torch.testing.assert_close(sample(gaussian, start, steps), scale * start + shift, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_reaches_the_data(eta: float) -> None:
    z = sample(gaussian, noise(10_000), 300, eta=eta, generator=seeded(1))
    # standard errors: 0.004 for the mean, 0.003 for the deviation; the rest is the grid's
    assert z.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert z.std().item() == pytest.approx(STD, abs=0.02)


def test_ancestral_sampling_forgets_its_start_and_ddim_does_not() -> None:
    start = noise(2_000)

    def kept(z: Tensor) -> float:
        return torch.corrcoef(torch.stack((start.flatten(), z.flatten())))[0, 1].item()

    assert kept(sample(gaussian, start, 200)) > 0.999
    assert kept(sample(gaussian, start, 200, eta=1.0, generator=seeded(1))) < 0.2


def test_a_full_ancestral_step_draws_from_the_posterior() -> None:
    # Given that nothing is left of the data in pure noise: the posterior is the prior, and knows nothing of its start
    one, other = (sample(gaussian, noise(8, seed), 2, eta=1.0, generator=seeded(9)) for seed in (1, 2))
    torch.testing.assert_close(one, other)
    half, another = (sample(gaussian, noise(8, seed), 2, eta=0.9, generator=seeded(9)) for seed in (1, 2))
    assert (half - another).abs().max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_same_noise_and_generator_give_the_same_bits(eta: float) -> None:
    def draw(seed: int) -> Tensor:
        return sample(gaussian, noise(8), 20, eta=eta, generator=seeded(seed))

    assert torch.equal(draw(1), draw(1))
    assert torch.equal(draw(1), draw(2)) == (eta == 0)


def test_ancestral_sampling_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="generator"):
        sample(gaussian, noise(1), 4, eta=1.0)


def test_progress_is_told_before_every_step_and_may_stop() -> None:
    told: list[tuple[int, int]] = []
    sample(gaussian, noise(1), 3, progress=lambda step, steps: told.append((step, steps)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    calls: list[Tensor] = []

    def counting(z: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return z

    with pytest.raises(KeyboardInterrupt):
        sample(counting, noise(1), 9, progress=stop_at(4))
    assert len(calls) == 4


def stop_at(last: int) -> Callable[[int, int], None]:
    def progress(step: int, steps: int) -> None:
        if step == last:
            raise KeyboardInterrupt

    return progress
