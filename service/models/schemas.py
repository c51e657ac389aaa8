"""A stored model as clients see it."""

from typing import Annotated

from pydantic import BaseModel, Field, WithJsonSchema

from model_store.records import ModelCard
from service.jobs.schemas import ModelLinks


class Model(ModelCard):
    """A stored model."""

    links: ModelLinks


class UploadForm(BaseModel):
    """A checkpoint to store."""

    weights: Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})] = Field(
        description="A safetensors file."
    )
    classes: list[str] | None = Field(default=None, description="Class names in the order of the outputs, repeated.")
    licence: str | None = Field(
        default=None, max_length=200, description="SPDX identifier of the weights' licence, or its name."
    )


class ModelList(BaseModel):
    """Some models, newest first."""

    models: list[Model]
    next_cursor: str | None = Field(description="Give this as `cursor` to get the next page; null on the last one.")


def linked(card: ModelCard) -> Model:
    """Add the links to a card."""
    return Model(**dict(card), links=ModelLinks.of(card.id))
