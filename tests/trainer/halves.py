"""Pictures any network can tell apart: of class 0 the left half is bright, of class 1 the right, of class 2 the top."""

import torch
from torch import Tensor


def halves(each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (3 each, 3, 32, 32) and labels."""
    generator = torch.Generator().manual_seed(seed)
    bright = torch.zeros(3, 1, 32, 32)
    bright[0, :, :, :16], bright[1, :, :, 16:], bright[2, :, :16] = 1, 1, 1
    y = torch.arange(3).repeat_interleave(each)
    return 0.7 * bright[y] + 0.3 * torch.rand(3 * each, 3, 32, 32, generator=generator), y
