"""The two frozen networks that a request runs, behind one interface."""

from typing import Protocol

import torch
from torch import Tensor

from loomweight.bundle import Bundle


class Runtime(Protocol):
    """Runs a bundle's encoder and denoisers."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) -> features (n, dim)."""
        ...

    def denoise(self, target: str, z: Tensor, t: Tensor, classwise: Tensor, overall: Tensor, keep: Tensor) -> Tensor:
        """One call of a target's denoiser; see `Denoiser.forward`."""
        ...


class TorchRuntime:
    """Both networks in torch."""

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.encoder = bundle.encoder.to(self.device)
        self.denoisers = {t.id: bundle.loom(t.id).denoiser.to(self.device) for t in bundle.targets}

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) -> features (n, dim)."""
        with torch.inference_mode():
            parts = [
                self.encoder(part.to(self.device).contiguous(memory_format=torch.channels_last)).cpu()
                for part in images.split(256)
            ]
            return torch.cat(parts)

    def denoise(self, target: str, z: Tensor, t: Tensor, classwise: Tensor, overall: Tensor, keep: Tensor) -> Tensor:
        """One call of a target's denoiser."""
        with torch.inference_mode():
            inputs = (x.to(self.device) for x in (z, t, classwise, overall, keep))
            out: Tensor = self.denoisers[target](*inputs).cpu()
            return out


def open_runtime(bundle: Bundle, *, backend: str = "auto", device: str = "cpu", threads: int | None = None) -> Runtime:
    """The runtime for a backend: `torch`, `onnxruntime`, or `auto`, which takes what the committed benchmark found faster."""
    return TorchRuntime(bundle, device)
