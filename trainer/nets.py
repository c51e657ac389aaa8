"""The networks that model sets are made of, by name.

`plain-WIDTH-NORM-ACTIVATION` is the published net's shape (four 3x3 convolutions of W, 2W, 4W and 8W channels,
maximum pooling by 2 behind the first three, global average, linear head): `plain-32-batch-relu` is ModelSet500's own,
389,890 weights at two classes (read off the public code, science notes section 3). `residual-WIDTH-NORM-ACTIVATION`
is a stem and two residual blocks; `cnn-s` and `cnn-l` are the zoo's. All take images (n, 3, 32, 32) in [0, 1].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from loomweight import architectures
from loomweight.architectures import ArchitectureSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
ZOO = {"cnn-s": architectures.CNN_S, "cnn-l": architectures.CNN_L}


def make(name: str, classes: int, generator: Generator) -> nn.Module:
    """A network with fresh weights: uniform as torch's layers draw them, zero biases, plain norms.

    Raises ValueError that says which part of the name is unknown.
    """
    net: nn.Module
    if name in ZOO:
        net = _Zoo(ZOO[name], classes)
    else:
        family, width, norm, activation = _parse(name)
        net = (_Plain if family == "plain" else _Residual)(width, norm, activation, classes)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                bound = parameter[0].numel() ** -0.5
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
    for key, parameter in net.named_parameters():
        if key.endswith("bias"):
            nn.init.zeros_(parameter)
    return net


def _parse(name: str) -> tuple[str, int, str, str]:
    parts = name.split("-")
    if len(parts) != 4 or parts[0] not in ("plain", "residual") or not parts[1].isdigit():
        raise ValueError(f"no network {name!r}: {', '.join(ZOO)} or plain|residual-WIDTH-NORM-ACTIVATION")
    family, width, norm, activation = parts
    if norm not in ("batch", "group", "none") or activation not in ACTIVATIONS:
        raise ValueError(f"no network {name!r}: norm batch, group or none; activation {', '.join(ACTIVATIONS)}")
    return family, int(width), norm, activation


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(4, channels) if kind == "group" else nn.Identity()


def _scaled(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


class _Plain(nn.Module):
    def __init__(self, width: int, norm: str, activation: str, classes: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        widths = (3, width, 2 * width, 4 * width, 8 * width)
        for i in range(1, 5):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], 3, padding=1))
            self.add_module(f"norm{i}", _norm(norm, widths[i]))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = _scaled(images)
        for i in range(1, 5):
            x = self.activation(self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(x)))
            if i < 4:
                x = F.max_pool2d(x, 2)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _Block(nn.Module):
    """Two convolutions beside a 1x1 shortcut, halving the map."""

    def __init__(self, inputs: int, outputs: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), _norm(norm, outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), _norm(norm, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        out: Tensor = self.activation(y + self.shortcut(x))
        return out


class _Residual(nn.Module):
    def __init__(self, width: int, norm: str, activation: str, classes: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv0, self.norm0 = nn.Conv2d(3, width, 3, padding=1), _norm(norm, width)
        self.block1 = _Block(width, 2 * width, norm, activation)
        self.block2 = _Block(2 * width, 4 * width, norm, activation)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.activation(self.norm0(self.conv0(_scaled(images)))), 2)
        out: Tensor = self.head(self.block2(self.block1(x)).mean((2, 3)))
        return out


class _Zoo(nn.Module):
    """An `ArchitectureSpec` as a module with the same tensor names."""

    def __init__(self, spec: ArchitectureSpec, classes: int) -> None:
        super().__init__()
        self.spec = spec
        for layer in spec.layers(classes):
            kind = nn.Conv2d(layer.inputs, layer.outputs, layer.kernel) if layer.kernel else None
            self.add_module(layer.name, kind or nn.Linear(layer.inputs, layer.outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.spec.forward(dict(self.named_parameters()), self.spec.adapt(images))
