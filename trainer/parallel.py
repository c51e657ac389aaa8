"""Data parallel training under `torchrun`: what one process would do, shared out.

    torchrun --nproc-per-node 2 -m -- trainer.cli diffusion --recipe starter

Every process makes the same random draws for the whole batch and computes its own items' part of the loss; gradients
are summed, so all take the same step. With one process nothing here does anything. Results differ from those of one
process by the order in which floating point sums are taken, and by nothing else: unlike with
DistributedDataParallel, where each process draws its own batch and the effective batch grows.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """The processes that train together, and this one's place among them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process writes files: one does on every machine, since machines may share no disk."""
        return self.local_rank == 0

    @property
    def leads(self) -> bool:
        """Whether this process logs and decides where training resumes."""
        return self.rank == 0

    def own(self, count: int) -> slice:
        """This process' items of a batch of so many. Raises ValueError where there is not one for each process."""
        if count < self.size:
            raise ValueError(f"{self.size} processes cannot share a batch of {count}")
        return slice(self.rank, None, self.size)

    def share(self, count: int) -> float:
        """This process' part of a batch of so many."""
        return len(range(count)[self.own(count)]) / count

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their sums over all processes, in one message."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in trained if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

    def total(self, value: Tensor) -> float:
        """Sum of a number over all processes."""
        if self.size == 1:
            return value.item()
        found = value.detach().double().clone()
        dist.all_reduce(found)
        return found.item()

    def mean(self, part: Tensor) -> Tensor:
        """Mean over the items of a whole batch, of which `part` (n, ...) is this process' own; without gradients."""
        if self.size == 1:
            return part.mean(0)
        found = torch.cat((part.sum(0).flatten(), part.new_tensor([len(part)])))
        dist.all_reduce(found)
        return (found[:-1] / found[-1]).view(part.shape[1:])

    def together(self, part: Tensor, count: int) -> Tensor:
        """The whole batch (count, d) of which `part` is this process' own; gradients flow through that part alone.

        The gradient of a loss of all items is the sum over items, so summed gradients are the whole batch's.
        """
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part.detach())
        parts[self.rank] = part
        whole = part.new_empty(count, part.shape[1])
        order = torch.cat([torch.arange(count)[rank :: self.size] for rank in range(self.size)])
        return whole.index_copy(0, order, torch.cat(parts))

    def agreed(self, value: Any) -> Any:
        """What the leading process says."""
        if self.size == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found)
        return found[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


@cache
def team() -> Team:
    """The team that `torchrun` describes in the environment; joined on the first call. A team of one elsewhere."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    dist.init_process_group("gloo")
    return Team(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))
