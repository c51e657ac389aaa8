from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from loomweight import architectures
from loomweight.architectures import CNN_L, CNN_S, ArchitectureSpec
from loomweight.errors import InvalidCheckpoint
from tests.loomweight.made import HEAD, SPECS, seeded, weights

REFERENCES: dict[str, Callable[[], nn.Sequential]] = {
    "cnn-s": lambda: nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.Tanh(), nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), nn.Tanh()),
        *(nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 10)),
    ),
    "cnn-l": lambda: nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.GELU(), nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.GELU()),
        *(nn.Conv2d(32, 15, 3), nn.MaxPool2d(2), nn.GELU(), nn.Flatten(), nn.Linear(60, 20), nn.GELU()),
        nn.Linear(20, 10),
    ),
}


@pytest.mark.parametrize(("spec", "count"), [(CNN_S, 2_464), (CNN_L, 10_853), (architectures.head(256), 2_570)])
def test_parameter_counts(spec: ArchitectureSpec, count: int) -> None:
    assert spec.parameters(10) == count
    assert sum(w.numel() for w in spec.initial(10, seeded()).values()) == count


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("spec", [CNN_S, CNN_L])
def test_forward_is_the_published_network(spec: ArchitectureSpec, learning: bool) -> None:
    # Given the network as its paper tells it, built from torch's own layers
    reference = REFERENCES[spec.name]()
    given_weights = weights(spec, 10)
    reference.load_state_dict(dict(zip(reference.state_dict(), given_weights.values(), strict=True)))
    # When both see the same images, then they agree
    x = spec.adapt(torch.rand(4, 3, 32, 32, generator=seeded()))
    assert x.shape == (4, spec.channels, spec.side, spec.side)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(spec.forward(given_weights, x), reference(x))


def test_adapt_greys_resizes_and_scales() -> None:
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 1.0
    torch.testing.assert_close(CNN_S.adapt(red), torch.full((1, 1, 28, 28), (0.299 - 0.5) / 0.25))
    assert CNN_L.adapt(torch.ones(1, 3, 32, 32)).unique().item() == 2.0


@pytest.mark.parametrize("spec", SPECS)
def test_initial_weights_depend_on_the_generator_alone(spec: ArchitectureSpec) -> None:
    one, same, other = (spec.initial(7, seeded(s)) for s in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert (one["head.bias"] == 0.01).all()
    assert spec.classes(one) == 7


def broken(change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    checkpoint = weights(CNN_L, 10)
    change(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("head.weight"), "cnn-l needs a tensor 'head.weight'"),
        (lambda w: w.pop("conv2.bias"), "cnn-l needs a tensor 'conv2.bias'"),
        (lambda w: w.update(extra=torch.zeros(1)), "cnn-l has no tensor 'extra'"),
        (
            lambda w: w.update({"fc1.weight": torch.zeros(20, 61)}),
            r"'fc1.weight' has shape \(20, 61\), cnn-l needs \(20, 60\)",
        ),
        (
            lambda w: w.update({"head.bias": torch.zeros(9)}),
            r"'head.bias' has shape \(9,\), cnn-l needs \(10,\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=message):
        CNN_L.classes(broken(change))


def test_get_knows_the_three_and_no_other() -> None:
    assert architectures.get("cnn-s", encoder_dim=1) is CNN_S
    assert architectures.get("cnn-l", encoder_dim=1) is CNN_L
    assert architectures.get("head", encoder_dim=24) == HEAD
    with pytest.raises(KeyError):
        architectures.get("resnet", encoder_dim=1)
