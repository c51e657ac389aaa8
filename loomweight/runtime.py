"""The two frozen networks that a request runs, behind one interface: in torch, in ONNX Runtime, or one in each."""

from dataclasses import dataclass
from typing import Protocol

import onnxruntime as ort
import torch
from torch import Tensor

from loomweight.bundle import Bundle
from loomweight.denoiser_onnx import denoiser_onnx
from loomweight.onnx_export import encoder_onnx

AUTO = {"encode": "onnxruntime", "denoise": "onnxruntime"}
"""What `auto` takes for each network on the CPU; set by benchmarks/runtime_backends.py."""

BATCH = 256
"""Images that the encoder takes at once: bounds its memory."""


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
                for part in torch.split(images, BATCH)
            ]
            return torch.cat(parts)

    def denoise(self, target: str, z: Tensor, t: Tensor, classwise: Tensor, overall: Tensor, keep: Tensor) -> Tensor:
        """One call of a target's denoiser."""
        with torch.inference_mode():
            inputs = (x.to(self.device) for x in (z, t, classwise, overall, keep))
            out: Tensor = self.denoisers[target](*inputs).cpu()
            return out


class OnnxRuntime:
    """Both networks in ONNX Runtime, their graphs built from the loaded modules.

    `device` is where the sessions really run: where a GPU is asked for and ONNX Runtime cannot use it, the CPU.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", *, threads: int | None = None) -> None:
        self._wanted, self._threads = device, threads or torch.get_num_threads()
        self.encoder = self._open(encoder_onnx(bundle.encoder))
        self.denoisers = {t.id: self._open(denoiser_onnx(bundle.loom(t.id).denoiser)) for t in bundle.targets}
        sessions = (self.encoder, *self.denoisers.values())
        everywhere = all("CUDAExecutionProvider" in session.get_providers() for session in sessions)
        self.device = torch.device(device if everywhere else "cpu")

    def _open(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # a missing GPU is read from the session, not from a warning
        # Threads that spin between calls take the cores from torch, which runs the rest of a request.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
        wanted = torch.device(self._wanted)
        if wanted.type == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": wanted.index or 0}))
        return ort.InferenceSession(graph, options, providers)

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) -> features (n, dim)."""
        parts = [_run(self.encoder, {"images": part}) for part in torch.split(images, BATCH)]
        return torch.cat(parts)

    def denoise(self, target: str, z: Tensor, t: Tensor, classwise: Tensor, overall: Tensor, keep: Tensor) -> Tensor:
        """One call of a target's denoiser."""
        inputs = {"z": z, "t": t, "classwise": classwise, "overall": overall, "keep": keep}
        return _run(self.denoisers[target], inputs)


def _run(session: ort.InferenceSession, inputs: dict[str, Tensor]) -> Tensor:
    (out,) = session.run(None, {name: value.contiguous().cpu().numpy() for name, value in inputs.items()})
    return torch.from_numpy(out)


@dataclass(frozen=True)
class MixedRuntime:
    """One network in one runtime, one in another."""

    encoding: Runtime
    denoising: Runtime

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) -> features (n, dim)."""
        return self.encoding.encode(images)

    def denoise(self, target: str, z: Tensor, t: Tensor, classwise: Tensor, overall: Tensor, keep: Tensor) -> Tensor:
        """One call of a target's denoiser."""
        return self.denoising.denoise(target, z, t, classwise, overall, keep)


def open_runtime(bundle: Bundle, *, backend: str = "auto", device: str = "cpu", threads: int | None = None) -> Runtime:
    """The runtime for a backend: `torch`, `onnxruntime`, or `auto`: AUTO on the CPU and torch elsewhere."""

    def one(name: str) -> Runtime:
        return TorchRuntime(bundle, device) if name == "torch" else OnnxRuntime(bundle, device, threads=threads)

    if backend not in ("auto", "torch", "onnxruntime"):
        raise ValueError(f"unknown backend {backend!r}; there are auto, torch and onnxruntime")
    if backend != "auto":
        return one(backend)
    if torch.device(device).type != "cpu" or AUTO["encode"] == AUTO["denoise"] == "torch":
        return one("torch")
    if AUTO["encode"] == AUTO["denoise"]:
        return one("onnxruntime")
    return MixedRuntime(one(AUTO["encode"]), one(AUTO["denoise"]))
