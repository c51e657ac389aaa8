"""What gateway and workers say to each other: jobs, requests, results, inputs. Pydantic only, no torch.

A queue message is nothing but `{"job_id": …}`; everything else stands in the job record (`workers/jobs.py`) and in the
store. An upload is one object per job, `inputs/{job}/…`, or in Redis beside the record if it is small:

    kind "uri"       none: `key` is the address of a dataset in a bucket of others, which is read and never changed
    kind "dataset"   the client's file as it came: zip, parquet or npz
    kind "samples"   images that came one by one, in this container (after the manner of safetensors):

        8 bytes       length n of the header, little-endian unsigned
        n bytes       JSON {"samples": [{"label": "cat", "size": 812}, …]}
        the images    encoded as they came, one after the other, `size` bytes each
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_store.keys import ID_PATTERN
from model_store.records import RANKED_ON, RankedOn, Sha256

GENERATE_QUEUE = "generate"
SIMILARITY_QUEUE = "similarity"
LARGE_QUEUE = "large"
QUEUES = (GENERATE_QUEUE, SIMILARITY_QUEUE, LARGE_QUEUE)

GENERATE_TASK = "loomweight.generate"
SIMILARITY_TASK = "loomweight.similarity"

SAMPLES_CONTENT_TYPE = "application/vnd.loomweight.samples"
PROBLEM_BASE = "urn:loomweight:problem:"

JobKind = Literal["generate", "similarity", "similarity-matrix", "neighbours"]
JobStatus = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]
TERMINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "canceled", "expired"})
TASKS: dict[JobKind, str] = {
    "generate": GENERATE_TASK,
    "similarity": SIMILARITY_TASK,
    "similarity-matrix": SIMILARITY_TASK,
    "neighbours": SIMILARITY_TASK,
}
"""Which Celery task runs a job of which kind."""

MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON client reads exactly."""


class Message(BaseModel):
    """Base: frozen, and a field nobody knows is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerateRequest(Message):
    """The options of one generation."""

    target: str | None = Field(
        default=None,
        max_length=100,
        description="An id of `GET /targets`: the architecture to fill with weights. Default: the bundle's.",
    )
    method: Literal["conditional-mean", "diffusion", "kde", "retrieve"] = Field(
        default="conditional-mean",
        description="`conditional-mean`, the denoiser's one prediction and shares of it; `diffusion`, samples beside "
        "them; `kde`, sampling around encoded zoo models; or `retrieve`, the nearest zoo model, the honest baseline.",
    )
    candidates: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Weight sets made and ranked, at most: the conditional mean has five shares, fewer for a target "
        "without a trunk. The closed form is ranked beside those of `conditional-mean` and `diffusion`.",
    )
    keep: int = Field(default=1, ge=1, le=64, description="How many of them are stored at most, the best first.")
    holdout: float | None = Field(
        default=None,
        ge=0,
        le=0.9,
        description="Share of the samples that never conditions and only ranks. Default: none; cross-validation ranks "
        "and networks are made from all samples. `kde`, `retrieve` and `refine_steps` cannot be cross-validated: their "
        "default is 0.2, and 0 ranks on the conditioning samples.",
    )
    steps: int | None = Field(default=None, ge=1, le=1000, description="Denoising steps. Default: the bundle's.")
    guidance: float | None = Field(
        default=None, ge=0, le=20, allow_inf_nan=False, description="Strength of the condition. Default: the bundle's."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, allow_inf_nan=False, description="Scale of the sampling noise. Default: the bundle's."
    )
    refine_steps: int = Field(default=0, ge=0, le=1000, description="Gradient steps on the samples after generation.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="The same seed, inputs, bundle, device and threads give the same bytes; on a GPU that serves many "
        "at once, the same weights but for rounding. Default: random, and returned.",
    )

    callback_url: str | None = Field(
        default=None,
        max_length=2_000,
        description="Where a signed webhook (Standard Webhooks) goes when the job has ended: an https address.",
    )

    @model_validator(mode="after")
    def _keep_within_candidates(self) -> Self:
        if self.keep > self.candidates:
            raise ValueError(f"keep is {self.keep}, more than the {self.candidates} candidates")
        return self


class Checkpoint(Message):
    """One side of a comparison: a stored model, or an upload of this job, `inputs/{job}/{a or b}`."""

    model: str | None = Field(default=None, pattern=f"^{ID_PATTERN}$", description="A stored model; null for a file.")
    sha256: Sha256 = Field(description="SHA-256 of the safetensors file, in hex.")
    size: int = Field(ge=0, description="Size of the file, in bytes.")


class SimilarityRequest(Message):
    """Two checkpoints to compare."""

    a: Checkpoint
    b: Checkpoint


class MatrixRequest(Message):
    """Stored models to compare, each with each."""

    ids: tuple[str, ...] = Field(min_length=2, description="Ids of stored models.")


class NeighboursRequest(Message):
    """A stored model whose nearest are wanted."""

    model: str
    k: int = Field(ge=1, description="How many.")


JobRequest = GenerateRequest | SimilarityRequest | MatrixRequest | NeighboursRequest


class InputRef(Message):
    """Where a job's upload lies in the store."""

    kind: Literal["samples", "dataset", "uri"]
    key: str
    size: int = Field(ge=0)
    sha256: str
    content_type: str
    inline: bool = False
    """The bytes came with the record (`Jobs.upload`); `key` is where they go if the job becomes a dead letter."""


