"""Hidden units have no order: permutations as data, and weight matching to a reference.

Git Re-Basin's weight matching (Ainsworth et al. 2023, section 3.2): coordinate descent over layers, each a linear
assignment problem that maximises the inner product with the reference's weights.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from loomweight.architectures import ArchitectureSpec, Layer, Weights, hidden_pairs

Permutations = dict[str, Tensor]
"""For each trunk layer, the new order of its output units: (outputs,) int."""


def identity(spec: ArchitectureSpec) -> Permutations:
    """The permutation that changes nothing."""
    return {layer.name: torch.arange(layer.outputs) for layer in spec.trunk}


def random(spec: ArchitectureSpec, generator: Generator) -> Permutations:
    """A uniformly random order for every hidden layer."""
    return {layer.name: torch.randperm(layer.outputs, generator=generator) for layer in spec.trunk}


def _inputs(weight: Tensor, producer: Layer) -> Tensor:
    """View (outputs, inputs...) as (outputs, units of the producer, rest): flattened maps keep their unit first."""
    return weight.reshape(weight.shape[0], producer.outputs, -1)


def permute(spec: ArchitectureSpec, weights: Weights, order: Permutations) -> dict[str, Tensor]:
    """The same function with its hidden units in another order."""
    permuted = dict(weights)
    for producer, consumer in hidden_pairs(spec):
        index = order[producer.name]
        for name in (f"{producer.name}.weight", f"{producer.name}.bias"):
            permuted[name] = permuted[name][index]
        name = f"{consumer.name}.weight"
        permuted[name] = _inputs(permuted[name], producer)[:, index].reshape(permuted[name].shape)
    return permuted


def match(
    spec: ArchitectureSpec, weights: Weights, reference: Weights, generator: Generator, *, sweeps: int = 50
) -> Permutations:
    """The order of `weights`' hidden units that brings them nearest to `reference`.

    Heads may differ in class count; then the head takes no part. Stops when a sweep over all layers, in random
    order, changes nothing.
    """
    order = identity(spec)
    pairs = hidden_pairs(spec)
    same_head = weights["head.weight"].shape == reference["head.weight"].shape
    for _ in range(sweeps):
        moved = False
        for i in torch.randperm(len(pairs), generator=generator).tolist():
            producer, consumer = pairs[i]
            others = {**order, producer.name: torch.arange(producer.outputs)}
            current = permute(spec, weights, others)
            gain = sum(
                current[f"{producer.name}.{kind}"].reshape(producer.outputs, -1)
                @ reference[f"{producer.name}.{kind}"].reshape(producer.outputs, -1).T
                for kind in ("weight", "bias")
            )
            if consumer.name != "head" or same_head:
                ours = _inputs(current[f"{consumer.name}.weight"], producer).transpose(0, 1).flatten(1)
                theirs = _inputs(reference[f"{consumer.name}.weight"], producer).transpose(0, 1).flatten(1)
                gain = gain + ours @ theirs.T
            # gain[i, j]: our unit i in the reference's place j
            rows, columns = linear_sum_assignment(torch.as_tensor(gain).numpy(), maximize=True)
            best = torch.empty(producer.outputs, dtype=torch.long)
            best[torch.from_numpy(columns)] = torch.from_numpy(rows)
            moved |= not torch.equal(best, order[producer.name])
            order[producer.name] = best
        if not moved:
            break
    return order
