"""A request's body ► options and one upload. Nothing is decoded here: images and archives are the worker's business."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from model_store.store import InvalidKey, validate_key
from service.errors import InvalidSamples, Malformed, ServiceError, TooLarge, Unprocessable, UnsupportedType, invalid
from service.generations.schemas import GenerateJson
from service.settings import GatewaySettings
from workers.messages import SAMPLES_CONTENT_TYPE, GenerateRequest, pack_samples

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_DATASETS = {b"PK": "application/zip", b"PAR1": "application/vnd.apache.parquet"}
_SMALL = 100_000  # bytes; another thread is not worth it
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.{1,800})")
_OPTIONS = frozenset(GenerateRequest.model_fields)
_SOURCES = frozenset({"samples", "labels", "dataset", "dataset_uri"})
_ONE_SOURCE = "Send exactly one source: `samples` with `labels`, one `dataset`, or one `dataset_uri`."


@dataclass(frozen=True)
class Upload:
    """What a client sent, checked as far as that goes without decoding it."""

    options: GenerateRequest
    kind: Literal["samples", "dataset", "uri"]
    body: bytes
    """The upload, or the address of one."""
    content_type: str
    classes: int | None
    """How many, where the labels are known here."""

    def fingerprint(self) -> str:
        """Return a hash of everything that the answer depends on."""
        digest = hashlib.sha256(self.options.model_dump_json().encode() + b"\0")
        digest.update(self.body)
        return digest.hexdigest()


async def read_upload(request: Request, settings: GatewaySettings) -> Upload:
    """Read the body. Raises `ServiceError` for whatever is wrong with it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return await run_in_threadpool(_from_json, await request.body(), settings)
    if media_type == "multipart/form-data":
        return await _from_form(request, settings)
    raise UnsupportedType("Send multipart/form-data or application/json.")


def _from_json(body: bytes, settings: GatewaySettings) -> Upload:
    try:
        given = GenerateJson.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from None
    options = GenerateRequest.model_construct(**{name: getattr(given, name) for name in _OPTIONS})
    samples = given.samples
    if (samples is None) == (given.dataset_uri is None):
        raise Unprocessable(_ONE_SOURCE)
    if samples is None:
        return _uri(options, given.dataset_uri or "", settings)
    return _samples(options, [sample.image for sample in samples], [sample.label for sample in samples], settings)


async def _from_form(request: Request, settings: GatewaySettings) -> Upload:
    fields = settings.max_samples + len(_OPTIONS)
    try:
        async with request.form(max_files=settings.max_samples + 1, max_fields=fields) as form:
            return await _from_fields(form, settings)
    except ServiceError:
        raise
    except HTTPException as error:
        if error.detail.startswith("Too many"):
            raise TooLarge(f"{error.detail} One request may have {settings.max_samples:,} samples.") from None
        raise Malformed(f"The form cannot be read: {error.detail}") from None


async def _from_fields(form: FormData, settings: GatewaySettings) -> Upload:
    options = _options(form)
    samples, labels, datasets, uris = (_given(form, name) for name in ("samples", "labels", "dataset", "dataset_uri"))
    uris = [uri for uri in uris if uri != ""]
    if [bool(samples or labels), bool(datasets), bool(uris)].count(True) != 1 or len(datasets) > 1 or len(uris) > 1:
        raise Unprocessable(_ONE_SOURCE)
    if uris:
        if not isinstance(uris[0], str):
            raise Unprocessable("`dataset_uri` is text, not a file.", pointer="/dataset_uri")
        return _uri(options, uris[0], settings)
    if datasets:
        [body] = await _contents("dataset", datasets)
        return _dataset(options, body)
    texts = [label for label in labels if isinstance(label, str)]
    if len(texts) != len(labels):
        raise Unprocessable("Labels are text fields, not files.", pointer="/labels")
    images = await _contents("samples", samples)
    if sum(map(len, images)) < _SMALL:
        return _samples(options, images, texts, settings)
    return await run_in_threadpool(_samples, options, images, texts, settings)


def _given(form: FormData, name: str) -> list[UploadFile | str]:
    """Return the values of a field, without the nameless empty file that a browser sends for "no file"."""
    values = form.getlist(name)
    return [value for value in values if isinstance(value, str) or value.filename or value.size]


def _options(form: FormData) -> GenerateRequest:
    options: dict[str, object] = {}
    for name, value in form.multi_items():
        if name in options:
            raise Unprocessable(f"The option {name!r} is given twice.", pointer=f"/{name}")
        # A form sends its empty fields too; they mean the default.
        if name not in _SOURCES and value != "":
            options[name] = value
    try:
        return GenerateRequest.model_validate(options)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from None


async def _contents(name: str, files: Sequence[UploadFile | str]) -> list[bytes]:
    contents = []
    for file in files:
        if isinstance(file, str):
            raise Unprocessable(f"`{name}` must be sent as a file, with a filename.", pointer=f"/{name}")
        contents.append(await file.read())
    return contents


def _dataset(options: GenerateRequest, body: bytes) -> Upload:
    content_type = next((kind for magic, kind in _DATASETS.items() if body.startswith(magic)), None)
    if content_type is None:
        raise UnsupportedType("The dataset is neither a zip, nor a parquet, nor an npz file.", pointer="/dataset")
    return Upload(options, "dataset", body, content_type, None)


def _uri(options: GenerateRequest, uri: str, settings: GatewaySettings) -> Upload:
    """Check where a dataset is said to lie; the worker fetches it."""
    match = _S3.fullmatch(uri)
    if not match or match[1] not in settings.dataset_buckets or uri.startswith(settings.store_url.rstrip("/") + "/"):
        allowed = ", ".join(settings.dataset_buckets) or "none"
        raise Unprocessable(f"Give s3://bucket/key with an allowed bucket: {allowed}.", pointer="/dataset_uri")
    try:
        validate_key(match[2])
    except InvalidKey:
        raise Unprocessable("There cannot be a file of this name.", pointer="/dataset_uri") from None
    return Upload(options, "uri", uri.encode(), "text/uri-list", None)


def _samples(options: GenerateRequest, images: list[bytes], labels: list[str], settings: GatewaySettings) -> Upload:
    if len(images) != len(labels):
        raise InvalidSamples(f"There are {len(images):,} samples and {len(labels):,} labels; the counts must be equal.")
    if len(images) > settings.max_samples:
        raise TooLarge(f"There are {len(images):,} samples; the limit is {settings.max_samples:,}.")
    for index, image in enumerate(images):
        if not image.startswith(_IMAGES) and not (image.startswith(b"RIFF") and image[8:12] == b"WEBP"):
            raise UnsupportedType(f"samples[{index}] is not a PNG, JPEG or WebP image.", pointer=f"/samples/{index}")
    labels = [_label(index, label, settings.max_label_length) for index, label in enumerate(labels)]
    classes = len(set(labels))
    if classes < 2:
        raise InvalidSamples("A classifier needs samples of at least two classes.", pointer="/labels")
    if classes > settings.max_classes:
        raise TooLarge(f"There are {classes:,} classes; the limit is {settings.max_classes:,}.", pointer="/labels")
    return Upload(options, "samples", pack_samples(images, labels), SAMPLES_CONTENT_TYPE, classes)


def _label(index: int, text: str, longest: int) -> str:
    label = unicodedata.normalize("NFC", text).strip()
    if not label:
        raise InvalidSamples(f"labels[{index}] is empty.", pointer=f"/labels/{index}")
    if len(label) > longest:
        raise InvalidSamples(f"labels[{index}] is longer than {longest} characters.", pointer=f"/labels/{index}")
    return label
