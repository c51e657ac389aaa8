import pytest
import torch
from torch import Generator

from loomweight.errors import InvalidCheckpoint
from loomweight.similarity.permute import shuffled
from tests.loomweight.similarity.networks import NAMES, net, resnet


@pytest.mark.parametrize("name", [n for n in NAMES if "group" not in n])  # a group norm's groups are no free order
def test_a_shuffled_network_computes_the_same(name: str) -> None:
    made = net(name, 5)
    x = torch.rand(3, 3, 32, 32, generator=Generator().manual_seed(1))
    before = made(x)
    given = {k: v.clone() for k, v in made.state_dict().items()}
    moved = shuffled(given, Generator().manual_seed(2))
    assert any(not torch.equal(moved[k], given[k]) for k in given)
    made.load_state_dict(moved)
    torch.testing.assert_close(made(x), before, atol=1e-4, rtol=1e-4)


def test_the_outputs_keep_their_order() -> None:
    given = resnet()
    moved = shuffled(given, Generator().manual_seed(0))
    assert torch.equal(moved["fc.bias"], given["fc.bias"])
    assert torch.equal(moved["fc.weight"].sort(1).values, given["fc.weight"].sort(1).values)


def test_what_is_not_connected_is_refused() -> None:
    with pytest.raises(InvalidCheckpoint, match="input is known"):
        shuffled({"a.weight": torch.rand(4, 5), "b.weight": torch.rand(3, 9)}, Generator())
