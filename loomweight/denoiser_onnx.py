"""A denoiser as an ONNX graph, node by node, so that a runtime can build it in milliseconds when a bundle is loaded.

The mirror of `Denoiser.forward`; batch and class count stay open. Tests hold the two to each other.
"""

import torch
from torch import Tensor, nn

from loomweight.denoiser import Block, Denoiser, rates
from loomweight.onnx_graph import FLOAT, Graph, Value


class _Graph(Graph):
    """The layers that denoisers are made of."""

    def tensor(self, value: Tensor) -> str:
        return self.constant(value.detach().cpu().numpy())

    def axis(self, *axes: int) -> str:
        return self.constant(torch.tensor(axes).numpy())

    def linear(self, x: str, layer: nn.Module) -> str:
        assert isinstance(layer, nn.Linear)
        return self.add("Add", self.add("MatMul", x, self.tensor(layer.weight.T)), self.tensor(layer.bias))

    def norm(self, x: str, layer: nn.LayerNorm) -> str:
        plain = torch.ones(layer.normalized_shape), torch.zeros(layer.normalized_shape)
        weight, bias = (layer.weight, layer.bias) if layer.elementwise_affine else plain
        return self.add(
            "LayerNormalization", x, self.tensor(weight), self.tensor(bias), axis=-1, epsilon=float(layer.eps)
        )

    def feed(self, x: str, layers: nn.Sequential) -> str:
        # Linear, GELU, Linear
        return self.linear(self.add("Gelu", self.linear(x, layers[0])), layers[2])

    def modulated(self, x: str, factor: str, shift: str) -> str:
        return self.add("Add", self.add("Mul", x, self.scalar("Add", factor, 1.0)), shift)

    def time(self, t: str, model: Denoiser) -> str:
        angle = self.add("Mul", self.add("Unsqueeze", t, self.axis(1)), self.tensor(rates(model.config.width)))
        waves = self.add("Concat", self.add("Cos", angle), self.add("Sin", angle), axis=-1)  # (b, w)
        inner = self.linear(waves, model.time[0])
        return self.linear(self.add("Mul", inner, self.add("Sigmoid", inner)), model.time[2])

    def attention(self, x: str, block: Block) -> str:
        heads, width = block.heads, block.out.out_features
        q, k, v = self.add_many("Split", 3, self.linear(x, block.qkv), axis=-1, num_outputs=3)
        parts = self.axis(0, 0, heads, width // heads)  # a zero keeps the input's size: batch and tokens are open
        q, v = (self.add("Transpose", self.add("Reshape", y, parts), perm=[0, 2, 1, 3]) for y in (q, v))
        k = self.add("Transpose", self.add("Reshape", k, parts), perm=[0, 2, 3, 1])  # (b, heads, w / heads, t)
        scores = self.scalar("Mul", self.add("MatMul", q, k), (width // heads) ** -0.5)
        y = self.add("MatMul", self.add("Softmax", scores, axis=-1), v)  # (b, heads, t, w / heads)
        y = self.add("Reshape", self.add("Transpose", y, perm=[0, 2, 1, 3]), self.axis(0, 0, width))
        return self.linear(y, block.out)


def denoiser_onnx(model: Denoiser) -> bytes:
    """The denoiser: inputs `z`, `t`, `classwise`, `overall`, `keep` as in `Denoiser.forward`, output `clean`."""
    g, c = _Graph(), model.config
    keep = g.add("Unsqueeze", "keep", g.axis(1))  # (b, 1)
    seen = g.scalar("Greater", g.add("Unsqueeze", keep, g.axis(2)), 0.0)
    place = g.add("Where", seen, g.feed("classwise", model.condition_in), g.tensor(model.unconditional))  # (b, k, w)
    overall = g.add("Mul", keep, g.feed("overall", model.overall_in))  # (b, w)
    if c.latents:
        first = g.add("Add", g.tensor(model.place), g.add("Unsqueeze", overall, g.axis(1)))  # (b, latents, w)
        place = g.add("Concat", first, place, axis=1)
    time = g.add("Add", g.time("t", model), overall)
    x = g.add("Add", g.linear("z", model.latent_in), place)  # (b, latents + k, w)
    for block in model.blocks:
        assert isinstance(block, Block)
        modulation = g.add("Unsqueeze", g.linear(time, block.modulate), g.axis(1))
        a1, b1, a2, b2 = g.add_many("Split", 4, modulation, axis=-1, num_outputs=4)
        x = g.add("Add", x, g.attention(g.modulated(g.norm(x, block.norm1), a1, b1), block))
        x = g.add("Add", x, g.feed(g.modulated(g.norm(x, block.norm2), a2, b2), block.feed))
    g.linear(g.norm(x, model.norm), model.latent_out)
    g.name_last("clean")
    inputs: list[Value] = [
        ("z", FLOAT, ["b", "tokens", c.dim]),
        ("t", FLOAT, ["b"]),
        ("classwise", FLOAT, ["b", "k", c.classwise]),
        ("overall", FLOAT, ["b", c.overall]),
        ("keep", FLOAT, ["b"]),
    ]
    return g.model("loomweight-denoiser", inputs, [("clean", FLOAT, ["b", "tokens", c.dim])], {})
