import pytest
import torch
from torch import Tensor, nn

from loomweight.denoiser import Denoiser, DenoiserConfig
from tests.loomweight.made import seeded

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def denoiser(latents: int = 3, *, trained: bool = True) -> Denoiser:
    torch.manual_seed(0)
    made = Denoiser(DenoiserConfig(latents, 6, classwise=10, overall=5, width=32, layers=2, heads=4))
    if trained:
        nn.init.normal_(made.latent_out.weight, std=0.5)
    return made.requires_grad_(False)


def inputs(latents: int = 3, classes: int = 4, batch: int = 2, seed: int = 0) -> Inputs:
    g = seeded(seed)
    z = torch.randn(batch, latents + classes, 6, generator=g)
    condition = torch.randn(batch, classes, 10, generator=g), torch.randn(batch, 5, generator=g)
    return z, torch.rand(batch, generator=g), *condition


def test_an_untrained_denoiser_says_zero() -> None:
    assert not denoiser(trained=False)(*inputs(), torch.ones(2)).any()


@pytest.mark.parametrize("latents", [0, 3])
def test_class_order_passes_through(latents: int) -> None:
    model, (z, t, classwise, overall) = denoiser(latents), inputs(latents)
    order = torch.tensor([3, 1, 0, 2])
    tokens = torch.cat((torch.arange(latents), latents + order))
    out = model(z, t, classwise, overall, torch.ones(2))
    moved = model(z[:, tokens], t, classwise[:, order], overall, torch.ones(2))
    torch.testing.assert_close(moved, out[:, tokens])
    assert (out[:, latents] - out[:, latents + 1]).abs().max() > 1e-3


def test_global_tokens_have_places() -> None:
    model, (z, t, classwise, overall) = denoiser(), inputs()
    swapped = torch.tensor([1, 0, 2, 3, 4, 5, 6])
    out = model(z, t, classwise, overall, torch.ones(2))
    assert (model(z[:, swapped], t, classwise, overall, torch.ones(2)) - out[:, swapped]).abs().max() > 1e-4


def test_a_dropped_condition_is_not_seen() -> None:
    model, (z, t, classwise, overall) = denoiser(), inputs()
    keep = torch.tensor([1.0, 0.0])  # the second item's condition is dropped
    out = model(z, t, classwise, overall, keep)
    other = model(z, t, classwise + 1, overall - 1, keep)
    assert torch.equal(out[1], other[1])
    assert (out[0] - other[0]).abs().max() > 1e-3


def test_noise_level_matters() -> None:
    model, (z, t, classwise, overall) = denoiser(), inputs()
    difference = model(z, t, classwise, overall, torch.ones(2)) - model(z, 1 - t, classwise, overall, torch.ones(2))
    assert difference.abs().max() > 1e-4


def test_items_of_a_batch_do_not_see_each_other() -> None:
    model, given = denoiser(), inputs()
    alone = [model(*(x[i : i + 1] for x in given), torch.ones(1)) for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), model(*given, torch.ones(2)))
