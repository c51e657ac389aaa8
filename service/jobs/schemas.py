"""A job as clients see it."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from workers.messages import (
    GenerateResult,
    JobError,
    JobKind,
    JobRecord,
    JobRequest,
    JobResult,
    JobStatus,
    MatrixResult,
    NeighboursResult,
    Progress,
    SimilarityResult,
    StoredModel,
)


class JobLinks(BaseModel):
    """Where to go from a job."""

    self: str
    events: str
    cancel: str


class ModelLinks(BaseModel):
    """Where to go from a model."""

    card: str
    weights: str
    onnx: str

    @classmethod
    def of(cls, model_id: str) -> Self:
        """Return the links of a model."""
        return cls(card=f"/models/{model_id}", weights=f"/models/{model_id}/weights", onnx=f"/models/{model_id}/onnx")


class ResultModel(StoredModel):
    """One of the models that a generation stored, best first."""

    links: ModelLinks


class Result(GenerateResult):
    """What a successful generation made."""

    models: tuple[ResultModel, ...]


class Job(BaseModel):
    """A job. A terminal status (`succeeded`, `failed`, `canceled`, `expired`) never changes."""

    id: str
    kind: JobKind
    status: JobStatus
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queue_position: int | None = Field(description="1 is the next; null unless queued.")
    progress: Progress | None = Field(description="The last step that a worker reported.")
    request: JobRequest = Field(description="The options, those filled in by the service included.")
    result: Result | SimilarityResult | MatrixResult | NeighboursResult | None
    error: JobError | None = Field(description="Why it failed or expired: an RFC 9457 problem.")
    attempt: int = Field(description="Which worker in turn has it; above 1 after one was lost.")
    links: JobLinks

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        """Show a record to clients."""
        here = f"/jobs/{record.id}"
        return cls(
            **{name: getattr(record, name) for name in _SHARED},
            result=_linked(record.result) if record.result else None,
            links=JobLinks(self=here, events=f"{here}/events", cancel=f"{here}/cancel"),
        )


_SHARED = (
    *("id", "kind", "status", "created_at", "started_at", "finished_at", "queue_position", "progress", "request"),
    *("error", "attempt"),
)


def _linked(result: JobResult) -> Result | SimilarityResult | MatrixResult | NeighboursResult:
    if not isinstance(result, GenerateResult):
        return result
    models = [ResultModel(**dict(model), links=ModelLinks.of(model.id)) for model in result.models]
    return Result(**dict(result) | {"models": tuple(models)})


class JobList(BaseModel):
    """Some jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None = Field(description="Give this as `cursor` to get the next page; null on the last one.")
