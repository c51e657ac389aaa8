"""A generated network as one runnable ONNX file: uint8 images (n, h, w, 3) in, logits out, preprocessing inside.

Written node by node from the architecture's table, so that exporting takes milliseconds and needs no tracing. The class
names stand in the model's metadata under `classes`, as JSON.
"""

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from loomweight.architectures import ArchitectureSpec
from loomweight.features import SIDE, ImageEncoder
from loomweight.onnx_graph import FLOAT, UINT8, Graph

Array = NDArray[np.float32]


class _Network(Graph):
    """The parts that exported networks are put together from."""

    def resize(self, x: str, channels: int, side: int) -> str:
        sizes = np.array([side, side], np.int64)
        return self.add(
            "Resize",
            x,
            "",
            "",
            self.constant(sizes),
            mode="linear",
            antialias=1,
            exclude_outside=1,
            axes=[2, 3],
            coordinate_transformation_mode="half_pixel",
        )

    def canonical(self, images: str) -> str:
        # uint8 (n, h, w, 3) -> float (n, 3, 32, 32) in [0, 1]
        x = self.add("Cast", self.add("Transpose", images, perm=[0, 3, 1, 2]), to=FLOAT)
        return self.resize(self.scalar("Div", x, 255.0), 3, SIDE)

    def adapt(self, x: str, spec: ArchitectureSpec) -> str:
        if spec.channels == 1:
            luma = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1)
            x = self.add("Conv", x, self.constant(luma))
        if spec.side != SIDE:
            x = self.resize(x, spec.channels, spec.side)
        return self.scalar("Div", self.scalar("Sub", x, 0.5), 0.25)

    def trunk(self, x: str, spec: ArchitectureSpec, tensors: Mapping[str, Array]) -> str:
        for layer in spec.trunk:
            weight, bias = self.constant(tensors[f"{layer.name}.weight"]), self.constant(tensors[f"{layer.name}.bias"])
            if layer.kernel:
                x = self.add("Conv", x, weight, bias)
            else:
                x = self.add("Gemm", self.add("Flatten", x), weight, bias, transB=1)
            if layer.pool:
                x = self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
            if spec.activation == "gelu":
                x = self.add("Gelu", x)
            elif spec.activation == "tanh":
                x = self.add("Tanh", x)
        return x

    def encoder(self, x: str, encoder: ImageEncoder) -> str:
        # batch norms come folded into the convolutions
        x = self.scalar("Div", self.scalar("Sub", x, 0.5), 0.25)
        for kind, weight, bias in encoder.folded():
            if kind == "pool":
                x = self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
                continue
            y = self.add("Relu", self.add("Conv", x, self.constant(weight), self.constant(bias), pads=[1, 1, 1, 1]))
            x = self.add("Add", x, y) if kind == "residual" else y
        x = self.add("Flatten", self.add("GlobalAveragePool", x))
        x = self.add("Sub", x, self.constant(encoder.mean.numpy()))
        norm = self.add("ReduceL2", x, self.constant(np.array([1], np.int64)), keepdims=1)
        return self.scalar("Mul", self.add("Div", x, self.scalar("Max", norm, 1e-12)), encoder.config.dim**0.5)


def to_onnx(
    spec: ArchitectureSpec, tensors: Mapping[str, Array], classes: tuple[str, ...], encoder: ImageEncoder | None = None
) -> bytes:
    """The whole network; a target without a trunk (`head`) needs the bundle's encoder, which joins the file."""
    g = _Network()
    x = g.canonical("images")
    if spec.trunk:
        x = g.trunk(g.adapt(x, spec), spec, tensors)
    else:
        if encoder is None:
            raise ValueError(f"{spec.name} reads an encoder's features: give the encoder")
        x = g.encoder(x, encoder)
    g.add("Gemm", x, g.constant(tensors["head.weight"]), g.constant(tensors["head.bias"]), transB=1)
    g.name_last("logits")
    return g.model(
        f"loomweight-{spec.name}",
        [("images", UINT8, ["n", "h", "w", 3])],
        [("logits", FLOAT, ["n", len(classes)])],
        {"classes": json.dumps(list(classes), ensure_ascii=False), "architecture": spec.name},
    )


def encoder_onnx(encoder: ImageEncoder) -> bytes:
    """A frozen encoder alone: float `images` (n, 3, 32, 32) in [0, 1] to `features` (n, dim)."""
    g = _Network()
    g.encoder("images", encoder)
    g.name_last("features")
    return g.model(
        "loomweight-encoder",
        [("images", FLOAT, ["n", 3, SIDE, SIDE])],
        [("features", FLOAT, ["n", encoder.config.dim])],
        {},
    )
