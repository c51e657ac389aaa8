import torch
from torch import Tensor

from loomweight.set_encoder import SetEncoder, SetEncoderConfig, alignment_loss
from tests.loomweight.made import seeded


def encoder() -> SetEncoder:
    torch.manual_seed(0)
    return SetEncoder(SetEncoderConfig(inputs=12, width=16, heads=2, inducing=4)).eval().requires_grad_(False)


def sets(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two tasks of four classes with up to six images, some classes with fewer."""
    mask = torch.arange(6) < torch.tensor([[6, 1, 3, 5], [2, 6, 6, 4]])[..., None]
    return torch.randn(2, 4, 6, 12, generator=seeded(seed)), mask


def test_class_order_passes_through() -> None:
    model, (x, mask) = encoder(), sets()
    order = torch.tensor([2, 0, 3, 1])
    codes, whole = model(x, mask)
    moved_codes, moved_whole = model(x[:, order], mask[:, order])
    torch.testing.assert_close(moved_codes, codes[:, order])
    torch.testing.assert_close(moved_whole, whole)
    assert (codes[:, 0] - codes[:, 1]).abs().max() > 1e-3  # classes are told apart at all


def test_image_order_does_not_matter() -> None:
    model, (x, mask) = encoder(), sets()
    order = torch.randperm(6, generator=seeded(1))
    for ours, theirs in zip(model(x[:, :, order], mask[:, :, order]), model(x, mask), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_padding_is_not_seen() -> None:
    model, (x, mask) = encoder(), sets()
    junk = torch.where(mask[..., None], x, torch.tensor(99.0))
    longer = torch.cat((junk, torch.full((2, 4, 3, 12), -7.0)), 2)
    longer_mask = torch.cat((mask, torch.zeros(2, 4, 3, dtype=torch.bool)), 2)
    for ours, theirs in zip(model(longer, longer_mask), model(x, mask), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_real_image_is_seen() -> None:
    model, (x, mask) = encoder(), sets()
    changed = x.clone()
    changed[0, 0, 5] += 3.0
    assert (model(changed, mask)[0] - model(x, mask)[0])[0].abs().max() > 1e-4


def test_alignment_loss_is_least_for_aligned_codes() -> None:
    codes = torch.randn(8, 16, generator=seeded(3))
    shuffled = codes[torch.randperm(8, generator=seeded(4))]
    assert alignment_loss(codes, codes) < alignment_loss(codes, shuffled)
    torch.testing.assert_close(alignment_loss(codes, shuffled), alignment_loss(shuffled, codes))
