import math

import pytest
import torch
from torch import Generator

from loomweight.similarity import chain
from loomweight.similarity.layers import read
from tests.loomweight.similarity.networks import mlp, resnet, tensors


def probes(count: int = 12, side: int = 8) -> torch.Tensor:
    return chain.smooth_noise(count, side, Generator().manual_seed(3))


def test_noise_is_standard_coloured_and_the_same_every_time() -> None:
    x = probes(64, 16)
    assert x.shape == (64, 3, 16, 16)
    assert float(x.std()) == pytest.approx(1, abs=1e-4)
    assert torch.equal(x, probes(64, 16))
    power = torch.fft.fft2(x).abs().square().mean((0, 1))
    assert power[0, 1] > 20 * power[0, 8]


def test_without_rectifiers_the_chain_is_the_product_of_the_matrices() -> None:
    # Given a linear network of three layers on 28x28 grey pictures, without biases
    given = {k: v for k, v in mlp((784, 9, 7, 4)).items() if k.endswith("weight")}
    one, two, three = given.values()
    x = probes()
    # When it is read linearly, then the last responses are the product's
    found = chain.responses(read(given), x, rectified=False)
    first = chain.responses(read({"layers.0.weight": one}), x, rectified=False)[0]
    torch.testing.assert_close(found[0], first)
    torch.testing.assert_close(found[2], first @ two.T @ three.T, atol=1e-4, rtol=1e-4)


def test_tokens_are_linear_cka() -> None:
    a, b = torch.randn(10, 5), torch.randn(10, 7)
    found = chain.gram(a, last=False) @ chain.gram(b, last=False)
    a, b = a - a.mean(0), b - b.mean(0)
    expected = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_of_the_last_layer_a_common_shift_is_not_seen() -> None:
    response = torch.randn(10, 3)
    moved = response + torch.randn(10, 1)
    torch.testing.assert_close(chain.gram(moved, last=True), chain.gram(response, last=True), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(chain.gram(moved, last=False), chain.gram(response, last=False), atol=1e-2)


def test_rescaling_a_rectified_layer_and_undoing_it_changes_nothing() -> None:
    given = tensors("plain-6-none-tanh")
    scale = 0.5 + torch.rand(6)
    scaled = {
        **given,
        "conv1.weight": given["conv1.weight"] * scale.view(-1, 1, 1, 1),
        "conv1.bias": given["conv1.bias"] * scale,
    }
    scaled["conv2.weight"] = given["conv2.weight"] / scale.view(1, -1, 1, 1)
    one, two = (chain.tokens(read(t), probes(), rectified=True) for t in (given, scaled))
    torch.testing.assert_close(one[1:], two[1:], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e8])
def test_tiny_and_huge_weights_stay_in_range(size: float) -> None:
    given = {k: v * size for k, v in resnet().items() if v.ndim > 1}
    assert torch.isfinite(chain.tokens(read(given), probes(), rectified=True)).all()


def test_a_dead_network_gives_zeros() -> None:
    given = {k: torch.zeros_like(v) for k, v in mlp((784, 9, 4)).items()}
    assert not chain.tokens(read(given), probes(), rectified=True).any()


def test_large_networks_are_read_on_smaller_maps() -> None:
    wide = read({f"c{i}.weight": torch.zeros(1).expand(512, 512 if i else 3, 3, 3) for i in range(5)})
    assert chain.affordable(read(tensors("cnn-l")), 64, 16) == 16
    assert chain.affordable(wide, 64, 16) < 16


def test_colour_probes_turn_grey_for_one_channel_and_flat_for_pixels() -> None:
    x = probes()
    grey = (x * torch.tensor(chain.GREY).view(1, 3, 1, 1)).sum(1)
    given = {"c.weight": torch.ones(1, 1, 1, 1)}
    torch.testing.assert_close(chain.responses(read(given), x, rectified=True)[0][:, 0], grey.mean((1, 2)))
    flat = chain.responses(read({"l.weight": torch.eye(784)}), x, rectified=True)[0]
    assert flat.shape == (12, 784)
    assert math.isclose(float(flat.mean()), float(grey.mean()), abs_tol=0.05)
