import torch

from benchmarks import seen_tasks


def test_a_network_is_not_its_own_neighbour() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert seen_tasks.nearest(x, x).tolist() == [1.0, 1.0, 2.0]
    assert seen_tasks.nearest(x, x.clone()).tolist() == [0.0, 0.0, 0.0]


def test_what_softmax_does_not_see_makes_no_distance() -> None:
    trunk, rows = torch.ones(3), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(seen_tasks.vector(trunk, rows), seen_tasks.vector(trunk, rows + torch.tensor([5.0, -2.0])))
