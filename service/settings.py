"""What the gateway is told through its environment, beyond what it shares with the workers."""

from ipaddress import IPv4Network, IPv6Network

from pydantic import Field, SecretStr

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
    max_followers: int = Field(default=500, ge=1, description="Clients that may follow event streams at once.")
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
    inline_bytes: int = Field(
        default=262_144,
        ge=0,
        description="Uploads up to this stay in Redis, with the job's record and until it ends; larger ones go to the "
        "store. Times `max_queued`, that is memory Redis must have.",
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

    require_keys: bool = Field(
        default=True,
        description="Whether requests need an API key. `loomweight serve` and `up` turn it off where they listen on "
        "the loopback address alone, unless this is set.",
    )
    open_to_network_without_keys: bool = Field(
        default=False,
        description="Serve a network without keys: whoever reaches the service may do everything. Without this, "
        "`require_keys` can only be turned off on the loopback address.",
    )
    bootstrap_key: SecretStr | None = Field(
        default=None, min_length=32, description="A key with every scope, besides those in the store."
    )
    metrics_key: SecretStr | None = Field(
        default=None, min_length=32, description="A key that opens /metrics and nothing else, for Prometheus."
    )
    open_metrics: bool = Field(default=False, description="Give /metrics to whoever asks.")
    key_cache_s: float = Field(default=5, ge=0, description="How long a revoked key may go on working.")
    requests_per_minute: int = Field(default=600, ge=1, description="Of a key that has no figure of its own.")
    jobs_per_day: int | None = Field(default=None, ge=1, description="Of a key that has no figure of its own.")
    active_jobs: int | None = Field(
        default=200, ge=1, description="Jobs of an owner that may wait or run at once, by a key without its own figure."
    )
    wrong_keys_per_minute: int = Field(
        default=60, ge=1, description="Keys that are none, from one address, until it is told to wait."
    )

    callback_secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="What the keys' webhook secrets are derived from. Without it, `callback_url` is refused.",
    )
    callback_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description='Internal networks that webhooks may go to, over plain HTTP too: `["10.1.0.0/16"]`.'
    )
    callback_hosts: tuple[str, ...] = Field(
        default=(),
        description="If any are named, webhooks go to these hosts alone; `.example.com` stands for all below it.",
    )
    callback_interval_s: float = Field(default=1, gt=0, description="Between two looks for webhooks that are due.")
    callback_retries_s: tuple[float, ...] = Field(
        default=(5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="Pauses after attempts that failed, a fifth more or less; after the last one it is given up.",
    )
