import pytest
import torch
import torch.nn.functional as F

from loomweight.architectures import ArchitectureSpec
from loomweight.loom import Support
from loomweight.weight_vae import join
from tests.loomweight.made import SPECS, loom, padded, seeded, support


@pytest.mark.parametrize("spec", SPECS)
def test_zero_latents_are_the_closed_form_network(spec: ArchitectureSpec) -> None:
    # Given a loom whose parts all answer something, and a task
    made = loom(spec)
    task = support(made, classes=3, images=5)
    zero = torch.zeros(made.latent_shape(1, 3))
    # When zero is decoded
    trunk = made.trunks(zero)
    rows, base = made.rows(zero, trunk, task)
    # Then the trunk is the shared one to the bit and the head is ridge regression on its features, nothing added
    assert torch.equal(trunk[0], made.vae.shared)
    assert torch.equal(rows, base)
    torch.testing.assert_close(rows, made.closed_form(task.trunk_features, task.mask), atol=1e-4, rtol=1e-4)
    # And the network that is handed out computes what `logits` says
    images = task.images[0].flatten(0, 1)
    network = join(spec, trunk[0], rows[0])
    expected = F.linear(spec.features(network, images), network["head.weight"], network["head.bias"])
    torch.testing.assert_close(made.logits(trunk[0], rows[0], images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_latents_move_trunk_and_rows(spec: ArchitectureSpec) -> None:
    made = loom(spec)
    task = support(made, classes=3, images=5)
    latents = torch.randn(made.latent_shape(1, 3), generator=seeded(5))
    trunk = made.trunks(latents)
    rows, base = made.rows(latents, trunk, task)
    torch.testing.assert_close(rows - base, made.vae.decode_row(latents[:, made.config.vae.latents :]))
    if spec.trunk:
        assert not torch.equal(trunk[0], made.vae.shared)
        assert not torch.equal(base, made.rows(torch.zeros_like(latents), trunk * 0 + made.vae.shared, task)[1])


@pytest.mark.parametrize("spec", SPECS)
def test_padding_is_ignored(spec: ArchitectureSpec) -> None:
    made = loom(spec)
    task = support(made, classes=3, images=4)
    longer = padded(task, 2)
    latents = torch.randn(made.latent_shape(1, 3), generator=seeded(5))
    trunk = made.trunks(latents)
    ours, theirs = made.condition(longer), made.condition(task)
    torch.testing.assert_close(ours.classwise, theirs.classwise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.overall, theirs.overall, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        made.rows(latents, trunk, longer)[0], made.rows(latents, trunk, task)[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("spec", SPECS)
def test_class_order_passes_through_the_whole_loom(spec: ArchitectureSpec) -> None:
    made = loom(spec)
    task = support(made, classes=4, images=3)
    order = torch.tensor([1, 3, 0, 2])
    moved = Support(*(x[:, order] for x in (task.images, task.features, task.trunk_features, task.mask)))
    first = made.config.vae.latents
    tokens = torch.cat((torch.arange(first), first + order))
    z = torch.randn(made.latent_shape(1, 4), generator=seeded(6))
    t = torch.tensor([0.7])
    clean = made.unscale(made.denoise(z, t, made.condition(task)))
    moved_clean = made.unscale(made.denoise(z[:, tokens], t, made.condition(moved)))
    torch.testing.assert_close(moved_clean, clean[:, tokens], atol=1e-4, rtol=1e-4)
    rows, _ = made.rows(clean, made.trunks(clean), task)
    moved_rows, _ = made.rows(moved_clean, made.trunks(moved_clean), moved)
    torch.testing.assert_close(moved_rows, rows[:, order], atol=1e-3, rtol=1e-3)


def test_unscale_uses_one_spread_for_all_classes() -> None:
    made = loom(SPECS[0])
    ones = made.unscale(torch.ones(made.latent_shape(1, 5)))[0]
    assert torch.equal(ones[:2], made.spread[:2])
    assert torch.equal(ones[2:], made.spread[2:].expand(5, -1))
