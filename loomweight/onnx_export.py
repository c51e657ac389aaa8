"""A generated network as one runnable ONNX file: uint8 images (n, h, w, 3) in, logits out, preprocessing inside.

Written node by node from the architecture's table, so that exporting takes milliseconds and needs no tracing. The class names
stand in the model's metadata under `classes`, as JSON.
"""

import json
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from loomweight import __version__
from loomweight.architectures import ArchitectureSpec
from loomweight.features import SIDE, ImageEncoder

Array = NDArray[np.float32]
OPSET = 20


class _Graph:
    """Collects nodes and constants; every method takes and gives the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.generic] | Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

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

    def scalar(self, op: str, x: str, value: float) -> str:
        return self.add(op, x, self.constant(np.float32(value)))

    def canonical(self, images: str) -> str:
        """uint8 (n, h, w, 3) -> float (n, 3, 32, 32) in [0, 1]."""
        x = self.add("Cast", self.add("Transpose", images, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
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
        """The frozen encoder, its batch norms folded into the convolutions."""
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
    """The whole network as ONNX; a target without a trunk (`head`) needs the bundle's encoder, which becomes part of the file."""
    g = _Graph()
    x = g.canonical("images")
    if spec.trunk:
        x = g.trunk(g.adapt(x, spec), spec, tensors)
    else:
        if encoder is None:
            raise ValueError(f"{spec.name} reads an encoder's features: give the encoder")
        x = g.encoder(x, encoder)
    weight, bias = g.constant(tensors["head.weight"]), g.constant(tensors["head.bias"])
    g.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["logits"], transB=1))
    graph = helper.make_graph(
        g.nodes,
        f"loomweight-{spec.name}",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(classes)])],
        g.constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="loomweight", producer_version=__version__
    )
    model.ir_version = 10
    helper.set_model_props(model, {"classes": json.dumps(list(classes), ensure_ascii=False), "architecture": spec.name})
    return bytes(model.SerializeToString(deterministic=True))
