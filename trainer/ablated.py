"""Looms that lack one part each, for the ablations: the same interface, so training and evaluation don't know."""

from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from loomweight.architectures import ArchitectureSpec
from loomweight.denoiser import Condition
from loomweight.loom import Loom, LoomConfig, Support
from loomweight.weight_vae import WeightVae, WeightVaeConfig


class Ablated(Loom):
    """Lacks nothing; what the others are made from."""

    @classmethod
    def of(cls, loom: Loom, seed: int) -> Self:
        """The frozen parts of a loom with a fresh denoiser; by the stage's seed, the one that the stage starts from."""
        torch.manual_seed(seed)
        made = cls(loom.spec, cls.shape(loom.config))
        made.take(loom)
        made.vae.requires_grad_(False)
        made.set_encoder.requires_grad_(False)
        return made

    @classmethod
    def shape(cls, config: LoomConfig) -> LoomConfig:
        """Its shapes, from those of the full loom."""
        return config

    def take(self, loom: Loom) -> None:
        """Copy the frozen parts."""
        self.vae.load_state_dict(loom.vae.state_dict())
        self.set_encoder.load_state_dict(loom.set_encoder.state_dict())


class Unconditional(Ablated):
    """The denoiser never sees a condition; the closed form still reads the samples."""

    def denoise(self, z: Tensor, t: Tensor, condition: Condition, keep: Tensor | None = None) -> Tensor:
        """As of a loom, every condition dropped."""
        return super().denoise(z, t, condition, torch.zeros(len(z)))


def blank(condition: Condition, first: int, last: int) -> Condition:
    """A condition with some of its values at zero, per class and overall: both begin with features, then codes."""

    def zeroed(x: Tensor) -> Tensor:
        return torch.cat((x[..., :first], torch.zeros_like(x[..., first:last]), x[..., last:]), -1)

    return Condition(zeroed(condition.classwise), zeroed(condition.overall))


class WithoutCodes(Ablated):
    """The set encoder's codes are zero; the means of the encoder's features stay."""

    def condition(self, support: Support) -> Condition:
        """As of a loom, without codes."""
        sets = self.config.set_encoder
        return blank(super().condition(support), sets.inputs, sets.inputs + sets.width)


class WithoutEncoder(Ablated):
    """Neither the encoder's features nor codes made of them: what the shared trunk sees is all."""

    def condition(self, support: Support) -> Condition:
        """As of a loom, without anything that the image encoder says."""
        sets = self.config.set_encoder
        return blank(super().condition(support), 0, sets.inputs + sets.width)


class Unaligned(Ablated):
    """The set encoder as it is initialised, frozen: its shape without what the alignment taught it."""

    def take(self, loom: Loom) -> None:
        """Copy the frozen parts but for the set encoder."""
        self.vae.load_state_dict(loom.vae.state_dict())


PLACES = 20
"""Classes that have a position code: the most that a recipe trains."""


class ClassPlaces(Ablated):
    """Each class token is told its number (through the condition's own layers, a learned code): order matters."""

    @classmethod
    def shape(cls, config: LoomConfig) -> LoomConfig:
        """With the number of a class, one-hot, behind its condition."""
        return replace(config, denoiser=replace(config.denoiser, classwise=config.denoiser.classwise + PLACES))

    def condition(self, support: Support) -> Condition:
        """As of a loom, with places."""
        return placed(super().condition(support))


class Pooled(ClassPlaces):
    """Classes are numbered, and conditioned on the mean over all of them: which row is which class, nobody says."""

    def condition(self, support: Support) -> Condition:
        """The same for every class but for its place."""
        c = Loom.condition(self, support)
        pooled = c.classwise.mean(1, keepdim=True).expand_as(c.classwise)
        return placed(Condition(pooled, c.overall))


def placed(condition: Condition) -> Condition:
    """A condition with the number of each class behind its values."""
    batch, classes = condition.classwise.shape[:2]
    numbers = F.one_hot(torch.arange(classes), PLACES).float().expand(batch, -1, -1)
    return Condition(torch.cat((condition.classwise, numbers), -1), condition.overall)


class LatentsAlone(Ablated):
    """The behavioural loss ends before the denoiser, which learns from latents alone; the closed form learns by it."""

    def unscale(self, z: Tensor) -> Tensor:
        """As of a loom, without a gradient to the denoiser."""
        return super().unscale(z.detach())


class ZeroHead(Ablated):
    """Head rows are what the denoiser says, not what it adds to the closed form; that stays in its condition."""

    def rows(
        self, latents: Tensor, trunks: Tensor, support: Support, *, ridge_share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Rows from latents alone, and nothing that they would be added to."""
        rows = self.vae.decode_row(latents[:, self.config.vae.latents :])
        return rows, torch.zeros_like(rows)


TOKEN = 289
"""Values of a raw weight token, as in SANE."""


class RawWeights(Ablated):
    """No learned code: the tokens that are diffused are weights."""

    def __init__(self, spec: ArchitectureSpec, config: LoomConfig) -> None:
        # A learned autoencoder's dense maps would be thousands of times the network's size here: never made.
        super().__init__(spec, replace(config, vae=replace(config.vae, trunk=0)))
        self.config, self.vae = config, Chunks(config.vae)

    @classmethod
    def shape(cls, config: LoomConfig) -> LoomConfig:
        """As many tokens as the trunk's values fill."""
        latents = -(-config.vae.trunk // TOKEN)
        return replace(
            config,
            vae=replace(config.vae, latents=latents, dim=TOKEN),
            denoiser=replace(config.denoiser, latents=latents, dim=TOKEN),
        )

    def take(self, loom: Loom) -> None:
        """Copy the frozen parts; of the autoencoder, the scales."""
        self.set_encoder.load_state_dict(loom.set_encoder.state_dict())
        for name in ("shared", "scale", "row_scale"):
            getattr(self.vae, name).copy_(getattr(loom.vae, name))


class Chunks(WeightVae):
    """Differences from the shared initialisation, each layer at unit scale, in equal chunks (D2NWG's) of `TOKEN`
    values, the last one padded; a head row is one padded chunk. Exact, and nothing to learn.
    """

    def __init__(self, config: WeightVaeConfig) -> None:
        super().__init__(replace(config, trunk=0))
        self.config = config
        self.shared, self.scale = torch.zeros(config.trunk), torch.ones(config.trunk)

    def encode(self, trunk: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As of a weight autoencoder."""
        shape = self.config.latents, self.config.dim
        padding = shape[0] * shape[1] - self.config.trunk
        code = F.pad((trunk - self.shared) / self.scale, (0, padding))
        return torch.unflatten(code, -1, shape), self.encode_row(rows)

    def encode_row(self, rows: Tensor) -> Tensor:
        """As of a weight autoencoder."""
        return F.pad(rows / self.row_scale, (0, self.config.dim - self.config.row))

    def decode(self, trunk_code: Tensor) -> Tensor:
        """As of a weight autoencoder."""
        return self.shared + self.scale * trunk_code.flatten(-2)[..., : self.config.trunk]

    def decode_row(self, row_code: Tensor) -> Tensor:
        """As of a weight autoencoder."""
        return self.row_scale * row_code[..., : self.config.row]
