import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from loomweight.similarity.layers import read
from loomweight.similarity.network import ChainConfig, ChainNetwork, starting_looks
from loomweight.similarity.permute import shuffled
from loomweight.similarity.second_order import SecondOrderConfig, SecondOrderNetwork
from tests.loomweight.similarity.networks import NAMES, mlp, resnet, tensors

CONFIG = ChainConfig(probes=16, side=16, slots=3)


def chain_network(*, rectified: bool = True) -> ChainNetwork:
    network = ChainNetwork(ChainConfig(16, 16, rectified, 3), Generator().manual_seed(0))
    network.settle([read(tensors(n, seed=9)) for n in ("cnn-l", "plain-4-batch-relu")])
    return network.eval().requires_grad_(False)


NETWORKS = {
    "chain": chain_network(),
    "chain-linear": chain_network(rectified=False),
    "second-order": SecondOrderNetwork(SecondOrderConfig(), Generator().manual_seed(0)).eval().requires_grad_(False),
}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(sorted(NETWORKS)), st.integers(2, 12), st.integers(0, 2**31))
def test_permuted_copies_score_one(name: str, kind: str, classes: int, seed: int) -> None:
    # Given any network that is supported, and a copy with its hidden units in another order
    original = tensors(name, classes, seed)
    copy = shuffled(original, Generator().manual_seed(seed + 1))
    # When both are embedded
    one, two = NETWORKS[kind]([read(original), read(copy)]).models.double()
    # Then their similarity is one, to within 1e-5
    assert abs(float(one @ two) - 1) < 1e-5


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.integers(0, 2**31))
def test_permuted_perceptrons_score_one(sizes: list[int], seed: int) -> None:
    original = mlp((784, *sizes), seed)
    copy = shuffled(original, Generator().manual_seed(seed))
    one, two = NETWORKS["chain"]([read(original), read(copy)]).models.double()
    assert abs(float(one @ two) - 1) < 1e-5


def test_residual_networks_of_other_libraries_score_one_too() -> None:
    original = resnet()
    one, two = NETWORKS["chain"]([read(original), read(shuffled(original, Generator().manual_seed(1)))]).models
    assert float(one @ two) == pytest.approx(1, abs=1e-5)


def test_the_order_of_classes_is_not_seen() -> None:
    original = tensors("cnn-l", 6)
    order = torch.randperm(6, generator=Generator().manual_seed(1))
    copy = {k: v[order] if k.startswith("head.") else v for k, v in original.items()}
    one, two = NETWORKS["chain"]([read(original), read(copy)]).models
    assert float(one @ two) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_other_weights_score_less(kind: str) -> None:
    one, two = NETWORKS[kind]([read(tensors("cnn-l", seed=s)) for s in (1, 2)]).models
    assert float(one @ two) < 0.999


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_model_is_embedded_alone_as_in_company(kind: str) -> None:
    readings = [read(tensors(n)) for n in NAMES]
    network = NETWORKS[kind]
    together = network(readings)
    assert together.models.shape == (len(NAMES), network.dim)
    for i, reading in enumerate(readings):
        alone = network([reading])
        torch.testing.assert_close(alone.models[0], together.models[i], atol=1e-5, rtol=1e-4)
        assert alone.layers[0].shape[0] == len(reading.layers)


def test_a_lone_head_is_compared_by_its_only_layer() -> None:
    given = {"head.weight": torch.randn(5, 24), "head.bias": torch.zeros(5)}
    found = NETWORKS["chain"]([read(given)])
    assert float(found.models.norm()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("layers", range(1, 9))
@pytest.mark.parametrize("slots", range(1, 5))
def test_slots_start_at_even_depths(layers: int, slots: int) -> None:
    looks = starting_looks(layers, slots)
    assert looks.shape == (slots, layers)
    expected = [1.0] * slots if layers > 1 else [0.0] * (slots - 1) + [1.0]
    assert looks.sum(1).tolist() == pytest.approx(expected)
    assert looks[-1, -1] == 1
    if layers > 1 and slots > 2:
        assert looks[0].argmax() == 0


def test_what_learns_gets_gradients() -> None:
    network = ChainNetwork(CONFIG, Generator().manual_seed(0)).train()
    found = network([read(tensors("cnn-l", seed=s)) for s in range(3)]).models
    (found[0] @ found[1]).backward()
    for name, parameter in network.named_parameters():
        if name.startswith("look.0"):
            continue  # behind a layer that starts at zero
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
