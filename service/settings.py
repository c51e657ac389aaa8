"""What the gateway is told through its environment, beyond what it shares with the workers."""

from pydantic import Field

from workers.settings import Settings


class GatewaySettings(Settings):
    """`LOOMWEIGHT_…` variables; every limit of the contract stands here or in `workers/settings.py`."""

    max_body_bytes: int = Field(default=20_000_000, ge=1_000, description="Of one request.")
    max_inflight_bytes: int = Field(
        default=80_000_000, ge=1_000, description="Of all requests being served; more are told to come again."
    )
    max_checkpoint_bytes: int = Field(default=100 * 2**20, ge=1_000, description="Of one uploaded checkpoint.")
    max_inflight_checkpoint_bytes: int = Field(
        default=250_000_000, ge=1_000, description="As `max_inflight_bytes`, of uploaded checkpoints: they lie on disk."
    )
    similarity_held_bytes: int = Field(
        default=30_000_000, ge=0, description="Checkpoints that are larger together are compared by a job."
    )
    max_matrix_models: int = Field(default=100, ge=2, description="Of one matrix of similarities.")
    max_wait_s: int = Field(default=60, ge=0, description="The longest that `Prefer: wait=N` holds an answer.")
    max_followers: int = Field(default=500, ge=1, description="Clients that may wait for or follow jobs at once.")
    keepalive_s: float = Field(default=15, gt=0, description="Silence on an event stream until a comment is sent.")
    url_expires_s: int = Field(default=600, ge=1, description="How long a presigned URL works.")

    ready_without_workers: bool = Field(
        default=False,
        description="Be ready while no worker is: where workers scale to zero, it takes a job to start one.",
    )
    queue_ttl_s: int = Field(default=3_600, ge=1, description="How long a job may wait to begin until it expires.")
    input_ttl_s: int = Field(
        default=86_400,
        ge=60,
        description="How long uploads are kept; longer than `queue_ttl_s` and the longest job together.",
    )
    record_ttl_s: int = Field(
        default=30 * 86_400,
        ge=60,
        description="How long the store keeps the records of ended jobs; Redis has `job_ttl_s`.",
    )
    model_ttl_s: int | None = Field(
        default=None, ge=60, description="How long the store keeps models, uploaded ones too. Default: until deleted."
    )
    large_bytes: int = Field(default=4_000_000, ge=1, description="An upload over this goes to the queue `large`,")
    large_steps: int = Field(
        default=2_000,
        ge=1,
        description="and so does a job of more candidates times denoising steps, or refining steps.",
    )
    reaper_interval_s: float = Field(
        default=5, gt=0, description="Between two looks for jobs that nobody takes care of."
    )
