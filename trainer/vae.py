"""Stage `vae`: the weight autoencoder of each target, and the gate before diffusion.

Trained on weights and on behaviour: the decoded network must answer like the original on the task's own images. A
weight autoencoder with a small squared error can still decode to chance; so the stage measures the decoded zoo models
on their test images and fails where they keep less than the recipe's share of the originals' accuracy.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from loomweight.architectures import ArchitectureSpec
from loomweight.errors import GateFailed
from loomweight.weight_vae import WeightVae, WeightVaeConfig, flatten, join
from trainer import bank, encoder, shared, zoo
from trainer.loop import fit
from trainer.parallel import team
from trainer.recipe import Recipe, VaeRecipe
from trainer.zoo import ZooModel


@dataclass(frozen=True)
class Codes:
    """A zoo model as the autoencoder takes it: flat trunk (p,) and centred head rows (classes, row)."""

    model: ZooModel
    trunk: Tensor
    rows: Tensor


def held_out(index: int) -> bool:
    """Zoo models that the autoencoder does not train on: every seventh, about 15 % (SANE splits by model)."""
    return index % 7 == 6


def codes(spec: ArchitectureSpec, models: list[ZooModel]) -> list[Codes]:
    """Flatten zoo models. Rows are centred over classes: softmax does not see the difference."""
    flat = ((m, *flatten(spec, m.weights)) for m in models)
    return [Codes(m, trunk, rows - rows.mean(0)) for m, trunk, rows in flat]


def _fresh(spec: ArchitectureSpec, settings: VaeRecipe, trunk: dict[str, Tensor], zoo_codes: list[Codes]) -> WeightVae:
    train = [c for c in zoo_codes if not held_out(c.model.index)]
    latents = settings.latents if spec.trunk else 0
    config = WeightVaeConfig(train[0].trunk.numel(), spec.width + 1, latents, settings.dim)
    vae = WeightVae(config)
    trunks, rows = torch.stack([c.trunk for c in train]), torch.cat([c.rows for c in train])
    vae.row_scale.copy_(rows.std(0).clamp(min=1e-3))
    if spec.trunk:
        zero = {"head.weight": torch.zeros(1, spec.width), "head.bias": torch.zeros(1)}
        vae.shared.copy_(flatten(spec, {**trunk, **zero})[0])
        first = 0
        for layer in spec.trunk:  # one scale a layer
            part = slice(first, first + layer.outputs * (layer.fan_in + 1))
            vae.scale[part] = (trunks[:, part] - vae.shared[part]).square().mean().sqrt()
            first = part.stop
    vae.start(trunks, rows)
    return vae


def train(recipe: Recipe, run: Path) -> None:
    """Run the stage for every target; writes `run/vae/{target}.safetensors` and `.json`. Raises GateFailed."""
    crew = team()
    shelves = bank.load(recipe, run)
    for target, recipe_of_target in recipe.targets.items():
        settings = recipe_of_target.vae
        spec, dim = zoo.spec_of(run, target), encoder.config(run).dim
        zoo_codes = codes(spec, list(zoo.models(run, target)))
        vae = _fresh(spec, settings, shared.load(run, target), zoo_codes)
        episodes = bank.Episodes(recipe, shelves, target, dim)
        trained = [c for c in zoo_codes if not held_out(c.model.index)]

        def step(
            _: int,
            generator: Generator,
            vae: WeightVae = vae,
            spec: ArchitectureSpec = spec,
            episodes: bank.Episodes = episodes,
            trained: list[Codes] = trained,
            settings: VaeRecipe = settings,
        ) -> tuple[Tensor, dict[str, float]]:
            picked = [trained[i] for i in torch.randint(len(trained), (settings.batch,), generator=generator).tolist()]
            recon = behaviour = kl = torch.zeros(())
            mine = range(settings.batch)[crew.own(settings.batch)]
            for i, c in enumerate(picked):
                mean_g, mean_r = vae.encode(c.trunk[None], c.rows[None])
                noise_g, noise_r = (torch.randn(m.shape, generator=generator) for m in (mean_g, mean_r))
                x = task_images(episodes, c, 64, generator) if settings.behaviour else None
                if i not in mine:  # another process' item: its random numbers are drawn all the same
                    continue
                noise = vae.log_noise.exp()
                trunk = vae.decode(mean_g + noise * noise_g)[0]
                rows = vae.decode_row(mean_r + noise * noise_r)[0]
                recon = recon + ((rows - c.rows) / vae.row_scale).square().mean()
                if spec.trunk:
                    recon = recon + ((trunk - c.trunk) / vae.scale).square().mean()
                kl = kl + vae.kl(mean_g, mean_r)
                if x is None:
                    continue
                with torch.no_grad():
                    wanted = spec.forward(join(spec, c.trunk, c.rows), x)
                given = spec.forward(join(spec, trunk, rows), x)
                behaviour = behaviour + F.kl_div(
                    given.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
                )
            n = settings.batch
            loss = (recon + settings.behaviour * behaviour + settings.kl * kl) / n
            parts = {"reconstruction": recon, "behaviour": behaviour, "kl": kl}
            return loss, {name: part.item() / n for name, part in parts.items()}

        seconds = fit(
            run / "vae" / target, nn.ModuleDict({"vae": vae}), settings, step, seed=recipe.seed + 21, split=True
        )
        report = gate(recipe, run, target, vae, zoo_codes)
        if crew.writes:
            save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, run / "vae" / f"{target}.safetensors")
            meta = {"config": vae.config.__dict__, "seconds": seconds, "recipe": recipe.sha256, **report}
            (run / "vae" / f"{target}.json").write_text(json.dumps(meta, indent=1))
        crew.wait()
        check(target, report, settings.gate)


def check(target: str, report: dict[str, float], least: float) -> None:
    """The gate: raises GateFailed where decoded models keep less than `least` of their originals' accuracy."""
    if report["kept"] < least:
        raise GateFailed(
            f"{target}: decoded models keep {report['kept']:.1%} of their originals' test accuracy "
            f"(held-out ones {report['kept_held_out']:.1%}); {least:.0%} are needed"
        )


