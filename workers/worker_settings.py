"""What only workers are told through their environment."""

from typing import Self

from pydantic import Field, model_validator

from workers.limits import Limits
from workers.messages import QUEUES
from workers.settings import Settings


class WorkerSettings(Settings):
    """The settings of one worker process, beside those it shares with the gateway."""

    device: str = Field(default="auto", description="`cpu`, `cuda`, `cuda:1`, …; `auto` takes a GPU if there is one.")
    backend: str = Field(default="auto", description="How the generator runs its networks; `auto` lets it choose.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch. Default: all cores.")
    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="Serve Prometheus metrics here. Default: not."
    )

    queues: tuple[str, ...] = Field(
        default=QUEUES,
        description="Which queues this worker serves, as JSON. Every queue needs a worker.",
    )
    startup_s: float = Field(default=180, gt=0, description="Loading a bundle and warming up may take this long.")
    job_limit_s: int = Field(
        default=900, ge=1, description="A job that runs longer is stopped and fails; one that does not stop is killed."
    )
    batch_jobs: int | None = Field(
        default=None,
        ge=1,
        description="Jobs that wait together run together, so many at most; 1: each alone. Default: two a CPU thread "
        "and 4 at most, 16 on a GPU.",
    )
    batch_wait_s: float | None = Field(
        default=None,
        ge=0,
        description="How long jobs of a batch wait for each other before encoder and denoiser, to pass them as one. "
        "Default: not at all on a CPU, 0.05 on a GPU.",
    )
    batch_s: float = Field(
        default=5, ge=0, description="As long as a batch is not older, jobs that come take the places of those done."
    )
    soft_shutdown_s: float = Field(
        default=30,
        ge=0,
        description="On SIGTERM a running job has this long to end; then its lease runs out and it moves on.",
    )
    outage_s: float = Field(
        default=60, ge=0, description="How long a job waits for a store or Redis that does not answer."
    )
    starved_s: float = Field(
        default=60,
        gt=0,
        description="An idle worker that receives nothing for this long while messages wait is restarted.",
    )

    neighbours_searched: int = Field(
        default=2_000, ge=1, description="Stored models, the newest first, that a search for neighbours looks at."
    )
    neighbours_embedded: int = Field(
        default=100, ge=0, description="Of these, how many one search embeds that no job embedded before."
    )

    max_image_megapixels: float = Field(default=40, gt=0)
    max_unpacked_bytes: int = Field(default=512 * 2**20, ge=1)
    max_archive_entries: int = Field(default=10_000, ge=1)
    max_reading_s: float = Field(default=60, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.job_limit_s >= self.visibility_timeout_s:
            raise ValueError(
                "job_limit_s must be below visibility_timeout_s: the broker would deliver running jobs again"
            )
        if unknown := set(self.queues) - set(QUEUES):
            raise ValueError(f"there are the queues {', '.join(QUEUES)}, not {', '.join(sorted(unknown))}")
        return self

    def limits(self) -> Limits:
        """Return what an upload may cost to read."""
        return Limits(
            samples=self.max_samples,
            classes=self.max_classes,
            label_length=self.max_label_length,
            image_pixels=int(self.max_image_megapixels * 1e6),
            archive_entries=self.max_archive_entries,
            unpacked_bytes=self.max_unpacked_bytes,
            seconds=self.max_reading_s,
        )
