import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from loomweight.closed_form import ClosedForm, nearest_mean, ridge
from tests.loomweight.made import seeded


def samples(classes: int, images: int, dim: int, seed: int = 0) -> Tensor:
    """(classes, images, dim) double, classes apart from each other."""
    generator = seeded(seed)
    centres = torch.randn(classes, 1, dim, generator=generator, dtype=torch.double)
    return 3 + centres + torch.randn(classes, images, dim, generator=generator, dtype=torch.double)


def full(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:-1], dtype=torch.bool)


@pytest.mark.parametrize(("classes", "images", "dim"), [(2, 3, 40), (5, 20, 8), (7, 1, 16), (4, 10, 40)])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_ridge_agrees_with_scikit_learn(classes: int, images: int, dim: int, strength: float) -> None:
    x = samples(classes, images, dim)
    weight, bias = ridge(x, full(x), strength)
    # scikit-learn sums squared errors where we average them, and its penalty is absolute
    flat = x.flatten(0, 1).numpy()
    alpha = strength * (flat.var(0).mean() + 1e-8) * len(flat)
    targets = np.repeat(np.eye(classes), images, 0) - 1 / classes
    reference = Ridge(alpha=alpha).fit(flat, targets)
    np.testing.assert_allclose(weight.numpy(), reference.coef_, atol=1e-7)
    np.testing.assert_allclose(bias.numpy(), reference.intercept_, atol=1e-7)


def test_unbalanced_classes_weigh_the_same() -> None:
    # Given class 0 with every image twice and class 1 with each once
    x = samples(2, 6, 4)
    doubled = torch.cat((x, x), 1)
    mask = full(doubled)
    mask[1, 6:] = False
    # Then nothing differs from each image once
    for ours, theirs in zip(ridge(doubled, mask, 0.5), ridge(x, full(x), 0.5), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("junk", [0.0, 1e3, -50.0])
def test_masked_images_are_ignored(junk: float) -> None:
    x = samples(3, 4, 6)
    padded = torch.cat((x, torch.full((3, 2, 6), junk, dtype=x.dtype)), 1)
    mask = torch.cat((full(x), torch.zeros(3, 2, dtype=torch.bool)), 1)
    for ours, theirs in zip(ridge(padded, mask, 0.5), ridge(x, full(x), 0.5), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_primal_and_dual_agree() -> None:
    # Given 6 images of 10 features, which the n x n system solves, and the same padded to 12, which the d x d one does
    x = samples(2, 3, 10)
    padded = torch.cat((x, torch.ones(2, 3, 10, dtype=x.dtype)), 1)
    mask = torch.cat((full(x), torch.zeros(2, 3, dtype=torch.bool)), 1)
    for primal, dual in zip(ridge(padded, mask, 0.3), ridge(x, full(x), 0.3), strict=True):
        torch.testing.assert_close(primal, dual)


def test_batches_are_solved_one_by_one() -> None:
    a, b = samples(3, 4, 6, 1), samples(3, 4, 6, 2)
    both = torch.stack((a, b))
    weight, bias = ridge(both, full(both), torch.tensor([0.1, 2.0], dtype=torch.double))
    for i, (x, strength) in enumerate(((a, 0.1), (b, 2.0))):
        alone = ridge(x, full(x), strength)
        torch.testing.assert_close(weight[i], alone[0])
        torch.testing.assert_close(bias[i], alone[1])


def test_logits_do_not_depend_on_the_scale_of_features() -> None:
    x = samples(3, 5, 4)
    (w1, b1), (w2, b2) = ridge(x, full(x), 0.5), ridge(100 * x, full(x), 0.5)
    torch.testing.assert_close(x @ w1.T + b1, 100 * x @ w2.T + b2, rtol=1e-6, atol=1e-6)


def test_nearest_mean_answers_like_distances_to_class_means() -> None:
    x = samples(4, 6, 5)
    mask = full(x)
    mask[2, 3:] = False
    means = torch.stack([x[c][mask[c]].mean(0) for c in range(4)])
    asked = samples(4, 20, 5, seed=9).flatten(0, 1)
    weight, bias = nearest_mean(x, mask)
    logits, distances = asked @ weight.T + bias, -torch.cdist(asked, means).square() / 2
    ratio = (logits[:, 1:] - logits[:, :1]) / (distances[:, 1:] - distances[:, :1])
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))  # one positive factor apart
    assert ratio[0, 0] > 0
    weight, bias = nearest_mean(100 * x, mask)
    torch.testing.assert_close(100 * asked @ weight.T + bias, logits, rtol=1e-6, atol=1e-6)


def test_head_rows_are_ridge_and_nearest_mean_in_shares_and_separate_the_classes() -> None:
    head = ClosedForm().double()
    x = samples(4, 8, 6)[None]
    rows = head(x, full(x))
    assert rows.shape == (1, 4, 7)
    weight, bias = ridge(x, full(x), (head.strength[0] + head.strength[1] * np.log(8)).exp()[None])
    means, offset = nearest_mean(x, full(x))
    expected = np.exp(2.0) * torch.cat((weight, bias[..., None]), -1) + torch.cat((means, offset[..., None]), -1)
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=1e-6)
    alone = torch.cat((means, offset[..., None]), -1)
    torch.testing.assert_close(head(x, full(x), ridge_share=0), alone, rtol=1e-6, atol=1e-6)
    logits = x[0].flatten(0, 1) @ rows[0, :, :-1].T + rows[0, :, -1]
    truth = torch.arange(4).repeat_interleave(8)
    assert (logits.argmax(-1) == truth).double().mean() > 0.8


def test_head_learns_through_the_solution() -> None:
    head = ClosedForm()
    x = samples(3, 5, 4)[None].float()
    head(x, full(x)).square().sum().backward()
    assert head.strength.grad is not None
    assert head.scale.grad is not None
    assert head.nearest.grad is not None
    assert head.strength.grad.abs().min() > 0
    assert head.nearest.grad.abs().min() > 0
