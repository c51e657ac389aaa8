"""Stage `encoder`: train the image encoder to tell the training classes of all domains apart, then freeze it.

One softmax over every class of every domain; classes that only the generator may see stay out, so that the generator
learns what this encoder makes of classes it does not know.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from loomweight.features import ImageEncoder, ImageEncoderConfig, channels_last
from trainer import data, views
from trainer.loop import fit
from trainer.recipe import Recipe


class Sampler:
    """Draws mixed batches of the encoder's classes, balanced by domain weight."""

    def __init__(self, domains: list[data.Domain], weights: dict[str, float]) -> None:
        self.images, self.labels, self.flip = [], [], []
        first = 0
        domains = [d for d in domains if d.classes_of("encoder")]  # the others are the generator's alone
        for domain in domains:
            classes = domain.classes_of("encoder")
            index = np.concatenate([domain.members[c] for c in classes])
            number = np.full(len(domain.classes), -1)
            number[classes] = np.arange(first, first + len(classes))
            self.images.append(torch.from_numpy(np.ascontiguousarray(domain.images[index])))
            self.labels.append(torch.from_numpy(number[domain.labels[index]]))
            self.flip.append(domain.name in data.PHOTOGRAPHS or domain.name == "fashion-mnist")
            first += len(classes)
        self.classes = first
        share = torch.tensor([weights.get(d.name, 1.0) for d in domains])
        self.share = share / share.sum()

    def draw(self, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Augmented images (batch, 3, 32, 32) and labels (batch,)."""
        counts = torch.multinomial(self.share, batch, replacement=True, generator=generator).bincount(
            minlength=len(self.images)
        )
        images, labels, flip = [], [], []
        for k, count in enumerate(counts.tolist()):
            chosen = torch.randint(len(self.labels[k]), (count,), generator=generator)
            images.append(self.images[k][chosen])
            labels.append(self.labels[k][chosen])
            flip.append(torch.full((count,), self.flip[k]))
        x = torch.cat(images).permute(0, 3, 1, 2).float() / 255
        return views.augment(x, generator, flip=torch.cat(flip)), torch.cat(labels)


def train(recipe: Recipe, run: Path) -> None:
    """Run the stage; writes `run/encoder/encoder.safetensors` and `encoder.json`."""
    folder = run / "encoder"
    sampler = Sampler(data.load_all(recipe, run, "train"), recipe.encoder.weights)
    torch.manual_seed(recipe.seed)
    shape = ImageEncoderConfig(width=recipe.encoder.width)
    encoder = channels_last(ImageEncoder(shape))
    head = nn.Linear(shape.dim, sampler.classes)
    modules = nn.ModuleDict({"encoder": encoder, "head": head})
    modules.train()

    def step(_: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        x, y = sampler.draw(recipe.encoder.batch, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.encoder.bf16):
            logits = head(encoder.raw(x.contiguous(memory_format=torch.channels_last)))
        loss = nn.functional.cross_entropy(logits.float(), y, label_smoothing=0.1)
        return loss, {"accuracy": (logits.argmax(1) == y).float().mean().item()}

    seconds = fit(folder, modules, recipe.encoder, step, seed=recipe.seed + 1)
    encoder.eval()
    generator = Generator().manual_seed(recipe.seed + 2)
    with torch.no_grad():
        encoder.calibrate(torch.cat([encoder.raw(sampler.draw(256, generator)[0]) for _ in range(20)]))
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, folder / "encoder.safetensors")
    (folder / "encoder.json").write_text(
        json.dumps(
            {"width": shape.width, "classes": sampler.classes, "seconds": seconds, "recipe": recipe.sha256}, indent=1
        )
    )


def config(run: Path) -> ImageEncoderConfig:
    """Shape of the encoder that the stage wrote."""
    return ImageEncoderConfig(width=json.loads((run / "encoder" / "encoder.json").read_text())["width"])


def load(run: Path) -> ImageEncoder:
    """The frozen encoder that the stage wrote."""
    encoder = ImageEncoder(config(run))
    encoder.load_state_dict(load_file(run / "encoder" / "encoder.safetensors"))
    return encoder.eval().requires_grad_(False)
