"""Stage `modelset`: many small networks for many two-class tasks, to learn and to measure similarity on.

A reconstruction of ModelSet500 (LPS, arXiv 1907.11943: 50 tasks of class pairs, 10 models each); its own files could
not be had. Task number t is made as a whole, from the recipe and t alone, so shards can be built anywhere, in any
order, killed and started again:

    {t:03d}.safetensors   every model's tensors as {seed:02d}/{tensor}
    {t:03d}.json          the task and, for each model, accuracy, seed and hyper-parameters; written last
    index.json            all of them together

Tasks of classes that nobody may train on (see `data.role`) carry `withheld`: they measure, they never teach.
"""

import json
import multiprocessing as mp
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn
from tqdm import tqdm

from trainer import data, nets, pairs
from trainer.data import Domain
from trainer.pairs import PairTask
from trainer.recipe import ModelSetRecipe, Recipe

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SetModel:
    """One model of a set and what is known of it."""

    task: PairTask
    seed: int
    network: str
    optimizer: str
    test_accuracy: float
    train_accuracy: float
    seconds: float


@dataclass(frozen=True)
class ModelSet:
    """A finished set: its models by task and seed, their tensors on disk."""

    folder: Path
    models: tuple[SetModel, ...]

    def tensors(self, model: SetModel) -> dict[str, Tensor]:
        """State dict of one model."""
        start = f"{model.seed:02d}/"
        with safe_open(self.folder / f"{model.task.number:03d}.safetensors", framework="pt") as file:
            return {k.removeprefix(start): file.get_tensor(k) for k in file.keys() if k.startswith(start)}  # noqa: SIM118

    @cached_property
    def tasks(self) -> tuple[PairTask, ...]:
        """The set's tasks in order."""
        return tuple(dict.fromkeys(m.task for m in self.models))


def folder(run: Path) -> Path:
    """Where a run's set lies."""
    return run / "modelset"


def build(recipe: Recipe, run: Path, *, shard: int = 0, shards: int = 1, processes: int = 1) -> None:
    """Make the tasks t with t % shards == shard that are not there yet, then the index of all that are."""
    settings = recipe.modelset
    out = folder(run)
    out.mkdir(parents=True, exist_ok=True)
    train = data.load(recipe, run, "train", settings.domain)
    tasks = [t for t in pairs.tasks(settings, train) if t.number % shards == shard]
    jobs = [(recipe, run, t) for t in tasks if not (out / f"{t.number:03d}.json").exists()]
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the processes below: the count of threads can change the last bits
        try:
            for job in tqdm(jobs, desc="modelset", mininterval=5):
                _build_task(job)
        finally:
            torch.set_num_threads(threads)
    elif jobs:
        context = mp.get_context("spawn")
        with context.Pool(min(processes, len(jobs)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in tqdm(pool.imap_unordered(_build_task, jobs), total=len(jobs), desc="modelset", mininterval=5):
                pass
    _index(recipe, out)


def _index(recipe: Recipe, out: Path) -> None:
    parts = [json.loads(p.read_text()) for p in sorted(out.glob("[0-9]*.json"))]
    index = {"recipe": recipe.name, "settings": asdict(recipe.modelset), "seed": recipe.seed, "tasks": parts}
    _write(out / "index.json", json.dumps(index, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{mp.current_process().pid}")
    temporary.write_bytes(content)
    temporary.replace(path)


def load(run: Path) -> ModelSet:
    """A set that stage `modelset` has built, as far as it has got."""
    models = []
    for path in sorted(folder(run).glob("[0-9]*.json")):
        part = json.loads(path.read_text())
        task = PairTask(
            **{**part["task"], "classes": tuple(part["task"]["classes"]), "names": tuple(part["task"]["names"])}
        )
        models += [SetModel(task, **m) for m in part["models"]]
    return ModelSet(folder(run), tuple(models))


def images(settings: ModelSetRecipe, domain: Domain, task: PairTask) -> Images:
    """Images (n, 3, 32, 32) in [0, 1] and labels (n,) of a task, at most `per_class` of each class."""
    chosen = [domain.members[c][: settings.per_class] for c in task.classes]
    x = torch.from_numpy(np.ascontiguousarray(domain.images[np.concatenate(chosen)])).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(memory_format=torch.channels_last), torch.arange(2).repeat_interleave(
        torch.tensor([len(c) for c in chosen])
    )


def _build_task(job: tuple[Recipe, Path, PairTask]) -> None:
    recipe, run, task = job
    settings = recipe.modelset
    train, test = (images(settings, data.load(recipe, run, s, settings.domain), task) for s in ("train", "test"))
    tensors: dict[str, Tensor] = {}
    models = []
    for seed in range(settings.seeds):
        start = time.perf_counter()
        network = settings.networks[seed % len(settings.networks)]
        optimizer = settings.optimizers[(task.number + seed) % len(settings.optimizers)]
        # 1 + task: the shared initialisation is drawn by number 0, which is no task's
        own = _generator(recipe.seed, 1 + task.number, seed)
        initial = _generator(recipe.seed, 0, 0) if settings.init == "shared" else own
        net = nets.make(network, 2, initial)
        train_accuracy = fit(net, train, settings, optimizer, own)
        tensors |= {f"{seed:02d}/{k}": v.contiguous() for k, v in net.state_dict().items()}
        models.append(
            {
                "seed": seed,
                "network": network,
                "optimizer": optimizer,
                "test_accuracy": accuracy(net, test),
                "train_accuracy": train_accuracy,
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
    out = folder(run) / f"{task.number:03d}.safetensors"
    _write(out, save(tensors))
    _write(out.with_suffix(".json"), json.dumps({"task": asdict(task), "models": models}, indent=1).encode())


def _generator(*numbers: int) -> Generator:
    state = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return Generator().manual_seed(state)


def fit(net: nn.Module, train: Images, settings: ModelSetRecipe, optimizer: str, generator: Generator) -> float:
    """Train with one cycle of the learning rate and random mirroring; the last epoch's training accuracy.

    `settings.labels == "shuffled"` trains on a random order of the labels; no epochs leave the net untrained.
    """
    x, y = train
    if settings.labels == "shuffled":
        y = y[torch.randperm(len(y), generator=generator)]
    if not settings.epochs:
        return accuracy(net, (x, y))
    steps = settings.epochs * -(-len(x) // settings.batch)
    lr = settings.lr if optimizer == "adamw" else settings.sgd_lr
    made: torch.optim.Optimizer = (
        torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=settings.weight_decay)
        if optimizer == "adamw"
        else torch.optim.SGD(
            net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay / 20
        )
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(made, lr, total_steps=steps, cycle_momentum=False)
    net.train()
    correct = 0.0
    for _ in range(settings.epochs):
        correct = 0.0
        for chosen in torch.split(torch.randperm(len(x), generator=generator), settings.batch):
            batch = x[chosen]
            mirrored = torch.rand(len(batch), generator=generator) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
            logits = net(batch)
            loss = F.cross_entropy(logits, y[chosen])
            made.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            made.step()
            schedule.step()
            correct += float((logits.argmax(1) == y[chosen]).sum())
    return correct / len(x)


@torch.no_grad()
def accuracy(net: nn.Module, test: Images) -> float:
    """Share of images that a network gets right, running statistics in use."""
    net.eval()
    x, y = test
    return float((net(x).argmax(1) == y).float().mean())