def task_images(episodes: bank.Episodes, c: Codes, count: int, generator: Generator) -> Tensor:
    """About `count` adapted images of a zoo model's task, from the bank."""
    shelf = episodes.shelves[c.model.task.variant]
    each = min(-(-count // len(c.model.task.classes)), shelf.images.shape[1])
    picks = [(shelf, shelf_places(shelf, c.model.task.classes))]
    return episodes.episode(picks, 0, each, generator)[0].query_images[0]


def shelf_places(shelf: bank.Shelf, classes: tuple[int, ...]) -> Tensor:
    """Where a task's classes stand on their shelf."""
    where = {int(c): i for i, c in enumerate(shelf.classes)}
    return torch.tensor([where[c] for c in classes])


@torch.no_grad()
def gate(recipe: Recipe, run: Path, target: str, vae: WeightVae, zoo_codes: list[Codes]) -> dict[str, float]:
    """Test accuracy of decoded zoo models as a share of the originals', for trained and held-out models."""
    spec = zoo.spec_of(run, target)
    totals = {False: [0.0, 0.0], True: [0.0, 0.0]}
    for c in zoo_codes:
        mean_g, mean_r = vae.encode(c.trunk[None], c.rows[None])
        decoded = join(spec, vae.decode(mean_g)[0], vae.decode_row(mean_r)[0])
        x, y = zoo.test_images(recipe, run, target, c.model.task)
        totals[held_out(c.model.index)][0] += zoo.accuracy(spec, decoded, x, y)
        totals[held_out(c.model.index)][1] += c.model.test_accuracy
    (kept, of), (kept_out, of_out) = totals[False], totals[True]
    return {
        "kept": (kept + kept_out) / (of + of_out),
        "kept_trained": kept / of,
        "kept_held_out": kept_out / max(of_out, 1e-9),
        "original_mean": (of + of_out) / len(zoo_codes),
    }


def load(run: Path, target: str) -> WeightVae:
    """The autoencoder that the stage wrote."""
    meta = json.loads((run / "vae" / f"{target}.json").read_text())
    vae = WeightVae(WeightVaeConfig(**meta["config"]))
    vae.load_state_dict(load_file(run / "vae" / f"{target}.safetensors"))
    return vae
