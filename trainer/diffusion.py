"""Stage `diffusion`: the conditional denoiser over weight differences, trained through the networks that it generates.

Every step draws fresh tasks, images, shot and class counts. Most steps predict from nothing (zero latents at full
noise): the conditional mean, judged by the cross-entropy of the *generated network* on query images. The others denoise
a noisy target: the latents of a zoo model of that task, or, for tasks without one, what the averaged generator writes
when it is given many images; so that the sampler learns how answers from many scatter around the answer from few.
"""

import copy
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from loomweight.denoiser import DenoiserConfig
from loomweight.diffusion import CosineSchedule
from loomweight.loom import Loom, LoomConfig, Support, denoiser_inputs
from trainer import bank, set_encoder, vae, zoo
from trainer import encoder as image_encoder
from trainer.loop import fit
from trainer.parallel import team
from trainer.recipe import GeneratorRecipe, Recipe
from trainer.tasks import Variant

Pick = tuple[bank.Shelf, Tensor]


def new_loom(recipe: Recipe, run: Path, target: str) -> Loom:
    """A loom with the run's frozen parts in place and a fresh denoiser."""
    settings = recipe.targets[target].diffusion
    spec, dim = zoo.spec_of(run, target), image_encoder.config(run).dim
    coder, sets = vae.load(run, target), set_encoder.load(run, target)
    classwise, overall = denoiser_inputs(spec, dim, sets.config.width)
    shape = DenoiserConfig(
        coder.config.latents, coder.config.dim, classwise, overall, settings.width, settings.layers, settings.heads
    )
    torch.manual_seed(recipe.seed + 40)
    loom = Loom(spec, LoomConfig(target, coder.config, sets.config, shape))
    loom.vae.load_state_dict(coder.state_dict())
    loom.set_encoder.load_state_dict(sets.state_dict())
    loom.vae.requires_grad_(False)
    loom.set_encoder.requires_grad_(False)
    if not settings.closed_form:
        _silence_closed_form(loom)
    return loom


@torch.no_grad()
def _silence_closed_form(loom: Loom) -> None:
    """Shares of e^-30 leave nothing of the closed form, in a bundle as well: latents hold whole head rows."""
    loom.closed_form.requires_grad_(False)
    for share in (loom.closed_form.scale, loom.closed_form.nearest):
        share.zero_()
        share[0] = -30.0


