"""Any checkpoint as an ordered list of layers: what can be known from the names and shapes of its tensors alone.

Tensors are in torch's layout. What becomes a layer, in which order, and what it reads:

- a tensor of two to five dimensions whose last name part holds "weight" is a layer (outputs, inputs, kernel...); where
  no name does, every such tensor is one. A bias is the 1-D tensor of the same name with "bias" for "weight".
- a 1-D weight, or running statistics without one, is a normalisation. It belongs to the layer of its size in the same
  module with the same number (`bn1` to `conv1`), else to the numbered layer before it (`features.1` to
  `features.0`), else to the layer of its size that comes before it. Running statistics are folded into the layer;
  without them the normalisation stays to be applied when the layer is evaluated.
- layers come in the natural order of their names (`conv10` after `conv2`), after a shared prefix is cut off; modules
  at the top that hold the input (an embedding, or a convolution of one to four channels) come first, modules whose
  last outputs nobody reads, or that have no convolution where others do, come last (`fc` after `layer4`).
- a layer reads the nearest signal before it that has its width: see `links`.

What fits no layer (position codes, class tokens, scales) is listed in `Reading.unread` and plays no part.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loomweight.errors import InvalidCheckpoint
from loomweight.similarity.links import INPUT, MEAN, Link, Shape, link, natural, order

MAX_TENSORS = 20_000
MAX_VALUES = 60_000_000  # 100 MB of half precision, with room
MAX_LAYERS = 2_000
MAX_WIDTH = 262_144  # units that a layer reads or gives: what answers to probes take in memory
MAX_VALUE = 1e12  # its square, summed up, stays in the range of floats
RUNNING = ("running_mean", "running_var")

__all__ = ["INPUT", "MEAN", "Normalisation", "ReadLayer", "Reading", "read"]


@dataclass(frozen=True)
class Normalisation:
    """A normalisation without running statistics, as its scale (c,) and shift (c,)."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class ReadLayer:
    """One layer; `weight` is (outputs, inputs, height, width), 1x1 for linear maps, norms with statistics folded in."""

    name: str
    kind: str  # "conv" | "linear" | "embedding"
    weight: Tensor
    bias: Tensor  # (outputs,)
    norm: Normalisation | None
    link: Link
    vectors: tuple[str, ...] = ()  # names of the tensors with one value a unit: bias, and what its normalisation holds

    @property
    def outputs(self) -> int:
        """Number of output units."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class Reading:
    """A checkpoint's layers in order, and what was left over."""

    layers: tuple[ReadLayer, ...]
    unread: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Kinds and shapes of all layers in order, hashed: equal for networks of one architecture."""
        shapes = [(layer.kind, *layer.weight.shape) for layer in self.layers]
        return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(layer.weight.numel() + layer.bias.numel() for layer in self.layers)

    @property
    def guessed(self) -> int:
        """Layers whose input could not be told from the shapes."""
        return sum(layer.link.source == MEAN for layer in self.layers)


def read(tensors: Mapping[str, Tensor]) -> Reading:
    """Read a checkpoint; raises InvalidCheckpoint that says what is wrong with it.

    Refused: no tensors, too many, more values than 100 MB hold, NaN or infinity, no layer, too many layers, a layer
    too wide. Everything is brought to float32; tensors of integers are left unread.
    """
    if not tensors:
        raise InvalidCheckpoint("the checkpoint holds no tensors")
    if len(tensors) > MAX_TENSORS:
        raise InvalidCheckpoint(f"the checkpoint holds {len(tensors):,} tensors; at most {MAX_TENSORS:,} are read")
    values = sum(t.numel() for t in tensors.values())
    if values > MAX_VALUES:
        raise InvalidCheckpoint(f"the checkpoint holds {values:,} values; at most {MAX_VALUES:,} are read")
    floats = {k: _finite(k, t) for k, t in tensors.items() if t.is_floating_point()}
    matrices = {k: t for k, t in floats.items() if 2 <= t.ndim <= 5 and t.numel()}
    named = {k: t for k, t in matrices.items() if "weight" in k.rsplit(".", 1)[-1]}
    chosen = named or matrices
    if not chosen:
        raise InvalidCheckpoint("the checkpoint holds no layer: no tensor of two to five dimensions with values")
    if len(chosen) > MAX_LAYERS:
        raise InvalidCheckpoint(f"the checkpoint holds {len(chosen):,} layers; at most {MAX_LAYERS:,} are read")
    if wide := [k for k, t in chosen.items() if max(t.shape[:2]) > MAX_WIDTH]:
        raise InvalidCheckpoint(f"'{wide[0]}' has more than {MAX_WIDTH:,} inputs or outputs")
    raw = {k: _layer(k, t, floats) for k, t in chosen.items()}
    stored = [raw[k] for k in order(_shapes(raw))]
    raw, used = _with_norms({layer.name: _oriented(layer, stored) for layer in stored}, floats)
    layers = {k: raw[k] for k in order(_shapes(raw))}
    links = link(list(_shapes(layers).values()))
    read_layers = tuple(replace(layer, link=found) for layer, found in zip(layers.values(), links, strict=True))
    used |= set(chosen) | {_bias_name(k) for k in chosen}
    return Reading(read_layers, tuple(sorted(set(tensors) - used)))


def _shapes(layers: Mapping[str, ReadLayer]) -> dict[str, Shape]:
    return {name: (layer.kind, tuple(layer.weight.shape)) for name, layer in layers.items()}


def _finite(name: str, tensor: Tensor) -> Tensor:
    values = tensor.detach().to("cpu", torch.float32)
    if not torch.isfinite(values).all():
        raise InvalidCheckpoint(f"'{name}' holds NaN or infinity")
    if values.numel() and float(values.abs().amax()) > MAX_VALUE:
        raise InvalidCheckpoint(f"'{name}' holds values beyond {MAX_VALUE:.0e}, which no training leaves behind")
    return values


def _bias_name(name: str) -> str:
    head, dot, last = name.rpartition(".")
    return f"{head}{dot}{last.replace('weight', 'bias')}"


def _layer(name: str, tensor: Tensor, floats: Mapping[str, Tensor]) -> ReadLayer:
    if tensor.ndim == 5:  # a 3-D convolution, seen as the 2-D one that it is on still pictures
        tensor = tensor.sum(2)
    shape = (*tensor.shape[:2], *(1,) * (4 - tensor.ndim), *tensor.shape[2:])
    found = floats.get(_bias_name(name))
    fits = found is not None and name != _bias_name(name) and found.shape == tensor.shape[:1]
    bias = found if fits and found is not None else tensor.new_zeros(tensor.shape[0])
    kind = "linear" if tensor.ndim == 2 else "conv"
    vectors = (_bias_name(name),) if fits else ()
    return ReadLayer(name, kind, tensor.reshape(shape), bias, None, Link(MEAN), vectors)


def _oriented(layer: ReadLayer, layers: list[ReadLayer]) -> ReadLayer:
    """Turn embeddings, which are stored input first; told by name, or as a first table whose width others read."""
    if layer.kind != "linear" or layer.bias.any():
        return layer
    called = re.search(r"emb|wte|wpe", layer.name.lower()) is not None
    rows, columns = layer.weight.shape[:2]
    others = [o for o in layers if o is not layer]
    first = layer is layers[0] and rows > columns
    only_columns = any(o.weight.shape[1] == columns for o in others) and all(o.weight.shape[1] != rows for o in others)
    if called or (first and only_columns):
        return replace(layer, kind="embedding", weight=layer.weight.transpose(0, 1), bias=layer.bias.new_zeros(columns))
    return layer


def _with_norms(layers: dict[str, ReadLayer], floats: Mapping[str, Tensor]) -> tuple[dict[str, ReadLayer], set[str]]:
    """Give every normalisation to its layer; also the names of the tensors that it came in."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in floats.items():
        head, _, last = name.rpartition(".")
        if tensor.ndim == 1 and last in ("weight", "bias", *RUNNING) and f"{head}.weight" not in layers:
            modules.setdefault(head, {})[last] = tensor
    if len(modules) > MAX_LAYERS:
        raise InvalidCheckpoint(
            f"the checkpoint holds {len(modules):,} normalisations; at most {MAX_LAYERS:,} are read"
        )
    used: set[str] = set()
    for module in sorted(modules, key=natural):
        parts = modules[module]
        if not ({"weight", "running_var"} & set(parts)):
            continue
        size = next(iter(parts.values())).shape[0]
        owner = _owner(module, size, layers)
        if owner is None or any(p.shape != (size,) for p in parts.values()):
            continue
        vectors = tuple(f"{module}.{part}" if module else part for part in parts)
        layers[owner] = replace(_folded(layers[owner], parts), vectors=(*layers[owner].vectors, *vectors))
        used |= {*vectors, f"{module}.num_batches_tracked"}
    return layers, used


