import numpy as np
import pytest
import torch
from torch import Generator

from loomweight.similarity import baselines
from loomweight.similarity.layers import read
from loomweight.similarity.permute import shuffled
from tests.loomweight.similarity.networks import NAMES, tensors


@pytest.mark.parametrize("name", NAMES)
def test_matching_undoes_a_shuffle(name: str) -> None:
    given = tensors(name)
    copy = shuffled(given, Generator().manual_seed(1))
    assert baselines.aligned(read(given), read(copy)) == pytest.approx(1, abs=1e-6)
    plain = baselines.cosine(baselines.raw(given), baselines.raw(copy))
    assert plain is not None
    assert plain < 0.999


def test_one_sweep_undoes_a_shuffle_of_a_large_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "LARGE", 10)
    given = tensors("plain-6-none-tanh")
    copy = shuffled(given, Generator().manual_seed(1))
    assert baselines.aligned(read(given), read(copy)) == pytest.approx(1, abs=1e-6)


def test_different_architectures_have_no_aligned_cosine() -> None:
    assert baselines.aligned(read(tensors("cnn-l")), read(tensors("cnn-s"))) is None
    assert baselines.cosine(torch.ones(2), torch.ones(3)) is None
    assert baselines.cosine(torch.ones(0), torch.ones(0)) is None


def test_statistics_are_those_of_sane() -> None:
    given = {"b.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.tensor([1.0, 3.0])}
    found = baselines.statistics(given)
    x = np.arange(12.0)
    assert found[:2].tolist() == [2.0, 1.0]  # by name: a.bias first
    assert found[7:].tolist() == pytest.approx([x.mean(), x.var(), *np.quantile(x, baselines.QUANTILES)])
    assert len(baselines.statistics(given, only="vectors")) == 7
    assert len(baselines.statistics(given, only="running")) == 0


def test_layerwise_vectors_weigh_every_tensor_alike() -> None:
    given = {"a": torch.full((4,), 100.0), "b": torch.full((9,), 0.01), "n": torch.tensor(3)}
    found = baselines.layerwise(given)
    assert found[:4].norm() == pytest.approx(1)
    assert found[4:].norm() == pytest.approx(1)


def test_singular_values_ignore_orders() -> None:
    given = tensors("cnn-l")
    copy = shuffled(given, Generator().manual_seed(1))
    one, two = (baselines.singular_values(read(t)) for t in (given, copy))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
