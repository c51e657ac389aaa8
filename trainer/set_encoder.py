"""Stage `set_encoder`: the dataset encoder of each target, aligned with the zoo's weight latents, then frozen.

Contrastive on two levels: set codes with the pooled latents of the models trained on those sets, and within each task
class codes with the latents of the head rows of those classes. Images are drawn afresh every step.
"""

import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from loomweight.set_encoder import SetEncoder, SetEncoderConfig, alignment_loss
from trainer import bank, vae, zoo
from trainer import encoder as image_encoder
from trainer.loop import fit
from trainer.recipe import Recipe
from trainer.tasks import Variant


def train(recipe: Recipe, run: Path) -> None:
    """Run the stage for every target; writes `run/set_encoder/{target}.safetensors` and `.json`."""
    shelves = bank.load(recipe, run)
    for target in recipe.targets:
        _train(recipe, run, target, shelves)


def _train(recipe: Recipe, run: Path, target: str, shelves: dict[Variant, bank.Shelf]) -> None:
    settings = recipe.targets[target].set_encoder
    spec, dim = zoo.spec_of(run, target), image_encoder.config(run).dim
    coder = vae.load(run, target)
    by_count: dict[int, list[tuple[vae.Codes, Tensor, Tensor]]] = defaultdict(list)
    with torch.no_grad():
        for c in vae.codes(spec, list(zoo.models(run, target))):
            if not vae.held_out(c.model.index):
                mean_g, mean_r = coder.encode(c.trunk[None], c.rows[None])
                by_count[len(c.rows)].append((c, mean_g[0].flatten(), mean_r[0]))
    counts = sorted(k for k, v in by_count.items() if len(v) > 1)
    share = torch.tensor([float(len(by_count[k])) for k in counts])

    torch.manual_seed(recipe.seed + 30)
    config = SetEncoderConfig(dim, settings.width, settings.heads, settings.inducing)
    encoder = SetEncoder(config)
    project_model = nn.Linear(coder.config.latents * coder.config.dim + coder.config.dim, settings.width)
    project_row = nn.Linear(coder.config.dim, settings.width)
    modules = nn.ModuleDict({"encoder": encoder, "project_model": project_model, "project_row": project_row})

    def step(_: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        pool = by_count[counts[int(torch.multinomial(share, 1, generator=generator))]]
        picked = [pool[i] for i in torch.randperm(len(pool), generator=generator)[: settings.batch].tolist()]
        features = []
        for c, _, _ in picked:
            shelf = shelves[c.model.task.variant]
            places = vae.shelf_places(shelf, c.model.task.classes)
            order = torch.stack([torch.randperm(shelf.features.shape[1], generator=generator) for _ in places])
            features.append(shelf.features[places[:, None], order[:, : settings.per_class]])
        x = torch.stack(features)
        class_codes, set_codes = encoder(x, torch.ones(x.shape[:3], dtype=torch.bool))
        rows = torch.stack([r for _, _, r in picked])  # (b, k, dim)
        whole = torch.cat((torch.stack([g for _, g, _ in picked]), rows.square().mean(1)), -1)
        sets = alignment_loss(set_codes, project_model(whole))
        classes = torch.stack(
            [alignment_loss(a, b) for a, b in zip(class_codes, project_row(rows), strict=True)]
        ).mean()
        return sets + classes, {"sets": sets.item(), "classes": classes.item()}

    seconds = fit(run / "set_encoder" / target, modules, settings, step, seed=recipe.seed + 31)
    save_file(
        {k: v.contiguous() for k, v in encoder.state_dict().items()}, run / "set_encoder" / f"{target}.safetensors"
    )
    meta = {"config": config.__dict__, "seconds": seconds, "recipe": recipe.sha256}
    (run / "set_encoder" / f"{target}.json").write_text(json.dumps(meta, indent=1))


def load(run: Path, target: str) -> SetEncoder:
    """The frozen dataset encoder that the stage wrote."""
    meta = json.loads((run / "set_encoder" / f"{target}.json").read_text())
    encoder = SetEncoder(SetEncoderConfig(**meta["config"]))
    encoder.load_state_dict(load_file(run / "set_encoder" / f"{target}.safetensors"))
    return encoder.eval().requires_grad_(False)
