"""What `POST /generate` takes, in its two forms."""

from base64 import b64decode
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from workers.messages import GenerateRequest

_LABEL = "Name of the class."
_URI = "`s3://bucket/key` of a file as `dataset` takes; only buckets that the operator allows."


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("must be a string of base64")
    return b64decode(text, validate=True)


Base64 = Annotated[bytes, BeforeValidator(_decoded), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
File = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]


class Sample(BaseModel):
    """One labelled image."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(description=_LABEL)
    image: Base64 = Field(description="A PNG, JPEG or WebP file.")


class GenerateJson(GenerateRequest):
    """The JSON form."""

    samples: list[Sample] | None = Field(default=None, description="Labelled images.")
    dataset_uri: str | None = Field(default=None, max_length=1_000, description=_URI)


class GenerateForm(GenerateRequest):
    """The multipart form: `samples` with `labels`, or `dataset`. Options as fields of their names."""

    samples: list[File] | None = Field(default=None, description="PNG, JPEG or WebP files, the field repeated.")
    labels: list[str] | None = Field(default=None, description=_LABEL + " As many as samples, in their order.")
    dataset: File | None = Field(
        default=None,
        description="One file: a zip of `class/name.png`, a parquet in the Hugging Face image classification layout, "
        "or an npz with `x` (n,h,w[,c] uint8) and `y`.",
    )
    dataset_uri: str | None = Field(default=None, max_length=1_000, description=_URI)