class ErrorItem(Message):
    """One thing that is wrong, and where."""

    pointer: str = Field(description="JSON pointer, or the form field, of the offending value.")
    detail: str


class JobError(Message):
    """Why a job failed: the fields of an RFC 9457 problem document."""

    type: str = Field(description="Stable URI of the kind of problem.")
    title: str
    status: int = Field(ge=400, le=599, description="The status that a synchronous answer would have had.")
    detail: str = Field(description="What happened, and what to do about it.")
    errors: tuple[ErrorItem, ...] = ()

    @classmethod
    def of(cls, slug: str, title: str, status: int, detail: str) -> Self:
        """Build the problem whose type ends in `slug`."""
        return cls(type=PROBLEM_BASE + slug, title=title, status=status, detail=detail)


class Progress(Message):
    """How far a running job is."""

    stage: str = Field(
        description="`decode_inputs`, `encode`, `sample`, `decode_weights`, `rank` or `store`; of similarity: `embed`."
    )
    step: int = Field(ge=0)
    steps: int = Field(ge=0, description="Steps of this stage.")


class StoredModel(Message):
    """One of the models that a generation stored."""

    id: str
    rank: int = Field(ge=0, description="0 is the best.")
    holdout_accuracy: float | None = Field(
        description="Accuracy on samples that did not condition it; see `ranked_on`. Null where there were none."
    )


class Novelty(Message):
    """How unlike the training data the request is."""

    score: float | None
    warning: str | None


class GenerateResult(Message):
    """What a successful generation made; `models` best first."""

    models: tuple[StoredModel, ...]
    classes: tuple[str, ...] = Field(description="Row i of the head is class i.")
    seed: int
    method: str
    bundle: str
    ranked_on: RankedOn | None = Field(default=None, description=RANKED_ON)
    baselines: dict[str, float] = Field(description="Accuracy of plain methods, measured in the same way.")
    novelty: Novelty
    timings_ms: dict[str, float] = Field(
        description="`queue`, `decode_inputs`, `encode`, `sample`, `decode_weights`, `rank`, `store`."
    )


Score = Annotated[float, Field(ge=-1, le=1)]


class LayerPair(Message):
    """Two layers at like depth, and how alike they are."""

    a: str = Field(description="Name of the layer of the first checkpoint.")
    b: str = Field(description="Name of the layer of the second one.")
    similarity: Score


