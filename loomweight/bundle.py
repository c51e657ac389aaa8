"""A bundle: everything that generation needs, in one folder that proves itself.

    bundle.json             what it is: format, id, targets, defaults, card, SHA-256 of every file
    encoder.safetensors     the frozen image encoder
    {target}/loom.safetensors, {target}/zoo.safetensors   the trained parts, and zoo models for retrieval and novelty

`bundle.json` is written last; loading refuses a folder whose format is unknown or whose files differ from their hashes.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from loomweight import architectures
from loomweight.denoiser import DenoiserConfig
from loomweight.errors import InvalidBundle
from loomweight.features import ImageEncoder, ImageEncoderConfig, channels_last
from loomweight.loom import Loom, LoomConfig
from loomweight.set_encoder import SetEncoderConfig
from loomweight.weight_vae import WeightVaeConfig

FORMAT = 1
MANIFEST = "bundle.json"


@dataclass(frozen=True)
class TargetInfo:
    """A row of `GET /targets`."""

    id: str
    architecture: str
    parameters: int
    input_size: tuple[int, int, int]
    conditions: tuple[str, ...]
    min_classes: int
    max_classes: int
    expected: dict[str, Any]
    limits: str


@dataclass(frozen=True)
class Zoo:
    """The zoo models of a bundle: weights in half precision, codes of their data sets, their classes' mean features."""

    tensors: dict[str, Tensor]

    @property
    def set_codes(self) -> Tensor:
        """(models, width): code of each model's data set."""
        return self.tensors["set_codes"].float()


class Bundle:
    """An opened bundle; parts are loaded on first use."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Verify and open; raises InvalidBundle that says what is wrong."""
        return cls(folder, verify(folder))

    @property
    def id(self) -> str:
        """Name and manifest hash."""
        return str(self.manifest["id"])

    @property
    def targets(self) -> list[TargetInfo]:
        """What this bundle can fill with weights."""
        return [
            TargetInfo(**{**t, "input_size": tuple(t["input_size"]), "conditions": tuple(t["conditions"])})
            for t in self.manifest["targets"]
        ]

    @cached_property
    def encoder(self) -> ImageEncoder:
        """The frozen image encoder."""
        encoder = ImageEncoder(ImageEncoderConfig(**self.manifest["encoder"]))
        encoder.load_state_dict(load_file(self.folder / "encoder.safetensors"))
        return channels_last(encoder.eval().requires_grad_(False))

    def loom(self, target: str) -> Loom:
        """The trained parts of one target."""
        c = self.manifest["looms"][target]
        config = LoomConfig(
            target, WeightVaeConfig(**c["vae"]), SetEncoderConfig(**c["set_encoder"]), DenoiserConfig(**c["denoiser"])
        )
        loom = Loom(architectures.get(target, encoder_dim=self.encoder.config.dim), config)
        loom.load_state_dict({k: v.float() for k, v in load_file(self.folder / target / "loom.safetensors").items()})
        return loom.eval().requires_grad_(False)

    def zoo(self, target: str) -> Zoo:
        """The zoo models that came with one target."""
        return Zoo(load_file(self.folder / target / "zoo.safetensors"))


def verify(folder: Path) -> dict[str, Any]:
    """Check format, presence and hash of every file; returns the manifest or raises InvalidBundle."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise InvalidBundle(f"{folder} holds no readable {MANIFEST}: {error}") from error
    if not isinstance(manifest, dict):
        raise InvalidBundle(f"{folder / MANIFEST} is not a JSON object")
    if manifest.get("format") != FORMAT:
        raise InvalidBundle(f"{folder} has format {manifest.get('format')}, this version reads {FORMAT}")
    if missing := sorted({"id", "name", "targets", "files"} - set(manifest)):
        raise InvalidBundle(f"{folder / MANIFEST} lacks '{missing[0]}'")
    if manifest["id"] != identify(manifest):
        raise InvalidBundle(f"{folder / MANIFEST} was altered: its id does not match its content")
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise InvalidBundle(f"{folder} lacks {name}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise InvalidBundle(f"{path} does not match its hash in {MANIFEST}")
        if name.endswith(".safetensors"):
            try:
                with safe_open(path, framework="numpy") as opened:
                    opened.keys()  # a header that does not parse is found here, not in a request
            except SafetensorError as error:
                raise InvalidBundle(f"{path} is no safetensors file: {error}") from error
    checked: dict[str, Any] = manifest
    return checked


def identify(manifest: dict[str, Any]) -> str:
    """The id that a manifest must have: its name and the first 12 hex digits of its content's SHA-256.

    The card and the targets' expected accuracy stay out: they are measured on the finished bundle, under its id.
    """
    content = {k: v for k, v in manifest.items() if k not in ("id", "card")}
    content["targets"] = [{k: v for k, v in t.items() if k != "expected"} for t in manifest["targets"]]
    return f"{manifest['name']}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"


def write(
    folder: Path,
    *,
    name: str,
    encoder: ImageEncoder,
    looms: dict[str, Loom],
    zoos: dict[str, dict[str, Tensor]],
    targets: list[TargetInfo],
    defaults: dict[str, Any],
    card: dict[str, Any],
) -> dict[str, Any]:
    """Write a bundle, its manifest last; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    files: dict[str, str] = {}

    def store(path: str, tensors: dict[str, Tensor]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / path)
        files[path] = hashlib.sha256((folder / path).read_bytes()).hexdigest()

    store("encoder.safetensors", dict(encoder.state_dict()))
    for target, loom in looms.items():
        # The way into latent space is not used to generate; half precision is enough for codes of uploaded checkpoints.
        half = {"vae.encode_trunk.weight"}
        store(f"{target}/loom.safetensors", {k: v.half() if k in half else v for k, v in loom.state_dict().items()})
        store(f"{target}/zoo.safetensors", zoos[target])
    content = {
        "format": FORMAT,
        "name": name,
        "version": card["version"],
        "default_target": targets[0].id,
        "targets": [asdict(t) for t in targets],
        "defaults": defaults,
        "encoder": asdict(encoder.config),
        "looms": {
            t: {
                "vae": asdict(m.config.vae),
                "set_encoder": asdict(m.config.set_encoder),
                "denoiser": asdict(m.config.denoiser),
            }
            for t, m in looms.items()
        },
        "card": card,
        "files": files,
    }
    manifest: dict[str, Any] = json.loads(json.dumps(content))  # tuples become lists, as a reader will see them
    manifest["id"] = identify(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest
