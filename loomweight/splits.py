"""Which images condition and which rank."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loomweight.bundle import TargetInfo
from loomweight.errors import InvalidRequest

MAX_CONDITIONING = 400
"""Images that condition at most; more of a class are left aside by the seed."""


@dataclass(frozen=True)
class Split:
    """Images by role: for each class the indices that condition and those that rank."""

    classes: tuple[str, ...]
    conditioning: list[NDArray[np.int64]]
    holdout: list[NDArray[np.int64]]


def flatten_split(index: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Indices by class to image indices and class numbers."""
    truth = np.repeat(np.arange(len(index)), [len(i) for i in index])
    return torch.from_numpy(np.concatenate(index)), torch.from_numpy(truth)


def split_samples(labels: Sequence[str], holdout: float, seed: int, info: TargetInfo) -> Split:
    """Classes in sorted order; of each, the seed's choice of `holdout` of the samples (rounded down) ranks.

    What is more than `MAX_CONDITIONING` ranks as well, where anything does.
    """
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(str(label), []).append(i)
    classes = tuple(sorted(members))
    if not info.min_classes <= len(classes) <= info.max_classes:
        raise InvalidRequest(
            f"{info.id} takes {info.min_classes} to {info.max_classes} classes; these samples have {len(classes)}: "
            f"{json.dumps(classes[:5], ensure_ascii=False)}"
        )
    rng = np.random.default_rng(seed)
    conditioning, ranking = [], []
    most = max(1, MAX_CONDITIONING // len(classes))
    for name in classes:
        own = rng.permutation(np.array(members[name]))
        ranked = max(int(holdout * len(own)), len(own) - most if holdout else 0)
        ranked = min(ranked, len(own) - 1)  # every class needs an image to condition on
        ranking.append(own[:ranked])
        conditioning.append(own[ranked:][:most])
    return Split(classes, conditioning, ranking)
