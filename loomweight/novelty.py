"""Novelty: how unlike the training tasks a request's classes are.

The distance is Mahalanobis's, from each class's mean feature to the nearest class mean of the zoo, whitened by the
spread of the zoo's class means (Lee et al. 2018 use it to find inputs from elsewhere). Few images make noisy means,
which lie farther out whatever they show; so distances are read off against those of familiar tasks with as many images.
"""

import torch
from torch import Tensor

from loomweight.bundle import Zoo
from loomweight.loom import Loom, Support, class_means

SHOTS = (1, 2, 4, 8)
"""Images a class at which familiar tasks were measured; a request is compared with the nearest of them."""
SHRINKAGE = 0.1
"""Share of the mean variance that is added in every direction: class means are few for so many dimensions."""


class Novelty:
    """The classes of a zoo, whitened; scores requests by their distance from them."""

    def __init__(self, zoo: Zoo) -> None:
        known = zoo.tensors["class_means"].float()  # (n, D)
        self.centre = known.mean(0)
        spread = known - self.centre
        covariance = spread.T @ spread / len(known)
        covariance += SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(covariance))
        self.whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        self.known = spread @ self.whiten
        self.familiar = zoo.tensors.get("familiar_distances")  # (shots, tasks)

    def distance(self, means: Tensor) -> float:
        """Mean over classes of the distance from class means (k, D) to the nearest that is known."""
        return float(torch.cdist((means - self.centre) @ self.whiten, self.known).amin(1).mean())

    def score(self, loom: Loom, support: Support) -> dict[str, float | str | None]:
        """The share of familiar tasks with as many images that lie nearer: 0 is familiar, 1 beyond them all.

        None where the bundle has no familiar tasks to compare with.
        """
        if self.familiar is None:
            return {"score": None, "warning": None}
        features, mask = loom.looked_at(support)
        with torch.inference_mode():
            distance = self.distance(class_means(features, mask)[0])
        images = float(mask.sum(-1).float().mean())
        level = min(range(len(SHOTS)), key=lambda i: abs(SHOTS[i] - images))
        share = float((self.familiar[level] < distance).float().mean())
        warning = None
        if share >= 0.99:
            warning = (
                "These images are unlike every task in training. Generated networks gain less on such data: trust the "
                "measured accuracy and the baselines beside it, not the bundle's card."
            )
        return {"score": share, "warning": warning}
