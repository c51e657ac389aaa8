from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from model_store.local import LocalStore
from model_store.s3 import S3Store
from model_store.store import ObjectStore
from tests.servers import S3Server

BUCKET = "tests"


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Store]:
    """A folder of its own in a bucket of the real server."""
    store = S3Store(BUCKET, prefix=f"run/{uuid4().hex}", **s3_server.settings)
    store.ensure_bucket()
    yield store
    store.close()


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each backend in turn."""
    found: ObjectStore = request.getfixturevalue(request.param)
    return found
