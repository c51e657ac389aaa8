"""What is known of targets and bundles, read from the manifest that the trainer writes."""

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Target(BaseModel):
    """An architecture that can be filled with weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="What to give as `target`.")
    architecture: str = Field(description="What it is, in a line.")
    parameters: int = Field(ge=0, description="Number of weights.")
    input_size: JsonValue = Field(default=None, description="Shape of one input, channels first.")
    conditions: tuple[str, ...] = Field(default=(), description="What it can be generated from.")
    min_classes: int = Field(default=2, description="Fewest classes.")
    max_classes: int | None = Field(default=None, description="Most classes; null without a limit of its own.")
    expected: JsonValue = Field(default=None, description="Accuracy measured on held-out tasks, beside baselines.")
    limits: JsonValue = Field(default=None, description="Where it is known not to work.")


class Manifest(BaseModel):
    """The top of `bundle.json`; what only workers need is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    version: JsonValue = None
    targets: tuple[Target, ...] = Field(min_length=1)
    default_target: str | None = None
    card: dict[str, JsonValue] = {}
    files: dict[str, str] = {}
    defaults: dict[str, JsonValue] = {}


class TargetList(BaseModel):
    """Every target."""

    targets: tuple[Target, ...]
    default: str = Field(description="The target of a request that names none.")


class Bundle(BaseModel):
    """A bundle that this service generates with."""

    id: str
    sha256: str = Field(description="Of its manifest, which holds the hashes of its files.")
    version: JsonValue
    targets: tuple[str, ...]
    default_target: str
    defaults: dict[str, JsonValue] = Field(description="Sampler settings of a request that names none.")
    card: dict[str, JsonValue] = Field(description="Training data, measured results, licence.")
    files: dict[str, str] = Field(description="SHA-256 of each file.")


class BundleList(BaseModel):
    """Every bundle."""

    bundles: tuple[Bundle, ...]
