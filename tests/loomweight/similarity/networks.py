"""Networks for the similarity tests: trained-looking weights, running statistics that are not at their start."""

from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from trainer import nets

NAMES = (
    "cnn-s",
    "cnn-l",
    "plain-4-batch-relu",
    "plain-4-group-gelu",
    "plain-6-none-tanh",
    "residual-4-batch-relu",
    "residual-4-none-gelu",
)
"""Every family that model sets are made of."""


def net(name: str, classes: int = 2, seed: int = 0) -> nn.Module:
    generator = Generator().manual_seed(seed)
    made = nets.make(name, classes, generator)
    with torch.no_grad():
        for tensor in [*made.parameters(), *made.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return made.eval()


def tensors(name: str, classes: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net(name, classes, seed).state_dict().items()}


def mlp(sizes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = Generator().manual_seed(seed)
    found = {}
    for i, (a, b) in enumerate(pairwise(sizes)):
        found[f"layers.{2 * i}.weight"] = torch.randn(b, a, generator=generator) / a**0.5
        found[f"layers.{2 * i}.bias"] = 0.1 * torch.randn(b, generator=generator)
    return found


def resnet(width: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Names and shapes as torchvision's residual networks have them, two stages of two blocks."""
    generator = Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, size: int) -> None:
        found[f"{name}.weight"] = torch.randn(outputs, inputs, size, size, generator=generator) * 0.1

    def norm(name: str, size: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{part}"] = 0.5 + torch.rand(size, generator=generator)
        found[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", width, 3, 7)
    norm("bn1", width)
    inputs = width
    for stage, outputs in ((1, width), (2, 2 * width)):
        for block in range(2):
            place = f"layer{stage}.{block}"
            conv(f"{place}.conv1", outputs, inputs, 3)
            norm(f"{place}.bn1", outputs)
            conv(f"{place}.conv2", outputs, outputs, 3)
            norm(f"{place}.bn2", outputs)
            if inputs != outputs:
                conv(f"{place}.downsample.0", outputs, inputs, 1)
                norm(f"{place}.downsample.1", outputs)
            inputs = outputs
    found["fc.weight"] = torch.randn(5, inputs, generator=generator)
    found["fc.bias"] = torch.zeros(5)
    # as safetensors keeps them: by name
    return dict(sorted(found.items()))
