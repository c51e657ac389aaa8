"""A recipe: everything that decides what a run produces, one frozen dataclass a stage, read from TOML.

`trainer/recipes/NAME.toml` holds the recipes that ship. A key the dataclasses don't know is an error, not a shrug.
"""

import hashlib
import json
import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).with_name("recipes")

LATER = {"later": True}
"""Marks a setting that is younger than products of older recipes: at its default their hash does not see it."""


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
    # "drawn": random classes of a random view; "whole": the data sets in turn, plain, all classes in their order
    tasks: str = field(default="drawn", metadata=LATER)

    def __post_init__(self) -> None:
        if self.tasks not in ("drawn", "whole"):
            raise ValueError(f'zoo.tasks is "drawn" or "whole", not {self.tasks!r}')


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
    behaviour_only: float = 0.5  # share of steps that predict from nothing, with the behavioural loss alone
    latent_loss: float = 0.1
    drop_condition: float = 0.1
    train_decoder: bool = True  # let the autoencoder's way out learn from the generated networks as well
    ema: float = 0.99
    behaviour: float = field(default=1.0, metadata=LATER)  # weight of the behavioural loss; 0: latents alone, as D2NWG
    from_zoo: float = field(default=0.5, metadata=LATER)  # share of zoo models among targets to denoise towards
    closed_form: bool = field(default=True, metadata=LATER)  # False: latents hold whole weights, not differences

    def __post_init__(self) -> None:
        if not self.behaviour and (self.behaviour_only or not self.latent_loss):
            raise ValueError(
                "without a behavioural loss every step needs a latent one: behaviour_only 0, latent_loss > 0"
            )


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
    new_classes: float = 0.5  # share of tasks made of classes that the encoder has not seen alone
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
class ModelSetRecipe:
    """Stage `modelset`: small two-class networks to learn similarity on."""

    domain: str = "cifar100"
    pairing: str = "alphabetical"  # "alphabetical", "random" or "superclass"
    pair_seed: int = 0
    tasks: int = 50
    withheld_tasks: int = 10  # tasks of classes that nobody trains on
    seeds: int = 10  # models a task
    networks: tuple[str, ...] = ("plain-8-batch-relu",)  # see trainer/nets.py; model s is networks[s % len]
    optimizers: tuple[str, ...] = ("adamw",)  # "adamw", "sgd"; model s of task t takes [(s + t) % len]
    init: str = "independent"  # "shared": every model starts from the same weights
    labels: str = "true"  # "shuffled": the control
    epochs: int = 10  # 0: untrained nets
    batch: int = 64
    lr: float = 4e-3
    sgd_lr: float = 0.05
    weight_decay: float = 1e-2
    per_class: int = 500


@dataclass(frozen=True)
class LpsRecipe(TrainingRecipe):
    """Stage `lps`: the second-order networks over a model set."""

    steps: int = 150
    second_order_steps: int = 1000  # for the published network, whose steps are cheap and which learns slowly
    lr: float = 1e-3
    weight_decay: float = 1e-2
    tasks: int = 8  # tasks of a batch
    models: int = 4  # models of each
    temperature: float = 0.1
    probes: int = 64
    side: int = 16
    slots: int = 4
    width: int = 128
    protocol_tasks: int = 30  # tasks of protocol B's training set; those of the first rounds, without common classes
    protocol_seeds: int = 6  # models a task that train in protocol A


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
    modelset: ModelSetRecipe = field(default=ModelSetRecipe(), metadata=LATER)
    lps: LpsRecipe = field(default=LpsRecipe(), metadata=LATER)
    targets: dict[str, TargetRecipe] = field(default_factory=lambda: {"head": TargetRecipe(), "cnn-s": TargetRecipe()})

    @property
    def sha256(self) -> str:
        """Hash of all settings, stored with every product of the run."""
        return hashlib.sha256(json.dumps(_settings(self), sort_keys=True).encode()).hexdigest()


def _settings(stage: Any) -> Any:
    """What the hash sees of a recipe or one of its parts; see `LATER`."""
    if isinstance(stage, dict):
        return {key: _settings(value) for key, value in stage.items()}
    if not is_dataclass(stage):
        return stage
    seen = [f for f in fields(stage) if "later" not in f.metadata or getattr(stage, f.name) != f.default]
    return {f.name: _settings(getattr(stage, f.name)) for f in seen}


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
