"""The loom: all trained parts that fill one target architecture with weights, and how they fit together.

    images ─► features ─► condition (class tokens, set code) ─► denoiser ─► latents ─► trunk and row differences
                 └─► closed form on the generated trunk's own features ──────────────────────► + ─► network

What is diffused is the difference from the closed-form model: global latents move the trunk away from the shared
initialisation, class latents move head rows away from ridge regression on the generated trunk. Training and inference
both go through this file, so they cannot disagree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loomweight.architectures import ArchitectureSpec
from loomweight.closed_form import ClosedForm
from loomweight.denoiser import Condition, Denoiser, DenoiserConfig
from loomweight.set_encoder import SetEncoder, SetEncoderConfig
from loomweight.weight_vae import WeightVae, WeightVaeConfig, join

LOOKED_AT = 4
"""Images of a class that the encoder looks at for a target with a trunk: it is by far the slowest part of a request,
and more of them hardly move its means. The closed form reads all images through the small trunk."""


@dataclass(frozen=True)
class Support:
    """Conditioning images of b tasks of k classes with m places each; `mask` says which places are filled."""

    images: Tensor  # (b, k, m, c, h, w), adapted to the target; features for a target without a trunk
    features: Tensor  # (b, k, m or LOOKED_AT at least, encoder dim): of the first images of each class
    trunk_features: Tensor  # (b, k, m, width): of the shared initialisation
    mask: Tensor  # (b, k, m) bool

    @property
    def classes(self) -> int:
        """Number of classes, the same in all tasks of the batch."""
        return self.mask.shape[1]

    def part(self, tasks: slice) -> "Support":
        """Some tasks of the batch."""
        return Support(self.images[tasks], self.features[tasks], self.trunk_features[tasks], self.mask[tasks])


@dataclass(frozen=True)
class LoomConfig:
    """Shapes of all parts of one target."""

    target: str
    vae: WeightVaeConfig
    set_encoder: SetEncoderConfig
    denoiser: DenoiserConfig


def denoiser_inputs(spec: ArchitectureSpec, encoder_dim: int, set_width: int) -> tuple[int, int]:
    """Values of a condition per class and overall; see `Loom.condition`."""
    return encoder_dim + set_width + 2 * spec.width + 2, encoder_dim + set_width + 2


class Loom(nn.Module):
    """Everything trained for one target; see the module's text."""

    def __init__(self, spec: ArchitectureSpec, config: LoomConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.vae = WeightVae(config.vae)
        self.set_encoder = SetEncoder(config.set_encoder)
        self.closed_form = ClosedForm()
        self.denoiser = Denoiser(config.denoiser)
        # Spread of the differences by latent token and value, one row a global token and one for all classes: what is
        # diffused has unit scale whatever the zoo's.
        self.register_buffer("spread", torch.ones(config.vae.latents + 1, config.vae.dim))
        self.spread: Tensor

    def condition(self, support: Support) -> Condition:
        """What the denoiser is told: means of both kinds of features, closed-form rows, set codes, counts."""
        count = support.mask.sum(-1, keepdim=True)  # (b, k, 1)
        features, looked = self.looked_at(support)
        mean = class_means(features, looked)  # (b, k, D)
        trunk_mean = class_means(support.trunk_features, support.mask)  # (b, k, w)
        rows = self.closed_form(support.trunk_features, support.mask) / self.vae.row_scale
        class_codes, set_code = self.set_encoder(features, looked)
        classwise = torch.cat((mean, class_codes, trunk_mean, rows, count.log()), -1)
        shots = count.float().mean(1).log()
        classes = torch.full_like(shots, float(support.classes)).log()
        return Condition(classwise, torch.cat((mean.mean(1), set_code, shots, classes), -1))

    def looked_at(self, support: Support) -> tuple[Tensor, Tensor]:
        """Encoder features (b, k, n, D) of the images that the encoder looks at, and their mask (b, k, n)."""
        first = LOOKED_AT if self.spec.trunk else None
        return support.features[..., :first, :], support.mask[..., :first]

    def denoise(self, z: Tensor, t: Tensor, condition: Condition, keep: Tensor | None = None) -> Tensor:
        """Clean latents of unit scale (b, latents + k, dim) from noisy ones; where `keep` is 0 conditions drop."""
        keep = torch.ones(len(z)) if keep is None else keep
        out: Tensor = self.denoiser(z, t, condition.classwise, condition.overall, keep)
        return out

    def unscale(self, z: Tensor) -> Tensor:
        """From the diffusion's unit scale to the autoencoder's; `z / unscale(1)` goes back."""
        latents = self.config.vae.latents
        return z * torch.cat((self.spread[:latents], self.spread[latents:].expand(z.shape[1] - latents, -1)))

    def latent_shape(self, batch: int, classes: int) -> tuple[int, int, int]:
        """Shape of the latents of a batch of tasks."""
        return batch, self.config.vae.latents + classes, self.config.vae.dim

    def trunks(self, latents: Tensor) -> Tensor:
        """Flat trunk weights (b, p) of latents (b, latents + k, dim)."""
        return self.vae.decode(latents[:, : self.config.vae.latents])

    def features(self, trunk: Tensor, images: Tensor) -> Tensor:
        """What a head reads, (n, width), from one flat trunk (p,) and adapted images (n, c, h, w)."""
        if not self.spec.trunk:
            return images
        weights = join(self.spec, trunk, trunk.new_zeros(1, self.spec.width + 1))
        return self.spec.features(weights, images.contiguous(memory_format=torch.channels_last))

    def support_features(self, trunks: Tensor, support: Support) -> Tensor:
        """Features (b, k, m, width) of the conditioning images, each task's through its own trunk (b, p)."""
        if not self.spec.trunk:
            return support.trunk_features
        pairs = zip(trunks, support.images, strict=True)
        features = torch.stack([self.features(trunk, images.flatten(0, 1)) for trunk, images in pairs])
        return features.view(*support.mask.shape, -1)

    def rows(
        self, latents: Tensor, trunks: Tensor, support: Support, *, ridge_share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Head rows (b, k, width + 1) of latents on their decoded trunks, and the closed-form part of them alone."""
        heads = self.heads(self.support_features(trunks, support), support)
        return heads.rows(latents, ridge_share), heads.closed_form(ridge_share)

    def heads(self, features: Tensor, support: Support) -> "Heads":
        """Heads on the trunks' features (b, k, m, width) of the conditioning images."""
        return Heads(self, features, support.mask)

    def logits(self, trunk: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        """Logits (n, k) of one generated network on adapted images."""
        return nn.functional.linear(self.features(trunk, images), rows[:, :-1], rows[:, -1])


class Heads:
    """Head rows on given features; what they have in common is worked out once."""

    def __init__(self, loom: Loom, features: Tensor, mask: Tensor) -> None:
        self.features = features
        self._loom, self._mask = loom, mask
        self._closed: dict[float, Tensor] = {}

    def closed_form(self, ridge_share: float = 1.0) -> Tensor:
        """Rows (b, k, width + 1) without anything generated."""
        if ridge_share not in self._closed:
            self._closed[ridge_share] = self._loom.closed_form(self.features, self._mask, ridge_share=ridge_share)
        return self._closed[ridge_share]

    def rows(self, latents: Tensor, ridge_share: float = 1.0) -> Tensor:
        """Rows (b, k, width + 1) of latents (b, latents + k, dim)."""
        vae = self._loom.vae
        return self.closed_form(ridge_share) + vae.decode_row(latents[:, vae.config.latents :])


def class_means(features: Tensor, mask: Tensor) -> Tensor:
    """Class means (b, k, d) of features (b, k, m, d) where the mask (b, k, m) is set."""
    return ((mask / mask.sum(-1, keepdim=True))[..., None] * features).sum(-2)
