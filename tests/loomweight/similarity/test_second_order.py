import torch
from torch import Generator

from loomweight.similarity.layers import read
from loomweight.similarity.second_order import SecondOrderConfig, SecondOrderNetwork
from tests.loomweight.similarity.networks import tensors


def test_the_first_stage_sorts_meta_filter_responses() -> None:
    # Given as many quantiles as there are filters, and a first stage that passes one meta-filter's responses on
    given = read(tensors("plain-4-none-tanh"))
    network = SecondOrderNetwork(SecondOrderConfig(first=1, quantiles=4, width=4), Generator().manual_seed(0))
    seen = []
    network.norms[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    network([given])
    # Then what it passes on are the sorted inner products
    weight = given.layers[0].weight
    expected = (weight / weight.square().mean().sqrt()).flatten(1) @ network.first.detach()[0]
    torch.testing.assert_close(seen[0], expected.sort().values, atol=1e-5, rtol=1e-4)


def test_later_stages_are_worth_a_tenth() -> None:
    network = SecondOrderNetwork(SecondOrderConfig(), Generator().manual_seed(0))
    given = read(tensors("plain-4-batch-relu"))
    whole = network([given])
    stages = [network._stage(i, layer) for i, layer in enumerate(given.layers)]
    fused = stages[0] + 0.1 * torch.stack(stages[1:]).sum(0) * 3 / 4
    torch.testing.assert_close(whole.models[0], fused / fused.norm(), atol=1e-5, rtol=1e-4)


def test_any_width_and_kernel_fits() -> None:
    network = SecondOrderNetwork(SecondOrderConfig(), Generator().manual_seed(0))
    names = ("cnn-s", "cnn-l", "plain-12-none-relu", "residual-4-group-gelu")
    found = network([read(tensors(n)) for n in names]).models
    assert found.shape == (4, 128)
    assert torch.isfinite(found).all()
