"""Datasets in buckets of others, from a real S3: read within limits, and left as they are."""

import uuid
from collections.abc import Iterator

import boto3
import pytest
from pydantic import SecretStr

from model_store.models import ModelRepository
from tests.servers import S3Server
from tests.workers import uploads
from tests.workers.standin import StandIn
from workers.generate import generate
from workers.jobs import Jobs
from workers.limits import InputTooLarge, UnusableSamples
from workers.messages import GENERATE_QUEUE, GenerateRequest, InputRef, JobRecord
from workers.remote import fetch
from workers.runtime import Runtime
from workers.worker_settings import WorkerSettings

ZIP = uploads.zipped(uploads.folder())


@pytest.fixture
def there(s3_server: S3Server, settings: WorkerSettings) -> Iterator[WorkerSettings]:
    """Settings that allow a bucket, which holds `pets.zip`."""
    secret = {"aws_access_key_id": s3_server.access_key, "aws_secret_access_key": s3_server.secret_key}
    client = boto3.client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1", **secret)
    bucket = f"pets-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="a/pets.zip", Body=ZIP)
    yield settings.model_copy(
        update={
            "dataset_buckets": (bucket,),
            "s3_endpoint_url": s3_server.endpoint,
            "s3_region": "us-east-1",
            "s3_access_key": SecretStr(s3_server.access_key),
            "s3_secret_key": SecretStr(s3_server.secret_key),
        }
    )
    client.close()


def test_a_dataset_is_fetched_within_limits(there: WorkerSettings) -> None:
    [bucket] = there.dataset_buckets
    assert fetch(f"s3://{bucket}/a/pets.zip", there) == ZIP
    with pytest.raises(UnusableSamples, match="nothing at"):
        fetch(f"s3://{bucket}/a/none.zip", there)
    with pytest.raises(UnusableSamples, match="cannot be read from the bucket 'other'"):
        fetch("s3://other/a/pets.zip", there)
    with pytest.raises(InputTooLarge, match="the limit is 10 bytes"):
        fetch(f"s3://{bucket}/a/pets.zip", there.model_copy(update={"max_dataset_bytes": 10}))
    with pytest.raises(UnusableSamples, match="may not read"):
        fetch(f"s3://{bucket}/a/pets.zip", there.model_copy(update={"s3_secret_key": SecretStr("wrong" * 8)}))


def test_a_job_reads_it_and_leaves_it_there(there: WorkerSettings, generator: StandIn, runtime: Runtime) -> None:
    uri = f"s3://{there.dataset_buckets[0]}/a/pets.zip"
    jobs: Jobs = runtime.jobs
    inputs = InputRef(kind="uri", key=uri, size=0, sha256="", content_type="text/uri-list")
    jobs.create(JobRecord(id="j-1", kind="generate", queue=GENERATE_QUEUE, request=GenerateRequest(), inputs=inputs))
    mine = Runtime(there, "worker-1", "cpu", generator, jobs, ModelRepository(runtime.models.store), runtime.registry)
    assert generate("j-1", mine) == "succeeded"
    result = jobs.get("j-1").result
    assert result
    assert result.classes == ("cat", "dog")
    assert fetch(uri, there) == ZIP
