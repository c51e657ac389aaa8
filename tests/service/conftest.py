import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest

from service.settings import GatewaySettings
from tests.servers import S3Server
from tests.service.gateway import Gateway, running, write_bundle

Start = Callable[..., Gateway]


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a gateway with settings of its own; all gateways of a test share Redis and the store."""
    with ExitStack() as stack:

        def _start(**changes: Any) -> Gateway:
            given: dict[str, Any] = {
                "redis_url": redis_url,
                "store_url": str(tmp_path / "store"),
                "bundle_dir": write_bundle(tmp_path / "bundle"),
                "reaper_interval_s": 3_600,
                "require_keys": False,
            }
            return stack.enter_context(running(GatewaySettings(**given | changes)))

        yield _start


@pytest.fixture
def gateway(start: Start) -> Gateway:
    return start()


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> dict[str, Any]:
    """Settings of an empty bucket on a real S3."""
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
    )
    bucket = f"gateway-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    client.close()
    return {
        "store_url": f"s3://{bucket}/prefix",
        "s3_endpoint_url": s3_server.endpoint,
        "s3_region": "us-east-1",
        "s3_access_key": s3_server.access_key,
        "s3_secret_key": s3_server.secret_key,
    }
