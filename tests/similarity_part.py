"""A similarity part that nobody trained: the real network, its probes as they start."""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Generator, Tensor

from loomweight.similarity import Calibration, Familiar, read, scoring
from loomweight.similarity.network import ChainConfig, ChainNetwork
from tests.loomweight.similarity.networks import NAMES, tensors


def write_part(bundle_dir: Path, seed: int = 0) -> str:
    """Write a part into a bundle's folder; returns its id."""
    network = ChainNetwork(ChainConfig(), Generator().manual_seed(seed))
    known = [read(tensors(name, seed=s)) for name in NAMES for s in (1, 2)]
    network.settle(known)
    anchors = network.eval()(known).models.detach()
    calibration = Calibration(same=(10.0, -3.0), different=(5.0, -1.0))
    return scoring.write(bundle_dir, network, calibration, Familiar(0.0, 0.5), anchors, {"made": "for tests"})


def checkpoint(name: str = "cnn-l", classes: int = 3, seed: int = 0) -> bytes:
    """The safetensors file of a network."""
    return pack(tensors(name, classes, seed))


def pack(found: dict[str, Tensor]) -> bytes:
    """Tensors as a safetensors file."""
    return bytes(save({k: v.contiguous() for k, v in found.items()}))


def large(seed: int, layers: int = 20, width: int = 256) -> bytes:
    """A network of 45 MB unless told otherwise."""
    made = Generator().manual_seed(seed)
    found = {"conv0.weight": torch.randn(width, 3, 3, 3, generator=made)}
    for i in range(1, layers):
        found[f"conv{i}.weight"] = torch.randn(width, width, 3, 3, generator=made) / 48
    return pack({**found, "head.weight": torch.randn(10, width, generator=made)})
