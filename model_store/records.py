"""What is known of a stored model, as published through the API and kept as `card.json`."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from model_store.keys import ID_PATTERN

ModelId = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Accuracy = Annotated[float, Field(ge=0, le=1)]

RankedOn = Literal["holdout", "cross-validation", "conditioning"]
RANKED_ON = (
    "What ranked the candidates and measured their accuracy: samples held out; cross-validation, for which each was "
    "made again without a part of the samples and asked about it; or, with no accuracy, what conditioned them."
)


class Record(BaseModel):
    """Immutable, and strict about its fields: an unknown one is a mistake, not a novelty."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(Record):
    """One tensor of a checkpoint."""

    name: str = Field(description="Name in the safetensors file.", examples=["head.weight"])
    dtype: str = Field(description="Element type, as safetensors spells it.", examples=["F32"])
    shape: tuple[int, ...] = Field(description="Length of each dimension, outermost first.", examples=[[10, 64]])


class Artifact(Record):
    """A file of the model beside its weights."""

    sha256: Sha256 = Field(description="SHA-256 of the file, in hex.")
    size: int = Field(ge=0, description="Size of the file, in bytes.")


class Measured(Record):
    """How well the model did, where that was measured, and what simpler means reach on the same samples."""

    holdout_accuracy: Accuracy | None = Field(
        description="Accuracy from 0 to 1 on samples that did not condition what answered; null if there were none."
    )
    ranked_on: RankedOn = Field(description=RANKED_ON)
    n_holdout: int = Field(ge=0, description="Number of samples that the accuracy was measured on.")
    baselines: dict[str, float] = Field(
        default_factory=dict, description="Accuracy of simpler methods on the same samples, by method."
    )


class Lineage(Record):
    """Where the model comes from."""

    job_id: str | None = Field(default=None, description="The job that made the model; null for an upload.")
    condition_sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of the samples that conditioned the model; null for an upload."
    )
    rank: int | None = Field(
        default=None, ge=0, description="Place among the candidates of its job, 0 for the best; null for an upload."
    )
    parents: tuple[str, ...] = Field(default=(), description="Ids of the models that this one was made from.")


class ModelCard(Record):
    """A stored model."""

    id: ModelId = Field(description="Id of the model.", examples=["m-5f0c5b8f2a9d4e6b7c8d9e0f"])
    target: ModelId | None = Field(
        description="The architecture, an id of `GET /targets`; null for an upload of an architecture of its own."
    )
    classes: tuple[str, ...] = Field(
        description="Class names in the order of the model's outputs; empty if an upload did not name them."
    )
    origin: str = Field(
        description="How the weights came to be.",
        examples=["mean", "mean-half", "closed-form", "diffusion", "kde", "retrieve", "uploaded"],
    )
    seed: int | None = Field(description="Seed of the generation; null for an upload.")
    bundle: str | None = Field(description="Id of the bundle that generated the weights; null for an upload.")
    sha256: Sha256 = Field(description="SHA-256 of the safetensors file, in hex; its ETag.")
    size: int = Field(ge=0, description="Size of the safetensors file, in bytes.")
    tensors: tuple[TensorInfo, ...] = Field(description="The tensors, in file order.")
    measured: Measured | None = Field(description="Measured results; null if none were measured.")
    lineage: Lineage = Field(description="Where the model comes from.")
    licence: str = Field(description="SPDX identifier of the weights' licence, or its name.", examples=["CC0-1.0"])
    created_at: AwareDatetime = Field(description="When the model was stored.")
    onnx: Artifact | None = Field(default=None, description="The runnable ONNX model; null if there is none.")
    owner: ModelId | None = Field(
        default=None, description="Owner of the API key that the model was made with; null where keys are off."
    )


class ModelPage(Record):
    """Some models, newest first."""

    models: tuple[ModelCard, ...] = Field(description="The cards of this page.")
    next_cursor: str | None = Field(description="Give this as `cursor` to get the next page; null on the last one.")
