import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from torch import Tensor

from loomweight.architectures import CNN_S, head
from loomweight.bundle import Zoo
from loomweight.weight_vae import flatten
from tests.trainer.halves import halves
from trainer import arms, zoo_arms
from trainer.arms import Setting


def made_zoo(models: list[tuple[Tensor, Tensor]]) -> Zoo:
    """A zoo of (trunk, rows)."""
    owners = [torch.full((len(rows),), i) for i, (_, rows) in enumerate(models)]
    rows = torch.cat([rows for _, rows in models])
    return Zoo({"trunks": torch.stack([t for t, _ in models]), "rows": rows, "row_models": torch.cat(owners)})


def setting(each: int = 6) -> Setting:
    x, y = halves(each, seed=3)
    features = torch.eye(3, 8)[y] + 0.3 * torch.randn(len(y), 8, generator=torch.Generator().manual_seed(3))
    return Setting(x, y, features, 3)


def networks(s: Setting) -> list[tuple[Tensor, Tensor]]:
    """Two random networks, one that was trained on the task under other class numbers, one with too few classes."""
    random = [CNN_S.initial(k, torch.Generator().manual_seed(k)) for k in (3, 5, 2)]
    shuffled = Setting(s.x, torch.tensor([2, 0, 1])[s.y], s.features, 3)
    start = CNN_S.initial(3, torch.Generator().manual_seed(9))
    good = arms.trained(shuffled, CNN_S, start, 80, lr=1e-2)
    return [flatten(CNN_S, w) for w in (random[0], random[1], good, random[2])]


def test_rows_are_matched_to_classes_one_to_one() -> None:
    # Two classes would like row 1 best: together they are likelier with one of them on row 3.
    logits = torch.tensor([[0.0, 5, 0, 4.5], [0, 5, 0, 0], [0, 0, 3, 0]])
    assert zoo_arms.match(logits, torch.arange(3), 3).tolist() == [3, 1, 2]


def test_the_model_that_knows_the_task_is_found_and_its_head_permuted() -> None:
    s = setting()
    r = zoo_arms.read(CNN_S, made_zoo(networks(s)), s)
    best = zoo_arms.best_model(r)
    assert best is not None
    model, rows = best
    assert model == 2
    assert rows.shape == (3, CNN_S.width + 1)
    said = arms.network(CNN_S, r.weights(model, rows))(s.x, s.features).argmax(1)
    assert (said == s.y).float().mean() > 0.8


def test_no_model_with_enough_classes_is_no_answer() -> None:
    s = setting()
    r = zoo_arms.read(CNN_S, made_zoo(networks(s)[3:]), s)
    assert zoo_arms.best_model(r) is None
    assert zoo_arms.best_trunk(r) == 0  # a trunk serves any number of classes


def test_heads_are_compared_on_the_encoders_features() -> None:
    s = setting()
    right, wrong = torch.cat((torch.eye(3, 8), torch.zeros(3, 1)), 1), torch.randn(4, 9)
    zoo = made_zoo([(torch.zeros(0), wrong), (torch.zeros(0), right[[1, 2, 0]])])
    best = zoo_arms.best_model(zoo_arms.read(head(8), zoo, s))
    assert best is not None
    assert best[0] == 1
    assert torch.equal(best[1], right)


def test_the_trunk_is_chosen_by_exact_leave_one_out_error() -> None:
    # Given two trunks' features; scikit-learn leaves out one sample after the other, at every penalty
    generator = torch.Generator().manual_seed(0)
    s = setting()
    features = torch.randn(2, len(s.y), 5, generator=generator)
    features[1] += 0.8 * torch.eye(3, 5)[s.y]
    target = np.eye(3)[s.y.numpy()]
    errors = []
    for x in features.double().numpy():
        size = np.linalg.svd(x - x.mean(0), compute_uv=False)
        tried = []
        for share in zoo_arms.PENALTIES.tolist():
            model = Ridge(alpha=share * np.square(size).mean())
            # the penalty stays; the bias is fitted anew to the others, as the leverage of 1 / n says
            tried.append(np.square(target - cross_val_predict(model, x, target, cv=LeaveOneOut())).mean())
        errors.append(min(tried))
    read = zoo_arms.Read(CNN_S, made_zoo(networks(s)), features, s.y, 3)
    assert zoo_arms.best_trunk(read) == int(np.argmin(errors))
    # and the other way round
    swapped = zoo_arms.Read(CNN_S, made_zoo(networks(s)), features.flip(0), s.y, 3)
    assert zoo_arms.best_trunk(swapped) == 1 - int(np.argmin(errors))
    assert zoo_arms.leave_one_out(read).numpy() == pytest.approx(np.array(errors), rel=1e-6)


def test_one_image_a_class_takes_the_trunk_of_the_best_model() -> None:
    s = setting(each=1)
    r = zoo_arms.read(CNN_S, made_zoo(networks(setting())), s)
    best = zoo_arms.best_model(r)
    assert best is not None
    assert zoo_arms.best_trunk(r) == best[0]


def test_noise_is_a_share_of_each_tensors_spread() -> None:
    trunk, rows = flatten(CNN_S, CNN_S.initial(200, torch.Generator().manual_seed(0)))
    rows = 100 * rows  # another scale than the trunk's
    clean = zoo_arms.with_noise(CNN_S, trunk, rows, 0.0, torch.Generator())
    noisy = zoo_arms.with_noise(CNN_S, trunk, rows, 0.1, torch.Generator().manual_seed(0))
    for name in ("conv1.weight", "conv2.weight", "head.weight"):
        share = float((noisy[name] - clean[name]).std() / clean[name].std())
        assert share == pytest.approx(0.1, rel=0.2)
    again = zoo_arms.with_noise(CNN_S, trunk, rows, 0.1, torch.Generator().manual_seed(0))
    assert all(torch.equal(noisy[k], again[k]) for k in noisy)
