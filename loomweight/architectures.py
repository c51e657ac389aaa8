"""The networks we can fill with weights, each as a table of layers.

`ArchitectureSpec` is the only place that knows which tensors a network has, in which order, and what it computes;
tokens, alignment, generation and export all read this table and infer nothing from key names.

`cnn-s` and `cnn-l` are the zoo networks of SANE (Schürholt et al. 2024, appendix; 2,464 and 10,853 weights at ten
classes); `head` is a linear classifier over a bundle's frozen image encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from loomweight.errors import InvalidCheckpoint

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear map, with what follows it: max pooling by 2, then the activation."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 0  # 0: linear
    pool: bool = False

    @property
    def fan_in(self) -> int:
        """Weights per output unit, bias excluded."""
        return self.inputs * max(1, self.kernel) ** 2


@dataclass(frozen=True)
class ArchitectureSpec:
    """A sequential network whose last layer has one output per class.

    `trunk` lists the layers below the head; `width` is the number of features the head reads. Tensors are named
    `{layer}.weight` (outputs, inputs[, kernel, kernel]) and `{layer}.bias` (outputs,), the head's layer is `head`.
    """

    name: str
    channels: int
    side: int
    trunk: tuple[Layer, ...]
    width: int
    activation: str = "none"

    def head(self, classes: int) -> Layer:
        """The last layer, for so many classes."""
        return Layer("head", self.width, classes)

    def layers(self, classes: int) -> tuple[Layer, ...]:
        """All layers in order, the head last."""
        return (*self.trunk, self.head(classes))

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        """Tensor names and shapes, in the one order that everything else uses."""
        return {k: v for layer in self.layers(classes) for k, v in _shapes(layer).items()}

    def trunk_shapes(self) -> dict[str, tuple[int, ...]]:
        """As `shapes`, without the head."""
        return {k: v for layer in self.trunk for k, v in _shapes(layer).items()}

    def parameters(self, classes: int) -> int:
        """Number of weights and biases."""
        return sum(layer.outputs * (layer.fan_in + 1) for layer in self.layers(classes))

    def classes(self, weights: Weights) -> int:
        """Class count of a checkpoint, after checking every name and shape against this table.

        Raises InvalidCheckpoint that names the first tensor that does not fit.
        """
        if "head.weight" not in weights:
            raise InvalidCheckpoint(f"{self.name} needs a tensor 'head.weight'")
        classes = int(weights["head.weight"].shape[0])
        shapes = self.shapes(classes)
        if unknown := sorted(set(weights) - set(shapes)):
            raise InvalidCheckpoint(f"{self.name} has no tensor '{unknown[0]}'")
        for name, shape in shapes.items():
            if name not in weights:
                raise InvalidCheckpoint(f"{self.name} needs a tensor '{name}'")
            if tuple(weights[name].shape) != shape:
                raise InvalidCheckpoint(f"'{name}' has shape {tuple(weights[name].shape)}, {self.name} needs {shape}")
        return classes

    def adapt(self, images: Tensor) -> Tensor:
        """Canonical images (n, 3, 32, 32) in [0, 1] to this network's input: (n, channels, side, side), scaled."""
        if self.channels == 1:
            images = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        return (images - 0.5) / 0.25

    def features(self, weights: Weights, x: Tensor) -> Tensor:
        """What the head reads: (n, width), from adapted images (for `head`: encoder features, returned as they are)."""
        for layer in self.trunk:
            weight, bias = weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"]
            x = F.conv2d(x, weight, bias) if layer.kernel else F.linear(x.flatten(1), weight, bias)
            if layer.pool:
                x = _pooled(x)
            x = _ACTIVATIONS[self.activation](x)
        return x

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        """Logits (n, classes) from adapted images."""
        return F.linear(self.features(weights, x), weights["head.weight"], weights["head.bias"])

    def initial(self, classes: int, generator: Generator) -> dict[str, Tensor]:
        """Fresh random weights: Kaiming-uniform as torch's layers draw them, biases at 0.01 (SANE, appendix)."""
        weights = {}
        for name, shape in self.shapes(classes).items():
            if name.endswith(".bias"):
                weights[name] = torch.full(shape, 0.01)
            else:
                bound = torch.tensor(shape[1:]).prod().item() ** -0.5
                weights[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        return weights


def _pooled(x: Tensor) -> Tensor:
    """Max pooling by 2: (n, c, h, w) -> (n, c, h // 2, w // 2)."""
    if torch.is_grad_enabled():
        return F.max_pool2d(x, 2)
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2  # the same values in a quarter of the time
    rows = torch.maximum(x[..., :height:2, :width], x[..., 1:height:2, :width])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


def _shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    kernel = (layer.kernel, layer.kernel) if layer.kernel else ()
    return {f"{layer.name}.weight": (layer.outputs, layer.inputs, *kernel), f"{layer.name}.bias": (layer.outputs,)}


_ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu, "tanh": torch.tanh}

CNN_S = ArchitectureSpec(
    "cnn-s",
    channels=1,
    side=28,
    trunk=(
        Layer("conv1", 1, 8, 5, pool=True),  # 28 -> 24 -> 12
        Layer("conv2", 8, 6, 5, pool=True),  # 12 -> 8 -> 4
        Layer("conv3", 6, 4, 2),  # 4 -> 3
        Layer("fc1", 36, 20),
    ),
    width=20,
    activation="tanh",
)

CNN_L = ArchitectureSpec(
    "cnn-l",
    channels=3,
    side=32,
    trunk=(
        Layer("conv1", 3, 16, 3, pool=True),  # 32 -> 30 -> 15
        Layer("conv2", 16, 32, 3, pool=True),  # 15 -> 13 -> 6
        Layer("conv3", 32, 15, 3, pool=True),  # 6 -> 4 -> 2
        Layer("fc1", 60, 20),
    ),
    width=20,
    activation="gelu",
)


def head(dim: int) -> ArchitectureSpec:
    """The linear classifier over an encoder with `dim` features."""
    return ArchitectureSpec("head", channels=3, side=32, trunk=(), width=dim)


def get(name: str, *, encoder_dim: int) -> ArchitectureSpec:
    """An architecture by the name it has in recipes, bundles and cards; KeyError for an unknown one."""
    return {"cnn-s": CNN_S, "cnn-l": CNN_L, "head": head(encoder_dim)}[name]


def hidden_pairs(spec: ArchitectureSpec) -> list[tuple[Layer, Layer]]:
    """Each trunk layer with the layer that reads its units (the head, for one class, last)."""
    return list(pairwise((*spec.trunk, spec.head(1))))
