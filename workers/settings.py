"""What every process of the service is told through its environment, as `LOOMWEIGHT_…`; the gateway adds its own.

Secrets have no defaults. Without S3 credentials here, botocore's own chain (instance roles, profiles) finds them.
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from model_store.store import ObjectStore, open_store
from workers.jobs import Jobs
from workers.logs import Format
from workers.registry import Registry


class Settings(BaseSettings):
    """Shared by gateway and workers: where the others are, and the figures they must agree on."""

    model_config = SettingsConfigDict(env_prefix="LOOMWEIGHT_", frozen=True)

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="Broker and job records; may hold a password."
    )
    redis_prefix: str = Field(default="loomweight:", description="What the keys of our own records start with.")
    store_url: str = Field(default="data/store", description="A directory, file:///directory or s3://bucket/prefix.")
    s3_endpoint_url: str | None = Field(default=None, description="For S3 other than Amazon's.")
    s3_public_endpoint_url: str | None = Field(
        default=None, description="The same store as clients reach it: URLs name it."
    )
    s3_region: str | None = None
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    bundle_dir: Path = Field(
        default=Path("bundles/starter"), description="The bundle to serve: bundle.json and its files."
    )

    visibility_timeout_s: int = Field(
        default=3_600,
        ge=60,
        description="Until the broker delivers an unfinished message again. Longer than the longest job, and the same "
        "in every process on the broker: the shortest wins.",
    )
    lease_s: int = Field(default=30, ge=1, description="Until a job whose worker falls silent goes to another.")
    worker_ttl_s: int = Field(
        default=8,
        ge=1,
        description="Until a worker that falls silent counts as gone; it speaks up three times as often.",
    )
    max_attempts: int = Field(default=3, ge=1, description="Claims of a job until it is given up.")
    job_ttl_s: int = Field(
        default=86_400, ge=60, description="How long ended jobs and idempotency keys are remembered."
    )
    max_queued: int = Field(
        default=1_000, ge=1, description="Jobs that may wait in a queue before more are turned away."
    )

    log_format: Format = Field(default="text", description="`text`, or `json`: one object a line.")
    traces_endpoint: str | None = Field(
        default=None, description="An OTLP collector, `http://host:4318/v1/traces`; needs `loomweight[tracing]`."
    )

    max_samples: int = Field(default=2_000, ge=2)
    max_classes: int = Field(default=200, ge=2)
    max_label_length: int = Field(default=200, ge=1)

    dataset_buckets: tuple[str, ...] = Field(
        default=(),
        description="Buckets that `dataset_uri` may name; whoever may create jobs can train on everything in them.",
    )
    max_dataset_bytes: int = Field(default=100_000_000, ge=1, description="Of a file that `dataset_uri` names.")

    def open_store(self) -> ObjectStore:
        """Open the store. Raises what `model_store.store.open_store` raises."""
        return self._open(self.store_url)

    def open_bucket(self, bucket: str) -> ObjectStore:
        """Open a bucket of `dataset_buckets`, with the store's endpoint and credentials."""
        return self._open(f"s3://{bucket}")

    def _open(self, url: str) -> ObjectStore:
        if not url.startswith("s3://"):
            return open_store(url)
        return open_store(
            url,
            endpoint_url=self.s3_endpoint_url,
            public_endpoint_url=self.s3_public_endpoint_url,
            region=self.s3_region,
            access_key=self.s3_access_key.get_secret_value() if self.s3_access_key else None,
            secret_key=self.s3_secret_key.get_secret_value() if self.s3_secret_key else None,
        )

    def open_redis(self) -> Redis:
        """Open the Redis that holds the job records; nothing is contacted yet."""
        # redis-py's own patience is many seconds, and a request waits for it.
        retry = Retry(ExponentialBackoff(cap=0.4, base=0.05), retries=3)
        return Redis.from_url(self.redis_url, decode_responses=True, health_check_interval=30, retry=retry)

    def open_jobs(self, redis: Redis) -> Jobs:
        """Make the state machine as every process must see it."""
        return Jobs(
            redis,
            prefix=self.redis_prefix,
            ttl=self.job_ttl_s,
            max_attempts=self.max_attempts,
            max_queued=self.max_queued,
        )

    def open_registry(self, redis: Redis) -> Registry:
        """Make the registry of workers."""
        return Registry(redis, prefix=self.redis_prefix)
