"""Do weights look trained? A random matrix has no singular value far above Marchenko and Pastur's edge."""

import math

import torch
from torch import Tensor

from loomweight.similarity.layers import Reading


def structure(reading: Reading) -> float:
    """Mean over layers of the logarithm of (largest singular value / random edge): near 0 for fresh weights.

    The edge of an (m, n) matrix of independent entries of deviation s is s (sqrt(m) + sqrt(n)).
    """
    found = []
    for layer in reading.layers:
        matrix = layer.weight.flatten(1)
        matrix = matrix / matrix.abs().amax().clamp_min(1e-30)  # no scale matters, and none may leave the range
        spread = float((matrix - matrix.mean()).norm()) / math.sqrt(matrix.numel())
        edge = spread * (math.sqrt(matrix.shape[0]) + math.sqrt(matrix.shape[1]))
        found.append(math.log(max(_largest(matrix), 1e-30) / max(edge, 1e-30)) if edge else 0.0)
    return sum(found) / len(found)


def _largest(matrix: Tensor, *, rounds: int = 12) -> float:
    """Largest singular value, by power iteration from the columns' lengths: no order of rows or columns matters."""
    vector = matrix.norm(dim=0)
    size = 0.0
    for _ in range(rounds):
        vector = matrix.T @ (matrix @ vector)
        size = float(vector.norm())
        if not size:
            return 0.0
        vector = vector / size
    return float(torch.linalg.vector_norm(matrix @ vector))
