"""A stored model as clients see it."""

from pydantic import BaseModel, Field

from model_store.records import ModelCard
from service.jobs.schemas import ModelLinks


class Model(ModelCard):
    """A stored model."""

    links: ModelLinks


class ModelList(BaseModel):
    """Some models, newest first."""

    models: list[Model]
    next_cursor: str | None = Field(description="Give this as `cursor` to get the next page; null on the last one.")


def linked(card: ModelCard) -> Model:
    """Add the links to a card."""
    return Model(**dict(card), links=ModelLinks.of(card.id))