class SimilarityBaselines(Message):
    """What comparisons say that nobody trained; null between different architectures."""

    cosine: float | None = Field(description="Cosine of all weights, as they are.")
    aligned_cosine: float | None = Field(
        description="The same after weight matching (Git Re-Basin); null as well where matching would take too long."
    )
    statistics: float | None = Field(description="Cosine of every tensor's mean, variance and quantiles.")


class SimilarityResult(Message):
    """How related the tasks of two networks are, judged by their weights alone."""

    similarity: Score = Field(description="Symmetric; 1 for a model with itself and with its permuted copies.")
    same_task_probability: float = Field(
        ge=0, le=1, description="Chance of one task, as if half of all pairs shared theirs."
    )
    method: str
    bundle: str
    part: str = Field(description="Id of the bundle's similarity part, which made the score.")
    layers: tuple[LayerPair, ...] = Field(description="Every layer of the deeper network once.")
    baselines: SimilarityBaselines
    warnings: tuple[str, ...] = Field(description="What a reader of the score should know.")


class MatrixResult(Message):
    """The similarity of every pair of some stored models."""

    ids: tuple[str, ...] = Field(description="Row and column i belong to model i.")
    matrix: tuple[tuple[Score, ...], ...] = Field(description="Symmetric, with ones on the diagonal.")
    method: str
    bundle: str
    part: str
    warnings: tuple[str, ...]


class Neighbour(Message):
    """A model near another one."""

    id: str = Field(description="Of a stored model; or a zoo model's name, its target and number.")
    source: Literal["store", "zoo"] = Field(description="`zoo`: came with the bundle, and cannot be downloaded.")
    similarity: Score
    same_architecture: bool


class NeighboursResult(Message):
    """The nearest of the models that the service has."""

    model: str
    neighbours: tuple[Neighbour, ...] = Field(description="The nearest first.")
    searched: dict[str, int] = Field(description="How many models were looked at, by source.")
    method: str
    bundle: str
    part: str
    warnings: tuple[str, ...]


JobResult = GenerateResult | SimilarityResult | MatrixResult | NeighboursResult


def _now() -> datetime:
    return datetime.now(UTC)


class JobRecord(Message):
    """A job as the state machine keeps it. Times are those of the Redis server, so that all processes agree."""

    id: str
    kind: JobKind
    queue: str
    status: JobStatus = "queued"
    created_at: datetime = Field(default_factory=_now)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    request: JobRequest
    inputs: InputRef | None = None
    progress: Progress | None = None
    result: JobResult | None = None
    error: JobError | None = None
    attempt: int = 0
    cancel_requested: bool = False
    owner: str | None = None
    queue_position: int | None = None
    """1 is the next, as the queue was when this was read; None unless queued."""


class WorkerInfo(Message):
    """A worker that has loaded a bundle and takes jobs."""

    id: str
    host: str
    pid: int
    bundle: str
    targets: tuple[str, ...]
    device: str
    started_at: datetime
    heartbeat: datetime = Field(default_factory=_now)


def pack_samples(images: Sequence[bytes], labels: Sequence[str]) -> bytes:
    """Put encoded images and their labels into one object."""
    samples = [{"label": label, "size": len(image)} for image, label in zip(images, labels, strict=True)]
    header = json.dumps({"samples": samples}, separators=(",", ":")).encode()
    return b"".join((len(header).to_bytes(8, "little"), header, *images))


def unpack_samples(data: bytes) -> tuple[list[bytes], list[str]]:
    """Undo `pack_samples`. The gateway wrote these bytes and the store verified them: damage is a ValueError."""
    start = 8 + int.from_bytes(data[:8], "little")
    samples: list[dict[str, Any]] = json.loads(data[8:start])["samples"]
    images = []
    for sample in samples:
        images.append(data[start : start + sample["size"]])
        start += sample["size"]
    if start != len(data):
        raise ValueError(f"the samples take {start} bytes, the object has {len(data)}")
    return images, [sample["label"] for sample in samples]
