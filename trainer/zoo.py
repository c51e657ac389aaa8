"""Stage `zoo`: train many small networks, one a task, in processes of one thread each.

Model number i depends on the recipe and i alone, so shards can be built anywhere, in any order, killed and started
again, and the files are the same bit for bit. On this class of CPU separate processes beat `torch.func.vmap` over
models two to one for the convnets (docs/decisions/0003); heads are closed-form convex problems and are solved in
batches.
"""

import json
import multiprocessing as mp
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Generator, Tensor
from tqdm import tqdm

from loomweight import alignment, architectures
from loomweight.architectures import ArchitectureSpec
from trainer import bank, data, encoder, shared, tasks, views
from trainer.recipe import Recipe, ZooRecipe
from trainer.tasks import Task, Variant


@dataclass(frozen=True)
class ZooModel:
    """One trained model and what is known of it."""

    index: int
    task: Task
    weights: dict[str, Tensor]
    test_accuracy: float
    train_accuracy: float
    seconds: float


def folder(run: Path, target: str) -> Path:
    """Where a target's zoo lies."""
    return run / "zoo" / target


def build(recipe: Recipe, run: Path, target: str, *, shard: int = 0, shards: int = 1, processes: int = 1) -> None:
    """Train the models i with i % shards == shard that are not there yet."""
    count = recipe.targets[target].zoo.models
    missing = [i for i in range(shard, count, shards) if not (folder(run, target) / f"{i:05d}.json").exists()]
    folder(run, target).mkdir(parents=True, exist_ok=True)
    if not missing:
        return
    jobs = [(recipe, run, target, i) for i in missing]
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the processes below: the count of threads can change the last bits
        try:
            for job in tqdm(jobs, desc=f"zoo {target}", mininterval=5):
                _build_one(job)
        finally:
            torch.set_num_threads(threads)
        return
    context = mp.get_context("spawn")
    with context.Pool(min(processes, len(missing)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in tqdm(pool.imap_unordered(_build_one, jobs), total=len(jobs), desc=f"zoo {target}", mininterval=5):
            pass


_domains: dict[tuple[str, str], data.Domain] = {}


def domain_of(recipe: Recipe, run: Path, name: str, split: str) -> data.Domain:
    """A prepared domain, opened once a process."""
    if (name, split) not in _domains:
        _domains[name, split] = data.load(recipe, run, split, name)
    return _domains[name, split]


def task_of(recipe: Recipe, run: Path, target: str, index: int) -> Task:
    """The task of a zoo model."""
    train = {name: domain_of(recipe, run, name, "train") for name in recipe.data.domains}
    settings = recipe.targets[target].zoo
    if settings.tasks == "whole":
        return tasks.whole(recipe, train, index)
    return tasks.draw(recipe, train, settings.classes, index)


def reference_of(recipe: Recipe, target: str, index: int) -> int:
    """The model that an independent seed is aligned to: the first of its own data set, those firsts to model 0."""
    sets = len(recipe.data.domains)
    return index % sets if recipe.targets[target].zoo.tasks == "whole" and index >= sets else 0


def _build_one(job: tuple[Recipe, Path, str, int]) -> None:
    recipe, run, target, index = job
    settings = recipe.targets[target].zoo
    task = task_of(recipe, run, target, index)
    start = time.perf_counter()
    generator = Generator().manual_seed(recipe.seed * 100_003 + index)
    spec = spec_of(run, target)
    x, y = training_images(recipe, run, target, task, index)
    test_x, test_y = test_images(recipe, run, target, task)
    if not spec.trunk:
        weights, train_accuracy = fit_head(spec, x, y, len(task.classes))
    else:
        initial = spec.initial(len(task.classes), generator)
        if settings.init == "shared":
            initial = {**initial, **shared.load(run, target), "head.weight": torch.zeros_like(initial["head.weight"])}
        weights, train_accuracy = fit_network(spec, initial, x, y, settings, generator)
        if settings.init == "independent" and index:
            # Hidden units of independent seeds come in any order: bring them to one model's.
            order = alignment.match(spec, weights, _reference(recipe, run, target, index), generator)
            weights = alignment.permute(spec, weights, order)
    meta = {
        "index": index,
        "variant": asdict(task.variant),
        "classes": task.classes,
        "test_accuracy": accuracy(spec, weights, test_x, test_y),
        "train_accuracy": train_accuracy,
        "seconds": time.perf_counter() - start,
    }
    out = folder(run, target) / f"{index:05d}.safetensors"
    _write(out, save({k: v.contiguous() for k, v in weights.items()}))
    _write(out.with_suffix(".json"), json.dumps(meta).encode())  # last: a model without it is made again


def spec_of(run: Path, target: str) -> ArchitectureSpec:
    """The architecture of a target in a run."""
    return architectures.get(target, encoder_dim=encoder.config(run).dim)


def training_images(recipe: Recipe, run: Path, target: str, task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """Training images (n, 3, 32, 32) of a task and labels (n,); for a head two thirds of the bank's features (n, d)."""
    if target == "head":
        features = _features(run, task)
        return _labelled(features[:, : features.shape[1] * 2 // 3])
    settings = recipe.targets[target].zoo
    return task.images(domain_of(recipe, run, task.variant.domain, "train"), settings.per_class, seed=seed)


def test_images(recipe: Recipe, run: Path, target: str, task: Task) -> tuple[Tensor, Tensor]:
    """Test images of a task, at most 50 a class; for a head the last third of the bank's features."""
    if target == "head":
        features = _features(run, task)
        return _labelled(features[:, features.shape[1] * 2 // 3 :])
    return task.images(domain_of(recipe, run, task.variant.domain, "test"), 50)


def _features(run: Path, task: Task) -> Tensor:
    classes, features = bank.features(run, task.variant)
    where = {c: i for i, c in enumerate(classes)}
    return features[[where[c] for c in task.classes]]  # (k, m, d)


def _labelled(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.flatten(0, 1), torch.arange(len(features)).repeat_interleave(features.shape[1])


def _reference(recipe: Recipe, run: Path, target: str, index: int) -> dict[str, Tensor]:
    first = reference_of(recipe, target, index)
    path = folder(run, target) / f"{first:05d}.safetensors"
    if not path.exists():
        _build_one((recipe, run, target, first))
    return load_file(path)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{mp.current_process().pid}")
    temporary.write_bytes(content)
    temporary.replace(path)


def fit_network(
    spec: ArchitectureSpec, initial: dict[str, Tensor], x: Tensor, y: Tensor, settings: ZooRecipe, generator: Generator
) -> tuple[dict[str, Tensor], float]:
    """Train every weight from `initial` on images (n, 3, 32, 32); AdamW, one cycle, light augmentation."""
    weights = {k: v.clone().requires_grad_() for k, v in initial.items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(x) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.2)
    correct = torch.zeros(())
    for _ in range(settings.epochs):
        correct.zero_()
        for chosen in torch.split(torch.randperm(len(x), generator=generator), settings.batch):
            batch = spec.adapt(views.jitter(x[chosen], generator, strength=0.5)).contiguous(
                memory_format=torch.channels_last
            )
            logits = spec.forward(weights, batch)
            loss = F.cross_entropy(logits, y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            correct += (logits.argmax(1) == y[chosen]).sum()
    return {k: v.detach() for k, v in weights.items()}, float(correct / len(x))


def fit_head(spec: ArchitectureSpec, x: Tensor, y: Tensor, classes: int) -> tuple[dict[str, Tensor], float]:
    """L2 logistic regression on features (n, d), by L-BFGS from zero."""
    weight = torch.zeros(classes, spec.width, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), y) + 1e-2 * weight.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights = {"head.weight": weight.detach(), "head.bias": bias.detach()}
    return weights, float((F.linear(x, *weights.values()).argmax(1) == y).float().mean())


@torch.no_grad()
def accuracy(spec: ArchitectureSpec, weights: architectures.Weights, x: Tensor, y: Tensor) -> float:
    """Share of images (n, 3, 32, 32), or for a head of features (n, d), that a network gets right."""
    if spec.trunk:
        x = spec.adapt(x).contiguous(memory_format=torch.channels_last)
    logits = spec.forward(weights, x)
    return float((logits.argmax(1) == y).float().mean())


def models(run: Path, target: str) -> Iterator[ZooModel]:
    """The finished models of a zoo, by index."""
    for path in sorted(folder(run, target).glob("*.json")):
        meta = json.loads(path.read_text())
        yield ZooModel(
            meta["index"],
            Task(Variant(**meta["variant"]), tuple(meta["classes"])),
            load_file(path.with_suffix(".safetensors")),
            meta["test_accuracy"],
            meta["train_accuracy"],
            meta["seconds"],
        )
