"""The frozen image encoder: images to features, the eyes of everything else.

A small residual convnet with batch norm (He et al. 2016, the "ResNet-9" shape used for fast CIFAR training), trained by
`trainer/encoder.py` to classify the training classes, then frozen. Its features condition the generator and carry the
`head` target.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SIDE = 32
"""Height and width, in pixels, that images are brought to."""


def preprocess(images: Tensor) -> Tensor:
    """Bring float images (n, 3, h, w) in [0, 1] to (n, 3, 32, 32): bilinear, antialiased, as the exported ONNX does."""
    if images.shape[-2:] == (SIDE, SIDE):
        return images
    return nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Shape of the encoder."""

    width: int = 32

    @property
    def dim(self) -> int:
        """Features per image."""
        return 8 * self.width


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = _block(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


def channels_last(encoder: "ImageEncoder") -> "ImageEncoder":
    """The same encoder with its weights laid out as CPU convolutions read them fastest."""
    laid_out: ImageEncoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return laid_out


class ImageEncoder(nn.Module):
    """Images (n, 3, 32, 32) in [0, 1] to features (n, dim)."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.body = nn.Sequential(
            _block(3, w),
            nn.MaxPool2d(2),  # (n, w, 16, 16)
            _block(w, 2 * w),
            nn.MaxPool2d(2),  # (n, 2w, 8, 8)
            _block(2 * w, 4 * w),
            _Residual(4 * w),
            nn.MaxPool2d(2),  # (n, 4w, 4, 4)
            _block(4 * w, 8 * w),
            _Residual(8 * w),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        # of raw features; set by calibrate() once training is over
        self.register_buffer("mean", torch.zeros(config.dim))
        self.mean: Tensor

    def raw(self, images: Tensor) -> Tensor:
        """Features as the classifier of the training classes reads them."""
        out: Tensor = self.body((images - 0.5) / 0.25)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Features of images; see the class."""
        # Centred and on the sphere of radius sqrt(dim): better for few images than raw features (docs/log.md, 2).
        out: Tensor = nn.functional.normalize(self.raw(images) - self.mean, dim=-1) * self.config.dim**0.5
        return out

    @torch.no_grad()
    def folded(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        """The body as (kind, weight, bias), batch norm folded into the convolutions; kinds: block, residual, pool."""
        steps = []
        for module in self.body:
            if isinstance(module, nn.MaxPool2d):
                steps.append(("pool", np.empty(0, np.float32), np.empty(0, np.float32)))
            elif isinstance(module, nn.Sequential | _Residual):
                block = module.block if isinstance(module, _Residual) else module
                conv, norm = block[0], block[1]
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                assert norm.running_mean is not None
                assert norm.running_var is not None
                factor = norm.weight / (norm.running_var + norm.eps).sqrt()
                weight = conv.weight * factor[:, None, None, None]
                bias = norm.bias - norm.running_mean * factor
                kind = "residual" if isinstance(module, _Residual) else "block"
                steps.append((kind, weight.contiguous().numpy(), bias.numpy()))
        return steps

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Set the centre from a sample (n, dim) of raw features."""
        self.mean.copy_(features.mean(0))
