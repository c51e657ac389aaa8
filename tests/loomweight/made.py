"""Small things made for the tests: specs, weights, supports, looms that answer something."""

import torch
from torch import Generator, Tensor

from loomweight import architectures
from loomweight.architectures import ArchitectureSpec
from loomweight.denoiser import DenoiserConfig
from loomweight.loom import Loom, LoomConfig, Support, denoiser_inputs
from loomweight.set_encoder import SetEncoderConfig
from loomweight.weight_vae import WeightVaeConfig

HEAD = architectures.head(24)
SPECS = (architectures.CNN_S, architectures.CNN_L, HEAD)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def weights(spec: ArchitectureSpec, classes: int, seed: int = 0) -> dict[str, Tensor]:
    """Random everywhere, biases too."""
    generator = seeded(seed)
    return {k: torch.randn(shape, generator=generator) * 0.2 for k, shape in spec.shapes(classes).items()}


def loom(spec: ArchitectureSpec, *, encoder_dim: int = 24, latents: int = 2, dim: int = 8, seed: int = 0) -> Loom:
    """Random parts, the output layers too: nothing is zero by initialisation."""
    torch.manual_seed(seed)
    latents = latents if spec.trunk else 0
    trunk = sum(layer.outputs * (layer.fan_in + 1) for layer in spec.trunk)
    classwise, overall = denoiser_inputs(spec, encoder_dim, 16)
    config = LoomConfig(
        spec.name,
        WeightVaeConfig(trunk, spec.width + 1, latents, dim),
        SetEncoderConfig(encoder_dim, 16, 2, 4),
        DenoiserConfig(latents, dim, classwise, overall, width=32, layers=2, heads=2),
    )
    made = Loom(spec, config)
    torch.nn.init.normal_(made.denoiser.latent_out.weight, std=0.5)
    made.vae.shared.copy_(0.2 * torch.randn(trunk))
    made.spread.copy_(0.5 + torch.rand(made.spread.shape))
    return made.eval().requires_grad_(False)


def support(made: Loom, classes: int, images: int, *, seed: int = 0) -> Support:
    """One task with every place filled."""
    generator = seeded(seed)
    spec, dim = made.spec, made.config.set_encoder.inputs
    features = torch.randn(1, classes, images, dim, generator=generator)
    if not spec.trunk:
        return Support(features, features, features, torch.ones(1, classes, images, dtype=torch.bool))
    pictures = spec.adapt(torch.rand(classes * images, 3, 32, 32, generator=generator))
    own = made.features(made.vae.shared, pictures).view(1, classes, images, -1)
    pictures = pictures.view(1, classes, images, *pictures.shape[1:])
    return Support(pictures, features, own, torch.ones(1, classes, images, dtype=torch.bool))


def padded(s: Support, extra: int, junk: float = 37.0) -> Support:
    """The same task with `extra` empty places a class, full of junk."""

    def grow(x: Tensor) -> Tensor:
        return torch.cat((x, torch.full((*x.shape[:2], extra, *x.shape[3:]), junk)), 2)

    mask = torch.cat((s.mask, torch.zeros(*s.mask.shape[:2], extra, dtype=torch.bool)), 2)
    return Support(grow(s.images), grow(s.features), grow(s.trunk_features), mask)
