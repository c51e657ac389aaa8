"""A small builder of ONNX graphs: nodes and constants in the order they are added, and a model out of them.

Writing node by node takes milliseconds and needs no tracing, and the same input gives the same bytes.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from loomweight import __version__

OPSET = 20
IR_VERSION = 10

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8

Value = tuple[str, int, list[int | str]]
"""An input or output of a graph: name, `TensorProto` type, shape with names for what varies."""


class Graph:
    """Collects nodes and constants; every method takes and gives the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: ArrayLike) -> str:
        """A constant tensor."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(self, op: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with several outputs."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def scalar(self, op: str, x: str, value: float) -> str:
        """A binary operator with a float constant on its right."""
        return self.add(op, x, self.constant(np.float32(value)))

    def name_last(self, name: str) -> None:
        """Give the output of the last node the name that the model's output shall have."""
        self.nodes[-1].output[0] = name

    def model(self, name: str, inputs: list[Value], outputs: list[Value], properties: dict[str, str]) -> bytes:
        """The finished model as bytes."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            self.constants,
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, opset_imports=[opset], producer_name="loomweight", producer_version=__version__
        )
        model.ir_version = IR_VERSION
        helper.set_model_props(model, properties)
        return bytes(model.SerializeToString(deterministic=True))
