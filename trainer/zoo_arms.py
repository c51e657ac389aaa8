"""Rivals that a zoo of trained networks offers: the one that does best on the samples, and its trunk under a new head.

The zoo is a bundle's: trunks (m, p), head rows (r, width + 1) of all models, and whose each row is. Networks without
a trunk are heads over the encoder's features; all of this holds for them as well, but a new head makes no sense.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from loomweight.architectures import ArchitectureSpec
from loomweight.bundle import Zoo
from loomweight.weight_vae import join
from trainer import arms
from trainer.arms import Setting

TEMPERATURES = 2.0 ** torch.arange(-3, 4)
PENALTIES = 10.0 ** torch.arange(-3, 2, dtype=torch.float64)
"""Of ridge regression, as shares of the features' mean variance."""


@dataclass(frozen=True)
class Read:
    """What every zoo model makes of the samples."""

    spec: ArchitectureSpec
    zoo: Zoo
    features: Tensor  # (m, n, width) of each model's own trunk; (1, n, width) where there is none
    y: Tensor  # (n,)
    classes: int

    def rows(self, model: int) -> Tensor:
        """A model's head rows (k, width + 1)."""
        return self.zoo.tensors["rows"][self.zoo.tensors["row_models"] == model].float()

    def weights(self, model: int, rows: Tensor) -> dict[str, Tensor]:
        """A network from a model's trunk and any head rows."""
        return join(self.spec, self.zoo.tensors["trunks"][model].float(), rows)


@torch.no_grad()
def read(spec: ArchitectureSpec, zoo: Zoo, s: Setting) -> Read:
    """Run every trunk of the zoo over the samples: the larger part of what these arms cost."""
    if not spec.trunk:
        return Read(spec, zoo, s.features[None], s.y, s.classes)
    x, no_head = arms.inputs(spec, s.x), torch.zeros(1, spec.width + 1)
    own = [spec.features(join(spec, trunk.float(), no_head), x) for trunk in zoo.tensors["trunks"]]
    return Read(spec, zoo, torch.stack(own), s.y, s.classes)


def match(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """The rows, one a class, that give the samples the highest likelihood: logits (n, rows), labels (n,) -> (classes,).

    The likelihood is that among all rows of the model; no two classes share a row.
    """
    said = F.log_softmax(logits, -1)
    gain = torch.stack([said[y == c].mean(0) for c in range(classes)])  # (classes, rows)
    _, chosen = linear_sum_assignment(gain.numpy(), maximize=True)
    return torch.from_numpy(chosen)


def best_model(r: Read) -> tuple[int, Tensor] | None:
    """The zoo model that fits the samples best once its head is permuted to fit, and the rows it keeps (k, width + 1).

    By likelihood at its best temperature, which is finer than accuracy; None where no model has enough classes.
    """
    found: list[tuple[float, int, Tensor]] = []
    counts = torch.bincount(r.zoo.tensors["row_models"]).tolist()
    for model, count in enumerate(counts):
        if count < r.classes:
            continue
        rows, features = r.rows(model), r.features[model if len(r.features) > 1 else 0]
        logits = F.linear(features, rows[:, :-1], rows[:, -1])  # (n, rows)
        chosen = match(logits, r.y, r.classes)
        tempered = (logits[:, chosen] * TEMPERATURES[:, None, None]).transpose(1, 2)  # (t, k, n)
        losses = F.cross_entropy(tempered, r.y.expand(len(TEMPERATURES), -1), reduction="none").mean(1)
        found.append((float(losses.min()), model, rows[chosen]))
    if not found:
        return None
    _, model, rows = min(found, key=lambda one: one[0])
    return model, rows


def best_trunk(r: Read) -> int | None:
    """The zoo model whose features a new linear head fits best: leave-one-out error of ridge regression, exactly.

    Where a class has a single image leaving it out leaves nothing to learn the class from: there it is `best_model`'s.
    """
    if int(torch.bincount(r.y, minlength=r.classes).min()) < 2:
        best = best_model(r)
        return None if best is None else best[0]
    return int(leave_one_out(r).argmin())


def leave_one_out(r: Read) -> Tensor:
    """Mean squared error of ridge regression on each trunk's features at its best penalty, every sample left out once.

    (m,); exact, from one decomposition a trunk.
    """
    x = r.features.double()
    x = x - x.mean(1, keepdim=True)
    u, size, _ = torch.linalg.svd(x, full_matrices=False)  # (m, n, w), (m, w)
    target = torch.eye(r.classes, dtype=torch.float64)[r.y]
    target = target - target.mean(0)
    penalty = PENALTIES[:, None, None] * size.square().mean(-1, keepdim=True)  # (p, m, 1)
    shrink = size.square() / (size.square() + penalty)  # (p, m, w)
    fitted = torch.einsum("mnw,pmw,mwk->pmnk", u, shrink, u.transpose(1, 2) @ target)
    leverage = 1 / x.shape[1] + torch.einsum("mnw,pmw->pmn", u.square(), shrink)
    error = ((target - fitted) / (1 - leverage).clamp(min=1e-6)[..., None]).square().mean((2, 3))  # (p, m)
    return error.amin(0)


def with_noise(
    spec: ArchitectureSpec, trunk: Tensor, rows: Tensor, share: float, generator: Generator
) -> dict[str, Tensor]:
    """A network with Gaussian noise on every tensor, as a share of that tensor's own spread."""
    weights = join(spec, trunk, rows)
    return {k: v + share * v.std(correction=0) * torch.randn(v.shape, generator=generator) for k, v in weights.items()}
