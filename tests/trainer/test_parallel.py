"""Two machines do what one does: same draws, shared work, summed gradients."""

import itertools
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.test_lps import SETTINGS, toy
from trainer import cli, lps
from trainer.parallel import Team

STAGES = ("vae", "set_encoder", "diffusion")


def launch(*machines: list[str]) -> None:
    """Run this file once on each machine, as one team; machines share no disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{free.getsockname()[1]}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(machines)), "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meet, "--rdzv-id", "test", "--local-addr", "127.0.0.1"]
    command = [*torchrun, "-m", "--", "tests.trainer.test_parallel"]
    running = [
        subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for arguments in machines
    ]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]


def close(a: Path, b: Path) -> None:
    """The same weights but for the order in which sums were taken.

    All together, not one by one: the bias of attention's keys cancels in the softmax, its gradient is rounding error
    alone, and AdamW makes whole steps of that.
    """
    one, two = load_file(a), load_file(b)
    assert one.keys() == two.keys()
    x, y = (torch.cat([t.flatten() for t in tensors.values()]) for tensors in (one, two))
    assert (x - y).norm() < 1e-3 * x.norm()


@pytest.fixture(scope="module")
def by_two(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny run on two machines that make its later stages again together."""
    runs = [tmp_path_factory.mktemp("machine") for _ in range(2)]
    for run in runs:
        for part in tiny_run.iterdir():
            if part.name not in STAGES and part.is_dir():
                shutil.copytree(part, run / part.name)
    launch(*([str(run), *STAGES] for run in runs))
    return runs


@pytest.mark.parametrize("target", ["cnn-s", "head"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_train_the_same_weights_as_one(tiny_run: Path, by_two: list[Path], stage: str, target: str) -> None:
    product = Path(stage, f"{target}.safetensors")
    for run in by_two:
        close(tiny_run / product, run / product)
    one, other = (load_file(run / product) for run in by_two)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_of_two_logs(by_two: list[Path]) -> None:
    assert sum(len(list(run.glob("diffusion/head/tensorboard/*"))) for run in by_two) == 1


def _lps(folder: Path) -> None:
    for objective in lps.OBJECTIVES:
        lps.train(folder, SETTINGS, "chain", objective, toy(), seed=1)


def test_second_order_networks_learn_the_same_from_all_pairs(tmp_path: Path) -> None:
    _lps(tmp_path / "1")
    launch([str(tmp_path / "2"), "lps"], [str(tmp_path / "3"), "lps"])
    one, two = (sorted((tmp_path / n).glob("*/checkpoint.pt")) for n in ("1", "2"))
    assert len(one) == len(two) == len(lps.OBJECTIVES)
    for a, b in zip(one, two, strict=True):
        first, second = (torch.load(path, weights_only=True)["modules"] for path in (a, b))
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_batch_is_shared_out_whole() -> None:
    batch = list(range(7))
    parts = [batch[Team(rank, 3).own(7)] for rank in range(3)]
    assert sorted(itertools.chain(*parts)) == batch
    assert sum(Team(rank, 3).share(7) for rank in range(3)) == pytest.approx(1)
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 2"):
        Team(0, 3).own(2)


def test_alone_nothing_changes() -> None:
    team, grad = Team(), torch.randn(3)
    x: Tensor = torch.zeros(3, requires_grad=True)
    x.grad = grad.clone()
    team.sum_gradients([x])
    assert torch.equal(x.grad, grad)
    assert team.together(x[:, None], 3) is not None
    assert team.agreed("this") == "this"
    assert team.total(torch.tensor(2.5)) == 2.5


if __name__ == "__main__":  # as `launch` runs it
    torch.set_num_threads(1)
    if sys.argv[2:] == ["lps"]:
        _lps(Path(sys.argv[1]))
    else:
        cli.main([*sys.argv[2:], "--recipe", "tiny", "--run", sys.argv[1]])
