"""What `/similarity` takes."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_ID = "Id of a stored model."
FileOrId = Annotated[str, WithJsonSchema({"anyOf": [{"type": "string", "format": "binary"}, {"type": "string"}]})]


class SimilarityJson(BaseModel):
    """Two stored models."""

    model_config = ConfigDict(extra="forbid")

    a: str = Field(max_length=100, description=_ID)
    b: str = Field(max_length=100, description=_ID)


class SimilarityForm(BaseModel):
    """Two checkpoints, each a safetensors file or the id of a stored model."""

    a: FileOrId = Field(description="A safetensors file, or the id of a stored model.")
    b: FileOrId = Field(description="A safetensors file, or the id of a stored model.")


class MatrixJson(BaseModel):
    """Stored models to compare, each with each."""

    model_config = ConfigDict(extra="forbid")

    ids: list[Annotated[str, Field(max_length=100)]] = Field(
        min_length=2, description="Ids of stored models, in order."
    )