def _owner(module: str, size: int, layers: Mapping[str, ReadLayer]) -> str | None:
    free = [k for k, layer in layers.items() if layer.outputs == size and layer.norm is None]
    parent, _, leaf = module.rpartition(".")
    near = {k: k.rpartition(".")[0].rpartition(".") for k in free}
    siblings = {k: place[2] for k, place in near.items() if place[0] == parent}
    digits = re.findall(r"\d+", leaf)
    if not leaf.isdigit():
        same = [k for k, other in siblings.items() if re.findall(r"\d+", other) == digits]
        if same:
            return min(same, key=natural)
    before = [k for k in siblings if natural(k) < natural(module)] or [k for k in free if natural(k) < natural(module)]
    return max(before, key=natural, default=None)


def _folded(layer: ReadLayer, parts: Mapping[str, Tensor]) -> ReadLayer:
    ones, zeros = torch.ones(layer.outputs), torch.zeros(layer.outputs)
    scale, shift = parts.get("weight", ones), parts.get("bias", zeros)
    if "running_var" not in parts:
        return replace(layer, norm=Normalisation(scale, shift))
    scale = scale / (parts["running_var"].clamp_min(0) + 1e-5).sqrt()
    bias = (layer.bias - parts.get("running_mean", zeros)) * scale + shift
    return replace(layer, weight=layer.weight * scale[:, None, None, None], bias=bias)
