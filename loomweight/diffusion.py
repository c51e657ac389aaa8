"""Gaussian diffusion over latents: the schedule, the forward process and two samplers. Shapes: latents (b, tokens,
dim).

One contract: `denoise(z, t) -> clean latent`, where t in [0, 1] is the time of each item (b,) and z its noisy latent.
The variance-preserving cosine schedule (Nichol & Dhariwal 2021, eq. 17), cut off so that t = 1 is pure noise.
Predicting the clean latent makes the first prediction, from noise alone, the conditional mean; sampling refines it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CosineSchedule:
    """alpha(t) scales the signal, sigma(t) the noise; alpha^2 + sigma^2 = 1."""

    offset: float = 0.008

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at time t, 1 at t = 0 and 0 at t = 1."""
        start = torch.cos(torch.tensor(self.offset / (1 + self.offset) * torch.pi / 2))
        alpha = torch.cos((t + self.offset) / (1 + self.offset) * torch.pi / 2) / start
        return torch.where(t >= 1, torch.zeros_like(alpha), alpha.clamp(0, 1))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale at time t."""
        return (1 - self.alpha(t).square()).clamp(min=0).sqrt()

    def diffuse(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noisy latent at times t (b,)."""
        view = (-1,) + (1,) * (clean.ndim - 1)
        return self.alpha(t).view(view) * clean + self.sigma(t).view(view) * noise


def sample(
    denoise: Denoise,
    noise: Tensor,
    steps: int,
    *,
    schedule: CosineSchedule | None = None,
    eta: float = 0.0,
    generator: Generator | None = None,
    progress: Progress = lambda step, steps: None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12) from `noise` (b, tokens, dim) to a clean latent in `steps` denoiser calls.

    eta 0 is deterministic given the noise; eta 1 is ancestral DDPM sampling on the same grid, and with 1,000 steps the
    reference sampler. eta > 0 needs a generator. `progress(step, steps)` is called before every step and may raise to
    stop.
    """
    schedule = schedule or CosineSchedule()
    if eta > 0 and generator is None:
        raise ValueError("eta > 0 draws noise: give a generator")
    times = torch.linspace(1, 0, steps + 1, dtype=noise.dtype)
    z = noise
    for i in range(steps):
        progress(i, steps)
        now, then = times[i], times[i + 1]
        clean = denoise(z, now.expand(len(z)))
        alpha, sigma = schedule.alpha(now), schedule.sigma(now)
        alpha_next, sigma_next = schedule.alpha(then), schedule.sigma(then)
        epsilon = (z - alpha * clean) / sigma
        # variance of the posterior q(z_next | z, clean), scaled by eta
        fresh = eta * (sigma_next / sigma) * (1 - (alpha / alpha_next).square()).clamp(min=0).sqrt()
        z = alpha_next * clean + (sigma_next.square() - fresh.square()).clamp(min=0).sqrt() * epsilon
        if eta > 0:
            z = z + fresh * torch.randn(z.shape, generator=generator, dtype=z.dtype)
    progress(steps, steps)
    return z
