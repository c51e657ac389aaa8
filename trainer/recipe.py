"""A recipe: everything that decides what a run produces, one frozen dataclass a stage, read from TOML.

`trainer/recipes/NAME.toml` holds the recipes that ship. A key the dataclasses don't know is an error, not a shrug.
"""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class DataRecipe:
    """Stage `data`."""

    domains: tuple[str, ...] = ("glyphs", "textures")
    per_class: int | None = None  # at most so many images of each class of a stored set
    rendered_per_class: int = 40
    rendered_classes: int = 0  # 0: all


@dataclass(frozen=True)
class TrainingRecipe:
    """The part that every gradient-trained stage shares."""

    steps: int = 20
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class EncoderRecipe(TrainingRecipe):
    """Stage `encoder`: the frozen image encoder."""

    width: int = 8
    weights: dict[str, float] = field(default_factory=dict)  # share of each domain in a batch; default: equal
    bf16: bool = False


@dataclass(frozen=True)
class ZooRecipe:
    """Stage `zoo`: how many models, and how each is trained."""

    models: int = 12
    init: str = "shared"  # "shared": from the shared initialisation; "independent": own seed, aligned afterwards
    classes: tuple[int, ...] = (10,)  # class counts to draw from, repeated ones more often
    epochs: int = 2
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-2
    per_class: int = 500  # training images a class at most


@dataclass(frozen=True)
class VaeRecipe(TrainingRecipe):
    """Stage `vae`: the weight autoencoder."""

    latents: int = 4  # global latent tokens
    dim: int = 21  # values of a latent token, global or of one class
    kl: float = 1e-6
    behaviour: float = 1.0  # weight of the behavioural loss beside the reconstruction
    gate: float = 0.95  # decoded models must keep this share of their originals' mean test accuracy


@dataclass(frozen=True)
class SetEncoderRecipe(TrainingRecipe):
    """Stage `set_encoder`: dataset codes, aligned with weight latents."""

    width: int = 32
    heads: int = 2
    inducing: int = 8
    per_class: int = 5  # images drawn of each class


@dataclass(frozen=True)
class GeneratorRecipe(TrainingRecipe):
    """Stage `diffusion`: the conditional latent diffusion and its closed-form start."""

    width: int = 32
    layers: int = 1
    heads: int = 2
    tasks: int = 4  # tasks a step
    max_classes: int = 20
    max_shots: int = 20
    max_images: int = 160  # conditioning images of one task
    queries: int = 80  # query images of one task
    behaviour_only: float = 0.5  # share of steps at pure noise, with the behavioural loss alone
    latent_loss: float = 0.1
    drop_condition: float = 0.1
    train_decoder: bool = True  # let the autoencoder's way out learn from the generated networks as well
    ema: float = 0.99


@dataclass(frozen=True)
class TargetRecipe:
    """Everything about one target architecture."""

    shared: TrainingRecipe = TrainingRecipe()
    zoo: ZooRecipe = ZooRecipe()
    vae: VaeRecipe = VaeRecipe()
    set_encoder: SetEncoderRecipe = SetEncoderRecipe()
    diffusion: GeneratorRecipe = GeneratorRecipe()


@dataclass(frozen=True)
class BankRecipe:
    """The images that generator tasks are drawn from, seen through every view of their domain."""

    per_class: int = 20
    per_class_views: int = 10  # images a class for each view but the plain one
    views: dict[str, tuple[str, ...]] = field(default_factory=dict)  # beside "plain", by domain
    weights: dict[str, float] = field(default_factory=dict)  # share of each domain among tasks; default: equal
    plain: float = 0.5  # share of plain tasks within a domain that has views


@dataclass(frozen=True)
class SamplingRecipe:
    """The defaults that a bundle samples with."""

    steps: int = 8
    guidance: float = 1.0
    prior: dict[str, str] = field(
        default_factory=dict
    )  # by target: the candidate that leads where nothing can be ranked


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    name: str
    seed: int = 0
    threads: int = 1
    data: DataRecipe = DataRecipe()
    encoder: EncoderRecipe = EncoderRecipe()
    bank: BankRecipe = BankRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    targets: dict[str, TargetRecipe] = field(default_factory=lambda: {"head": TargetRecipe(), "cnn-s": TargetRecipe()})

    @property
    def sha256(self) -> str:
        """Hash of all settings, stored with every product of the run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def load(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path.

    Raises FileNotFoundError for an unknown one and ValueError for a key that no stage knows.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    if not path.exists():
        raise FileNotFoundError(f"no recipe {name_or_path}; there are {sorted(p.stem for p in RECIPES.glob('*.toml'))}")
    recipe: Recipe = _build(Recipe, {"name": path.stem, **tomllib.loads(path.read_text())}, path.stem)
    return recipe


def _build(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where}: unknown keys {unknown}")
    built = {}
    for key, value in values.items():
        default = known[key].default
        if is_dataclass(default):
            value = _build(type(default), value, f"{where}.{key}")
        elif key == "targets":
            value = {name: _build(TargetRecipe, settings, f"{where}.{name}") for name, settings in value.items()}
        built[key] = tuple(value) if isinstance(value, list) else value
    return kind(**built)
