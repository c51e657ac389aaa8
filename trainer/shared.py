"""Stage `shared`: one initialisation for each whole-network target, trained on all the encoder's classes at once.

It is the network that users would fine-tune, that zoo models start from, and whose last features carry the strongest
cheap rival (the trunk probe). Only its trunk is kept.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from loomweight import architectures
from loomweight.architectures import ArchitectureSpec
from trainer import data
from trainer.encoder import Sampler
from trainer.loop import fit
from trainer.recipe import Recipe, TrainingRecipe


def train(recipe: Recipe, run: Path) -> None:
    """Run the stage for every target with a trunk; writes `run/shared/{target}.safetensors`."""
    (run / "shared").mkdir(parents=True, exist_ok=True)
    sampler = None
    for target, settings in recipe.targets.items():
        spec = architectures.get(target, encoder_dim=1)
        out = run / "shared" / f"{target}.safetensors"
        if not spec.trunk or out.exists():
            continue
        sampler = sampler or Sampler(data.load_all(recipe, run, "train"), recipe.encoder.weights)
        trunk, figures = _train(recipe, run, spec, sampler, settings.shared)
        (run / "shared" / f"{target}.json").write_text(json.dumps({**figures, "recipe": recipe.sha256}, indent=1))
        save_file(trunk, out)


def _train(
    recipe: Recipe, run: Path, spec: ArchitectureSpec, sampler: Sampler, settings: TrainingRecipe
) -> tuple[dict[str, Tensor], dict[str, float]]:
    weights = spec.initial(sampler.classes, Generator().manual_seed(recipe.seed + 11))
    parameters = nn.ParameterDict({k.replace(".", "/"): nn.Parameter(v) for k, v in weights.items()})
    modules = nn.ModuleDict({"network": parameters})
    named = {k: parameters[k.replace(".", "/")] for k in weights}
    accuracy = 0.0

    def step(_: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        nonlocal accuracy
        x, y = sampler.draw(settings.batch, generator)
        x = spec.adapt(x).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.encoder.bf16):
            logits = spec.forward(named, x)
        accuracy = 0.99 * accuracy + 0.01 * (logits.argmax(1) == y).float().mean().item()
        return nn.functional.cross_entropy(logits.float(), y), {"accuracy": accuracy}

    seconds = fit(run / "shared" / spec.name, modules, settings, step, seed=recipe.seed + 12)
    trunk = {k: named[k].detach().contiguous().clone() for k in spec.trunk_shapes()}
    return trunk, {"seconds": seconds, "classes": sampler.classes, "train_accuracy": accuracy}


def load(run: Path, target: str) -> dict[str, Tensor]:
    """The trunk of a target's shared initialisation; empty for targets without one."""
    path = run / "shared" / f"{target}.safetensors"
    return load_file(path) if path.exists() else {}