class Trainer:
    """One target's training step."""

    def __init__(self, recipe: Recipe, run: Path, target: str, shelves: dict[Variant, bank.Shelf]) -> None:
        self.settings: GeneratorRecipe = recipe.targets[target].diffusion
        self.team = team()
        self.loom = new_loom(recipe, run, target)
        self.slow: list[Tensor] = []
        if self.settings.train_decoder and self.loom.spec.trunk:
            self.slow = [self.loom.vae.decode_trunk.weight.requires_grad_()]
        self.average = copy.deepcopy(self.loom).requires_grad_(False)
        self.episodes = bank.Episodes(recipe, shelves, target, self.loom.config.set_encoder.inputs)
        self.schedule = CosineSchedule()
        self.zoo: dict[int, list[vae.Codes]] = defaultdict(list)
        for c in vae.codes(self.loom.spec, list(zoo.models(run, target))):
            if not vae.held_out(c.model.index):
                self.zoo[len(c.rows)].append(c)
        self.counts = sorted(self.zoo)
        self.share = torch.tensor([float(len(self.zoo[k])) for k in self.counts])

    def shots(self, classes: int, generator: Generator) -> int:
        """Images a class: log-uniform from 1 to what the recipe allows."""
        most = max(1, min(self.settings.max_shots, self.settings.max_images // classes))
        return int((torch.rand((), generator=generator) * torch.tensor(most + 1.0).log()).exp())

    def fresh(self, generator: Generator) -> list[Pick]:
        """Tasks drawn anew, all of one class count, which is ten in half of the draws."""
        s = self.settings
        count = int(torch.randint(2, s.max_classes + 1, (), generator=generator))
        if torch.rand((), generator=generator) < 0.5:
            count = min(10, s.max_classes)
        shelves = [self.episodes.shelf(generator) for _ in range(s.tasks)]
        count = min(count, *(len(shelf.rows_of("encoder", "generator")) for shelf in shelves))
        return [(shelf, self.episodes.classes(shelf, count, generator)) for shelf in shelves]

    def step(self, _: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of this process' part of one batch of tasks, and figures of that part."""
        s = self.settings
        pure = bool(torch.rand((), generator=generator) < s.behaviour_only)
        from_zoo = not pure and bool(torch.rand((), generator=generator) < s.from_zoo)
        models: list[vae.Codes] = []
        if from_zoo:
            models, picks = self.zoo_tasks(generator)
        else:
            picks = self.fresh(generator)
        whole, own = len(picks), self.team.own(len(picks))
        classes = len(picks[0][1])
        rich = 0 if pure or from_zoo else max(1, s.max_images * 2 // classes)
        episode, many = self.episodes.episode(
            picks, self.shots(classes, generator), max(2, s.queries // classes), generator, rich=rich, own=own
        )
        support, models = episode.support, models[own]
        shape = self.loom.latent_shape(len(support.mask), classes)
        t = torch.ones(len(support.mask)) if pure else torch.rand(whole, generator=generator)[own]
        noise = torch.randn(self.loom.latent_shape(whole, classes), generator=generator)[own]
        target = None
        with torch.no_grad():
            if from_zoo:
                target = self.zoo_latents(models, support)
            elif many is not None:
                target = self.rich_latents(many, support)
            if target is not None:
                target = target / self.loom.unscale(torch.ones(shape))
        z = torch.zeros(shape) if target is None else self.schedule.diffuse(target, t, noise)
        keep = (torch.rand(whole, generator=generator) >= s.drop_condition).float()[own]
        clean = self.loom.denoise(z, t, self.loom.condition(support), keep)
        figures: dict[str, float] = {}
        loss = torch.zeros(())
        if s.behaviour:
            behaviour, figures = self.behaviour(clean, episode)
            loss = s.behaviour * behaviour
        if target is not None:
            latent = (clean - target).square().mean()
            figures["latent"] = latent.item()
            loss = loss + s.latent_loss * latent
        if from_zoo and self.slow:  # a decoder that learns must go on decoding the zoo
            wanted = torch.stack([c.trunk for c in models])
            codes = self.loom.vae.encode(wanted, torch.stack([c.rows for c in models]))[0]
            kept = ((self.loom.vae.decode(codes) - wanted) / self.loom.vae.scale).square().mean()
            figures["reconstruction"] = kept.item()
            loss = loss + kept
        return self.team.share(whole) * loss, figures

    def behaviour(self, clean: Tensor, episode: bank.Episode) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the generated networks on their query images, with figures to log."""
        latents = self.loom.unscale(clean)
        trunks = self.loom.trunks(latents)
        rows = self.loom.rows(latents, trunks, episode.support)[0]
        losses, correct = [], []
        for trunk, row, images in zip(trunks, rows, episode.query_images, strict=True):
            logits = self.loom.logits(trunk, row, images)
            losses.append(F.cross_entropy(logits, episode.query_labels))
            correct.append((logits.argmax(-1) == episode.query_labels).float().mean())
        loss = torch.stack(losses).mean()
        return loss, {"behaviour": loss.item(), "accuracy": float(torch.stack(correct).mean())}

    def zoo_latents(self, models: list[vae.Codes], support: Support) -> Tensor:
        """Latents of zoo models as differences from the closed form on this support, where the recipe has one."""
        coder = self.loom.vae
        rows = torch.stack([c.rows for c in models])
        trunk_codes, row_codes = coder.encode(torch.stack([c.trunk for c in models]), rows)
        if not self.settings.closed_form:
            return torch.cat((trunk_codes, row_codes), 1)
        zero = torch.zeros(self.loom.latent_shape(len(models), support.classes))
        zero[:, : coder.config.latents] = trunk_codes
        _, base = self.loom.rows(zero, self.loom.trunks(zero), support)
        return torch.cat((trunk_codes, coder.encode_row(rows - base)), 1)

    def rich_latents(self, many: Support, support: Support) -> Tensor:
        """What the averaged generator answers to many images, as differences from the closed form on few."""
        loom = self.average
        nothing = torch.zeros(loom.latent_shape(len(many.mask), many.classes))
        rich = loom.unscale(loom.denoise(nothing, torch.ones(len(nothing)), loom.condition(many)))
        trunks = loom.trunks(rich)
        rows, _ = loom.rows(rich, trunks, many)
        _, base = loom.rows(rich, trunks, support)
        return torch.cat((rich[:, : loom.config.vae.latents], loom.vae.encode_row(rows - base)), 1)

    @torch.no_grad()
    def measure_spread(self, generator: Generator, batches: int = 40) -> None:
        """Set the loom's spread from zoo models at random shot counts."""
        latents = self.loom.config.vae.latents
        square = torch.zeros(latents + 1, self.loom.config.vae.dim)
        for _ in range(batches):
            models, picks = self.zoo_tasks(generator)
            count = len(picks[0][1])
            episode, _ = self.episodes.episode(picks, self.shots(count, generator), 2, generator)
            z = self.zoo_latents(models, episode.support).square().mean(0)  # (latents + k, dim)
            square += torch.cat((z[:latents], z[latents:].mean(0, keepdim=True))) / batches
        floor = 0.05 * square.sqrt().max()
        self.loom.spread.copy_(square.sqrt().clamp(min=float(floor)))
        self.average.spread.copy_(self.loom.spread)

    def zoo_tasks(self, generator: Generator) -> tuple[list[vae.Codes], list[Pick]]:
        """Zoo models of one class count, and their tasks."""
        pool = self.zoo[self.counts[int(torch.multinomial(self.share, 1, generator=generator))]]
        models = [pool[i] for i in torch.randint(len(pool), (self.settings.tasks,), generator=generator).tolist()]
        shelves = [self.episodes.shelves[c.model.task.variant] for c in models]
        return models, [(f, vae.shelf_places(f, c.model.task.classes)) for f, c in zip(shelves, models, strict=True)]

    def follow(self, step: int) -> None:
        """Move the averaged weights; sampling uses them."""
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        for ours, theirs in zip(self.average.parameters(), self.loom.parameters(), strict=True):
            ours.lerp_(theirs, 1 - decay)


def train(recipe: Recipe, run: Path, targets: Sequence[str] = ()) -> None:
    """Run the stage for the recipe's targets or some of them; writes `run/diffusion/{target}.safetensors`: the averaged
    loom.
    """
    shelves = bank.load(recipe, run)
    for target in targets or recipe.targets:
        train_target(recipe, run, target, shelves)


def train_target(recipe: Recipe, run: Path, target: str, shelves: dict[Variant, bank.Shelf]) -> None:
    """Run the stage for one target."""
    trainer = Trainer(recipe, run, target, shelves)
    trainer.measure_spread(Generator().manual_seed(recipe.seed + 42))
    modules = nn.ModuleDict({"loom": trainer.loom, "average": trainer.average})
    seconds = fit(
        run / "diffusion" / target,
        modules,
        trainer.settings,
        trainer.step,
        seed=recipe.seed + 41,
        after=trainer.follow,
        slow=trainer.slow,
        split=True,
    )
    # The decoder may have moved: the zoo must still pass the gate through it.
    zoo_codes = vae.codes(trainer.loom.spec, list(zoo.models(run, target)))
    report = vae.gate(recipe, run, target, trainer.average.vae, zoo_codes)
    vae.check(target, report, recipe.targets[target].vae.gate)
    if trainer.team.writes:
        state = {k: v.contiguous() for k, v in trainer.average.state_dict().items()}
        save_file(state, run / "diffusion" / f"{target}.safetensors")
        meta = {"seconds": seconds, "recipe": recipe.sha256, **report}
        (run / "diffusion" / f"{target}.json").write_text(json.dumps(meta, indent=1))
    trainer.team.wait()


def load(recipe: Recipe, run: Path, target: str) -> Loom:
    """The averaged loom that the stage wrote."""
    loom = new_loom(recipe, run, target)
    loom.load_state_dict(load_file(run / "diffusion" / f"{target}.safetensors"))
    return loom.eval().requires_grad_(False)
