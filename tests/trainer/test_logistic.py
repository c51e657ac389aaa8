import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from trainer import logistic


def samples(classes: int, each: int, dim: int, seed: int = 0, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Classes that overlap, on features of unequal scale that are not centred."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(each)
    centres = torch.randn(classes, dim, generator=generator)
    x = centres[y] + spread * torch.randn(len(y), dim, generator=generator)
    return 3 + x * torch.linspace(0.2, 3, dim), y


def scaled(x: Tensor) -> np.ndarray:
    return (x.double() / (x.std().double() * x.shape[1] ** 0.5)).numpy()


def reference(x: Tensor, y: Tensor, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, tol=1e-10, max_iter=20_000).fit(scaled(x), y.numpy())


def objective(x: np.ndarray, y: Tensor, weight: np.ndarray, bias: np.ndarray, strength: float) -> float:
    logits = torch.from_numpy(x @ weight.T + bias)
    return float(torch.nn.functional.cross_entropy(logits, y)) + float(np.square(weight).sum()) / 2 / strength / len(y)


@pytest.mark.parametrize("strength", logistic.STRENGTHS)
@pytest.mark.parametrize("shape", [(5, 4, 60), (4, 30, 20), (3, 1, 50)])  # fewer samples than features, more, one each
def test_the_optimum_is_scikit_learns(shape: tuple[int, int, int], strength: float) -> None:
    x, y = samples(*shape)
    theirs = reference(x, y, strength)
    r = logistic.rotate(x)
    one_hot = torch.eye(shape[0], dtype=torch.float64)[y]
    shares, strengths = torch.ones(len(y), 1, dtype=torch.float64), torch.tensor([strength], dtype=torch.float64)
    weight, bias = (t.numpy() for t in r.back(logistic.minimise(r.x, one_hot, shares, strengths)[:, 0]))
    factor = float(x.std()) * x.shape[1] ** 0.5  # back to the scale that the penalty sees
    ours = objective(scaled(x), y, weight * factor, bias, strength)
    best = objective(scaled(x), y, theirs.coef_, theirs.intercept_, strength)
    assert ours == pytest.approx(best, rel=1e-4)
    assert weight * factor == pytest.approx(theirs.coef_, abs=0.01 * np.abs(theirs.coef_).max())
    fresh, _ = samples(shape[0], 40, shape[2], seed=0)
    said = (fresh.double().numpy() @ weight.T + bias).argmax(1)
    assert (said == theirs.predict(fresh.double().numpy() / factor)).all()


def test_problems_side_by_side_are_the_same_as_one_by_one() -> None:
    # Given three problems: two strengths, and one that leaves samples out
    x, y = samples(4, 10, 30)
    r = logistic.rotate(x)
    one_hot = torch.eye(4, dtype=torch.float64)[y]
    shares = torch.ones(40, 3, dtype=torch.float64)
    shares[::3, 2] = 0
    strengths = torch.tensor([0.1, 1000.0, 10.0], dtype=torch.float64)
    together = logistic.minimise(r.x, one_hot, shares, strengths, tolerance=1e-9)
    for b in range(3):
        kept = shares[:, b] > 0
        alone = logistic.minimise(r.x[kept], one_hot[kept], shares[kept, b : b + 1], strengths[b : b + 1])
        assert torch.allclose(together[:, b], alone[:, 0], atol=1e-3 * float(alone.abs().max()))


@pytest.mark.parametrize("judge", ["accuracy", "likelihood"])
@pytest.mark.parametrize("seed", range(3))
def test_the_strength_is_the_one_that_scikit_learns_folds_choose(judge: str, seed: int) -> None:
    x, y = samples(5, 7, 40, seed=seed)
    splits = list(StratifiedKFold(3, shuffle=True, random_state=seed).split(x, y))

    def held_out(strength: float) -> float:
        total = 0.0
        for train, test in splits:
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(scaled(x)[train], y.numpy()[train])
            p = model.predict_log_proba(scaled(x)[test])
            truth = y.numpy()[test]
            total += (p.argmax(1) == truth).sum() if judge == "accuracy" else p[range(len(test)), truth].sum()
        return total

    theirs = reference(x, y, max(logistic.STRENGTHS, key=held_out))
    weight, bias = logistic.fit(x, y, 5, seed, judge=judge)
    factor = float(x.std()) * x.shape[1] ** 0.5
    assert weight.numpy() * factor == pytest.approx(theirs.coef_, abs=0.02 * np.abs(theirs.coef_).max())
    assert ((x @ weight.T + bias).argmax(1).numpy() == theirs.predict(scaled(x))).all()


def test_two_classes_are_a_softmax_like_any_other() -> None:
    # scikit-learn keeps one row for two classes, which the penalty sees at twice the strength.
    x, y = samples(2, 1, 30)
    weight, _ = logistic.fit(x, y, 2)
    row = reference(x, y, 2 * logistic.ONE_IMAGE).coef_[0]
    factor = float(x.std()) * x.shape[1] ** 0.5
    assert (weight[1] - weight[0]).numpy() * factor == pytest.approx(row, abs=0.01 * np.abs(row).max())


def test_features_that_say_nothing_give_a_classifier_all_the_same() -> None:
    weight, bias = logistic.fit(torch.ones(6, 8), torch.arange(3).repeat_interleave(2), 3)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
