"""Ablations of the generator: its training stage with one part left out, on a smaller budget, in folders of their own.

An ablation is a loom that lacks the part, a recipe that switches it off, or less to learn from; the stage's own
`Trainer` trains all of them, so that the product has no branch for any. `full` leaves nothing out and is the stage
itself: what the others are measured against.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from loomweight.loom import Loom
from trainer import ablated, data, diffusion, tasks, vae, zoo
from trainer.bank import Shelf
from trainer.loop import fit
from trainer.recipe import Recipe
from trainer.tasks import Variant
from trainer.views import NEW_CLASSES

Change = Callable[[Recipe, str], Recipe]
"""A recipe and a target to the recipe that the ablation trains by."""


def of_generator(recipe: Recipe, target: str, **settings: Any) -> Recipe:
    """The recipe for one target alone, with other settings of its generator."""
    own = recipe.targets[target]
    return replace(recipe, targets={target: replace(own, diffusion=replace(own.diffusion, **settings))})


def _same(recipe: Recipe, target: str) -> Recipe:
    return recipe


def _frozen_decoder(recipe: Recipe, target: str) -> Recipe:
    return of_generator(recipe, target, train_decoder=False)


def _latents_alone(recipe: Recipe, target: str) -> Recipe:
    # Steps without latents to aim at would have nothing to learn from.
    return of_generator(recipe, target, train_decoder=False, behaviour_only=0.0)


def _photographs(recipe: Recipe, target: str) -> Recipe:
    names = tuple(n for n in recipe.data.domains if n in data.PHOTOGRAPHS)
    return replace(recipe, data=replace(recipe.data, domains=names))


def _known_classes(recipe: Recipe, target: str) -> Recipe:
    views = {
        domain: tuple(v for v in names if v not in NEW_CLASSES and v != "jigsaw")
        for domain, names in recipe.bank.views.items()
    }
    return replace(recipe, bank=replace(recipe.bank, views=views))


@dataclass(frozen=True)
class Ablation:
    """What differs from the full recipe, in words for the table and in fact."""

    what: str
    loom: type[ablated.Ablated] = ablated.Ablated
    change: Change = _same
    zoo: int | None = None  # of the zoo only so many models, their autoencoder fitted anew
    seed: int = 0  # added to the stage's


ABLATIONS = {
    "full": Ablation("the full recipe"),
    "other-seed": Ablation("the full recipe, another seed: what chance alone does", seed=1000),
    "unconditional": Ablation("no condition: the denoiser is told nothing of the task", ablated.Unconditional),
    "no-set-codes": Ablation("no set encoder: its codes are zero", ablated.WithoutCodes),
    "unaligned": Ablation("no alignment: the set encoder as it is initialised", ablated.Unaligned),
    "raw-weights": Ablation("no autoencoder: scaled weights in equal chunks", ablated.RawWeights, _frozen_decoder),
    "pooled-classes": Ablation("conditions pooled over classes, position codes among them", ablated.Pooled),
    "class-places": Ablation("position codes among classes, beside their own conditions", ablated.ClassPlaces),
    "zoo-40": Ablation("a zoo of 40, autoencoder refitted in fewer steps", zoo=40),
    "zoo-80": Ablation("a zoo of 80, autoencoder refitted in fewer steps", zoo=80),
    "zoo-160": Ablation("a zoo of 160, autoencoder refitted in fewer steps", zoo=160),
    "latent-loss": Ablation("no behavioural loss: latents alone", ablated.LatentsAlone, _latents_alone),
    "zero-head": Ablation("no closed-form start: head rows from zero", ablated.ZeroHead),
    "photographs": Ablation("generator tasks from photographs alone", change=_photographs),
    "known-classes": Ablation("no turned and jigsawed views", change=_known_classes),
    "frozen-decoder": Ablation("frozen decoder", change=_frozen_decoder),
    "no-encoder-features": Ablation("no encoder at all: features of the shared trunk alone", ablated.WithoutEncoder),
}


class AblatedTrainer(diffusion.Trainer):
    """The stage's training step on an ablation's loom, with the zoo models whose tasks the recipe still has."""

    def __init__(
        self, ablation: Ablation, recipe: Recipe, run: Path, target: str, shelves: dict[Variant, Shelf]
    ) -> None:
        super().__init__(recipe, run, target, shelves)
        self.loom: Loom = ablation.loom.of(self.loom, recipe.seed + 40 + ablation.seed)
        self.slow: list[Tensor] = []
        if self.settings.train_decoder and self.loom.spec.trunk:
            self.slow = [self.loom.vae.decode_trunk.weight.requires_grad_()]
        self.average = copy.deepcopy(self.loom).requires_grad_(False)
        for count in self.counts:
            self.zoo[count] = [c for c in self.zoo[count] if c.model.task.variant in shelves]
        self.counts = [k for k in self.counts if self.zoo[k]]
        self.share = torch.tensor([float(len(self.zoo[k])) for k in self.counts])


REFIT_STEPS = 100
"""Of the autoencoder of a smaller zoo; the principal components that it starts from are most of it."""


def smaller_zoo(recipe: Recipe, run: Path, target: str, models: int, folder: Path) -> Path:
    """A run in `folder` with the first so many models of another run's zoo, and their own autoencoder.

    All else is the other run's; its dataset encoder was aligned with the whole zoo.
    """
    (folder / "zoo" / target).mkdir(parents=True, exist_ok=True)
    parts = [Path(part) for part in ("data", "bank", "encoder", "shared", "set_encoder")]
    parts += [
        Path("zoo", target, path.name)
        for path in zoo.folder(run, target).iterdir()
        if path.stem.isdigit() and int(path.stem) < models
    ]
    for part in parts:
        if not (folder / part).exists():
            (folder / part).symlink_to((run / part).resolve())
    if not (folder / "vae" / f"{target}.json").exists():
        own = recipe.targets[target]
        # A poor autoencoder is a result here, not a failure.
        short = replace(own, vae=replace(own.vae, steps=min(own.vae.steps, REFIT_STEPS), gate=0.0))
        vae.train(replace(recipe, targets={target: short}), folder)
    return folder


def train(name: str, recipe: Recipe, run: Path, target: str, shelves: dict[Variant, Shelf], folder: Path) -> None:
    """Train an ablation of the run's generator; writes `folder/loom.safetensors` and `.json`: its averaged loom.

    `shelves` are those of the full recipe.
    """
    ablation, given = ABLATIONS[name], recipe.sha256
    if ablation.zoo is not None:
        run = smaller_zoo(recipe, run, target, ablation.zoo, folder / "run")
    recipe = ablation.change(recipe, target)
    own = {v: shelves[v] for v in tasks.variants(recipe)}
    trainer = AblatedTrainer(ablation, recipe, run, target, own)
    trainer.measure_spread(Generator().manual_seed(recipe.seed + 42))
    seconds = fit(
        folder,
        nn.ModuleDict({"loom": trainer.loom, "average": trainer.average}),
        trainer.settings,
        trainer.step,
        seed=recipe.seed + 41 + ablation.seed,
        after=trainer.follow,
        slow=trainer.slow,
        split=True,
        save_every=100,
    )
    save_file({k: v.contiguous() for k, v in trainer.average.state_dict().items()}, folder / "loom.safetensors")
    models = sum(map(len, trainer.zoo.values()))
    meta = {"seconds": seconds, "zoo_models": models, "full_recipe": given}
    if ablation.zoo is not None:
        meta["decoded_zoo_keeps"] = json.loads((run / "vae" / f"{target}.json").read_text())["kept"]
    (folder / "loom.json").write_text(json.dumps(meta, indent=1))


def load(name: str, recipe: Recipe, run: Path, target: str, folder: Path) -> Loom:
    """The averaged loom that `train` wrote."""
    ablation = ABLATIONS[name]
    run = run if ablation.zoo is None else folder / "run"
    loom = ablation.loom.of(diffusion.new_loom(recipe, run, target), 0)
    loom.load_state_dict(load_file(folder / "loom.safetensors"))
    return loom.eval().requires_grad_(False)
