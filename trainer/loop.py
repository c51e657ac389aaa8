"""The one training loop: it counts, logs, saves and resumes; a stage brings only its step.

A run that is stopped and started again continues from its last checkpoint with the same random draws, so it ends with
the same weights as one that was left alone.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer.parallel import Team, team
from trainer.recipe import TrainingRecipe

Step = Callable[[int, Generator], tuple[Tensor, dict[str, float]]]


def learning_rate(recipe: TrainingRecipe, step: int) -> float:
    """Linear warm-up over the first twentieth, then half a cosine down to a hundredth."""
    warm = max(1, recipe.steps // 20)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def fit(
    folder: Path,
    modules: nn.ModuleDict,
    recipe: TrainingRecipe,
    step: Step,
    *,
    seed: int,
    slow: Sequence[Tensor] = (),
    after: Callable[[int], None] | None = None,
    save_every: int = 500,
    clip: float = 1.0,
    split: bool = False,
) -> float:
    """Train `modules` for `recipe.steps` AdamW steps; returns the seconds that they took, interrupted runs included.

    `step(i, generator)` gives the loss and figures to log. Everything trainable and everything to resume lives in
    `modules` (averages of weights included) and in the generator; `after(i)` runs behind every update. Parameters
    named in `slow` learn at a fifth of the rate. Under `torchrun` a step with `split` gives this process' part of the
    loss, to be summed (see parallel.py); other stages do the same work in every process.
    """
    crew = team() if split else Team()
    folder.mkdir(parents=True, exist_ok=True)
    trained = [p for p in modules.parameters() if p.requires_grad]
    held_back = {id(p) for p in slow}
    groups = []
    for factor in (1.0, 0.2):
        own = [p for p in trained if (id(p) in held_back) == (factor < 1)]
        for matrices in (True, False):
            decay = recipe.weight_decay if matrices and factor == 1 else 0.0
            params = [p for p in own if (p.ndim > 1) == matrices]
            if params:
                groups.append({"params": params, "weight_decay": decay, "factor": factor})
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    generator = Generator().manual_seed(seed)
    checkpoint = folder / "checkpoint.pt"
    first, before = 0, 0.0
    saved = crew.agreed(torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None)
    if saved is not None:
        modules.load_state_dict(saved["modules"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        first, before = saved["step"], saved["seconds"]
    started = time.perf_counter()
    with _log(folder) as writer:
        bar = tqdm(
            range(first, recipe.steps),
            initial=first,
            total=recipe.steps,
            desc=folder.name,
            mininterval=5,
            disable=not team().leads,
        )
        for i in bar:
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * learning_rate(recipe, i)
            loss, figures = step(i, generator)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{folder.name}: the loss is {loss.item()} at step {i}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            crew.sum_gradients(trained)
            norm = nn.utils.clip_grad_norm_(trained, clip)
            optimizer.step()
            if after is not None:
                after(i)
            if i % 20 == 0 or i == recipe.steps - 1:
                figures = {"loss": crew.total(loss), "gradient_norm": float(norm), **figures}
                if writer is not None:
                    for name, value in figures.items():
                        writer.add_scalar(f"{folder.name}/{name}", value, i)
                bar.set_postfix({k: f"{v:.3g}" for k, v in figures.items()})
            if team().writes and ((i + 1) % save_every == 0 or i == recipe.steps - 1):
                _save(checkpoint, modules, optimizer, generator, i + 1, before + time.perf_counter() - started)
    return float(before + time.perf_counter() - started)


@contextmanager
def _log(folder: Path) -> Iterator[SummaryWriter | None]:
    if not team().leads:
        yield None
        return
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield writer


def _save(
    path: Path,
    modules: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    generator: Generator,
    step: int,
    seconds: float,
) -> None:
    state = {
        "modules": modules.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "step": step,
        "seconds": seconds,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
