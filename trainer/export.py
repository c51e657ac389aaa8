"""Stage `export`: a run's products as one bundle, with a card of what it is made of and what was measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loomweight import __version__, bundle
from loomweight.bundle import TargetInfo, Zoo
from loomweight.loom import Loom
from loomweight.novelty import SHOTS, Novelty
from trainer import bank, diffusion, encoder, tasks, vae, zoo
from trainer.recipe import Recipe
from trainer.tasks import Variant

MAX_ZOO = 200
"""Zoo models of a target that travel with a bundle, for retrieval, novelty and neighbours."""

MEANS_OF = 20
"""Images of a class that make its mean."""

SOURCES = {
    "cifar100": "CIFAR-100 (Krizhevsky 2009), research use, cite",
    "tiny-imagenet-32": "Tiny-ImageNet (Stanford CS231n) at 32x32, research use",
    "cifar10": "CIFAR-10 (Krizhevsky 2009), research use, cite",
    "mnist": "MNIST (LeCun et al. 1998), CC BY-SA 3.0",
    "fashion-mnist": "Fashion-MNIST (Xiao et al. 2017), MIT",
    "glyphs": "characters rendered from the fonts that ship with matplotlib",
    "glyphs-coloured": "as glyphs, on coloured grounds with neighbours",
    "textures": "procedural textures",
    "characters": "invented handwriting, drawn",
    "emblems": "coloured shapes over procedural textures, drawn",
}


def export(recipe: Recipe, run: Path, out: Path, *, version: str = "1") -> dict[str, Any]:
    """Write the bundle of a finished run; returns its manifest."""
    shelves = bank.load(recipe, run)
    prior = {target: recipe.sampling.prior.get(target, "mean") for target in recipe.targets}
    looms = {target: diffusion.load(recipe, run, target) for target in recipe.targets}
    return bundle.write(
        out,
        name=recipe.name,
        encoder=encoder.load(run),
        looms=looms,
        zoos={target: _zoo(recipe, loom, run, shelves) for target, loom in looms.items()},
        targets=[_target(recipe, run, loom) for loom in looms.values()],
        defaults={
            "steps": recipe.sampling.steps,
            "guidance": recipe.sampling.guidance,
            "temperature": 1.0,
            "prior": prior,
        },
        card=_card(recipe, run, version),
    )


@torch.no_grad()
def _zoo(recipe: Recipe, loom: Loom, run: Path, shelves: dict[Variant, bank.Shelf]) -> dict[str, Tensor]:
    models = [c for c in vae.codes(loom.spec, list(zoo.models(run, loom.spec.name))) if c.model.index < MAX_ZOO]
    set_codes, means, trunk_codes, owners = [], [], [], []
    for number, c in enumerate(models):
        shelf = shelves[c.model.task.variant]
        features = shelf.features[vae.shelf_places(shelf, c.model.task.classes)][:, :MEANS_OF]  # (k, m, d)
        _, code = loom.set_encoder(features[None], torch.ones(1, *features.shape[:2], dtype=torch.bool))
        set_codes.append(code[0])
        means.append(features.mean(1))
        trunk_codes.append(loom.vae.encode(c.trunk[None], c.rows[None])[0][0])
        owners.append(torch.full((len(c.rows),), number))
    found = {
        "set_codes": torch.stack(set_codes),
        "class_counts": torch.tensor([len(c.rows) for c in models]),
        "row_models": torch.cat(owners),
        "class_means": torch.cat(means).half(),
        "rows": torch.cat([c.rows for c in models]).half(),
        "trunks": torch.stack([c.trunk for c in models]).half(),
        "trunk_codes": torch.stack(trunk_codes),
        "test_accuracy": torch.tensor([c.model.test_accuracy for c in models]),
    }
    return {**found, "familiar_distances": _familiar(recipe, Novelty(Zoo(found)), shelves)}


def _familiar(recipe: Recipe, novelty: Novelty, shelves: dict[Variant, bank.Shelf], *, draws: int = 300) -> Tensor:
    """Distances (shots, draws) of training tasks, drawn as the generator's are, from images that made no class mean."""
    rng = np.random.default_rng([recipe.seed, 61])
    distances = torch.zeros(len(SHOTS), draws)
    for level, shots in enumerate(SHOTS):
        for draw in range(draws):
            shelf = shelves[tasks.draw_variant(recipe, rng)]
            known = np.array(shelf.rows_of("encoder", "generator"))
            classes = torch.from_numpy(rng.permutation(known)[: rng.integers(2, 21)])
            m = shelf.features.shape[1]
            images = torch.from_numpy(rng.integers(min(MEANS_OF, m // 2), m, (len(classes), shots)))
            distances[level, draw] = novelty.distance(shelf.features[classes[:, None], images].mean(1))
    return distances.sort(1).values


def _target(recipe: Recipe, run: Path, loom: Loom) -> TargetInfo:
    spec, settings = loom.spec, recipe.targets[loom.spec.name].diffusion
    return TargetInfo(
        id=spec.name,
        architecture=f"convnet {spec.name} (SANE)" if spec.trunk else "linear head over the frozen image encoder",
        parameters=spec.parameters(10),
        input_size=(3, 32, 32),
        conditions=("samples",),
        min_classes=2,
        max_classes=settings.max_classes,
        expected={},
        limits="Images are seen at 32x32 pixels. Parameters are counted for ten classes.",
    )


def _card(recipe: Recipe, run: Path, version: str) -> dict[str, Any]:
    def seconds(path: Path) -> float | None:
        return json.loads(path.read_text()).get("seconds") if path.exists() else None

    stages = {
        "encoder": seconds(run / "encoder" / "encoder.json"),
        **{f"shared {t}": seconds(run / "shared" / f"{t}.json") for t in recipe.targets},
        **{f"zoo {t} (core seconds)": sum(m.seconds for m in zoo.models(run, t)) for t in recipe.targets},
        **{
            f"{s} {t}": seconds(run / s / f"{t}.json")
            for s in ("vae", "set_encoder", "diffusion")
            for t in recipe.targets
        },
    }
    gates = {t: json.loads((run / "diffusion" / f"{t}.json").read_text()) for t in recipe.targets}
    return {
        "version": version,
        "software": __version__,
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256,
        "seed": recipe.seed,
        "training_data": {name: SOURCES[name] for name in recipe.data.domains},
        "never_seen": "; ".join(
            (
                "classes c with c % 5 == 4 of cifar100 and tiny-imagenet-32",
                *(("cifar10",) if "cifar10" not in recipe.data.domains else ()),
                "scikit-learn's digits",
            )
        ),
        "stage_seconds": {k: v for k, v in stages.items() if v is not None},
        "gate": {
            t: {k: g[k] for k in ("kept", "kept_trained", "kept_held_out", "original_mean")} for t, g in gates.items()
        },
        "limits": (
            "Networks see 32x32 pixels. Made for pictures of one thing; text, detection and regression are not. "
            "Photographs of fine-grained classes stay hard for networks of this size."
        ),
        "licence": "Apache-2.0",
        "licence_note": "The terms of the training data may bind what you redistribute; see training_data.",
    }


def measured(folder: Path, results: Path) -> None:
    """Put what the tables measured on this very bundle into its card and its targets' expected accuracy."""
    path = folder / bundle.MANIFEST
    manifest = bundle.verify(folder)
    table = json.loads((results / "fewshot.json").read_text())
    if table["bundle"] != manifest["id"]:
        raise ValueError(f"{results / 'fewshot.json'} was measured on {table['bundle']}, not on {manifest['id']}")
    for target in manifest["targets"]:
        rows = [r for r in table["rows"] if r["target"] == target["id"]]
        target["expected"] = {
            f"{r['set']}, {r['ways']}-way, {r['shots']} a class": round(r["arms"]["service's answer"]["mean"], 4)
            for r in rows
        }
    manifest["card"]["measured_by"] = table["command"]
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
