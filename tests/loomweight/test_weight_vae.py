import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from loomweight import architectures
from loomweight.architectures import ArchitectureSpec
from loomweight.tokens import to_tokens
from loomweight.weight_vae import TOKEN_SIZE, WeightVae, WeightVaeConfig, flatten, join, split
from tests.loomweight.made import SPECS, seeded, weights


def vae(trunk: int = 60, row: int = 9, latents: int = 2, dim: int = 4) -> WeightVae:
    torch.manual_seed(0)
    made = WeightVae(WeightVaeConfig(trunk, row, latents, dim))
    made.shared.copy_(torch.randn(trunk))
    made.scale.copy_(0.1 + torch.rand(trunk))
    made.row_scale.copy_(0.1 + torch.rand(row))
    return made.requires_grad_(False)


@settings(max_examples=30, deadline=None)
@given(spec=st.sampled_from([*SPECS, architectures.head(600)]), classes=st.integers(2, 20), seed=st.integers(0, 99))
def test_split_and_join_are_exact_inverses(spec: ArchitectureSpec, classes: int, seed: int) -> None:
    given_weights = weights(spec, classes, seed)
    trunk, rows = split(spec, to_tokens(spec, given_weights, TOKEN_SIZE), classes)
    assert trunk.shape == (spec.parameters(classes) - rows.numel(),)
    assert rows.shape == (classes, spec.width + 1)
    back = join(spec, trunk, rows)
    assert list(back) == list(given_weights)
    assert all(torch.equal(back[name], given_weights[name]) for name in back)
    # and from the other side
    assert all(torch.equal(a, b) for a, b in zip(flatten(spec, back), (trunk, rows), strict=True))


def test_principal_components_rebuild_a_zoo_of_low_rank() -> None:
    # Given a zoo whose differences from the shared network span as many directions as the code has values
    made = vae()
    generator = seeded(1)
    basis, row_basis = torch.randn(8, 60, generator=generator), torch.randn(4, 9, generator=generator)
    trunks = made.shared + made.scale * (torch.randn(30, 8, generator=generator) @ basis)
    rows = made.row_scale * (torch.randn(30, 5, 4, generator=generator) @ row_basis)
    # When the autoencoder starts from it
    made.start(trunks, rows.flatten(0, 1))
    # Then every model comes back, through latents of unit scale
    codes, row_codes = made.encode(trunks, rows)
    assert codes.shape == (30, 2, 4)
    assert row_codes.shape == (30, 5, 4)
    torch.testing.assert_close(made.decode(codes), trunks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.decode_row(row_codes), rows, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codes.flatten(1).square().mean(0), torch.ones(8), atol=1e-3, rtol=0)


def test_a_zoo_smaller_than_the_code_leaves_the_rest_at_zero() -> None:
    made = vae(latents=5, dim=4)
    trunks = made.shared + torch.randn(3, 60, generator=seeded(2))
    made.start(trunks, torch.randn(15, 9, generator=seeded(3)))
    codes, _ = made.encode(trunks, torch.zeros(3, 5, 9))
    assert not codes.flatten(1)[:, 3:].any()
    torch.testing.assert_close(made.decode(codes), trunks, atol=1e-4, rtol=1e-4)


def test_zero_is_the_shared_network_to_the_bit() -> None:
    made = vae()
    made.start(made.shared + torch.randn(30, 60, generator=seeded(1)), torch.randn(30, 9, generator=seeded(2)))
    assert torch.equal(made.decode(torch.zeros(3, 2, 4)), made.shared.expand(3, -1))
    assert not made.decode_row(torch.zeros(3, 5, 4)).any()


def test_a_target_without_a_trunk_has_no_global_latents() -> None:
    made = vae(trunk=0, latents=0)
    codes, row_codes = made.encode(torch.zeros(3, 0), torch.randn(3, 5, 9))
    assert codes.shape == (3, 0, 4)
    assert row_codes.shape == (3, 5, 4)
    assert made.decode(codes).shape == (3, 0)


def test_kl_is_that_of_the_distributions() -> None:
    made = vae()
    made.log_noise.copy_(torch.tensor([-2.0, -1.0, 0.0, 0.5]))
    means = torch.randn(3, 2, 4, generator=seeded()), torch.randn(3, 5, 4, generator=seeded(1))
    expected = torch.cat([kl_divergence(Normal(m, made.log_noise.exp()), Normal(0.0, 1.0)).flatten() for m in means])
    assert made.kl(*means).item() == pytest.approx(expected.mean().item(), rel=1e-5)
