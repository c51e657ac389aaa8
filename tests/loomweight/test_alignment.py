import pytest
import torch

from loomweight import alignment
from loomweight.architectures import CNN_L, CNN_S, ArchitectureSpec
from tests.loomweight.made import seeded, weights

NETWORKS = [CNN_S, CNN_L]


@pytest.mark.parametrize("spec", NETWORKS)
def test_a_permuted_network_computes_the_same(spec: ArchitectureSpec) -> None:
    given_weights = weights(spec, 5)
    moved = alignment.permute(spec, given_weights, alignment.random(spec, seeded(1)))
    assert not torch.equal(moved["conv1.weight"], given_weights["conv1.weight"])
    assert spec.classes(moved) == 5
    x = spec.adapt(torch.rand(6, 3, 32, 32, generator=seeded(2)))
    torch.testing.assert_close(spec.forward(moved, x), spec.forward(given_weights, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", NETWORKS)
def test_identity_changes_nothing(spec: ArchitectureSpec) -> None:
    given_weights = weights(spec, 5)
    moved = alignment.permute(spec, given_weights, alignment.identity(spec))
    assert all(torch.equal(moved[k], given_weights[k]) for k in given_weights)


@pytest.mark.parametrize("spec", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_match_recovers_a_random_permutation(spec: ArchitectureSpec, seed: int) -> None:
    # Given a network and a copy with its hidden units shuffled
    reference = spec.initial(10, seeded(seed))
    shuffled = alignment.permute(spec, reference, alignment.random(spec, seeded(100 + seed)))
    # When the copy is matched to the network
    order = alignment.match(spec, shuffled, reference, seeded(seed))
    # Then the order found undoes the shuffling exactly
    found = alignment.permute(spec, shuffled, order)
    assert all(torch.equal(found[k], reference[k]) for k in reference)


@pytest.mark.parametrize("spec", NETWORKS)
def test_match_works_across_class_counts(spec: ArchitectureSpec) -> None:
    # Given two networks with one trunk and heads of 10 and of 3 classes
    reference = weights(spec, 10)
    other = {**reference, "head.weight": weights(spec, 3, 9)["head.weight"], "head.bias": torch.zeros(3)}
    shuffled = alignment.permute(spec, other, alignment.random(spec, seeded(4)))
    # When the smaller is matched to the larger, then trunk and head are back in place
    found = alignment.permute(spec, shuffled, alignment.match(spec, shuffled, reference, seeded()))
    assert all(torch.equal(found[k], other[k]) for k in other)
