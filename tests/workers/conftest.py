from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

import workers.artifacts
from model_store.keys import job_input
from model_store.local import LocalStore
from model_store.models import ModelRepository
from tests.workers import standin, uploads
from workers.messages import GENERATE_QUEUE, GenerateRequest, InputRef, JobRecord, pack_samples
from workers.runtime import Runtime
from workers.worker_settings import WorkerSettings


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(
        redis_url=redis_url, store_url=str(tmp_path / "store"), lease_s=2, outage_s=1, bundle_dir=tmp_path / "bundle"
    )


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> standin.StandIn:
    monkeypatch.setattr(workers.artifacts, "to_onnx", standin.to_onnx)
    return standin.StandIn()


@pytest.fixture
def runtime(settings: WorkerSettings, generator: standin.StandIn, redis: Redis) -> Iterator[Runtime]:
    store = LocalStore(Path(settings.store_url))
    jobs, registry = settings.open_jobs(redis), settings.open_registry(redis)
    yield Runtime(settings, "worker-1", "cpu", generator, jobs, ModelRepository(store), registry)
    store.close()


SAMPLES = pack_samples([uploads.encoded(uploads.pixels(seed)) for seed in range(4)], ["cat", "cat", "dog", "dog"])


@pytest.fixture
def submit(runtime: Runtime) -> Callable[..., str]:
    """Does what the gateway does with a request: stores the upload, then records the job."""

    def do(data: bytes | None = SAMPLES, kind: str = "samples", **options: Any) -> str:
        job_id, inputs = uuid4().hex, None
        if data is not None:
            info = runtime.models.store.put(job_input(job_id, "upload"), data, content_type="application/octet-stream")
            inputs = InputRef(
                kind=kind, key=info.key, size=info.size, sha256=info.sha256 or "", content_type=info.content_type
            )
        request = GenerateRequest(**options)
        runtime.jobs.create(JobRecord(id=job_id, kind="generate", queue=GENERATE_QUEUE, request=request, inputs=inputs))
        return job_id

    return do
