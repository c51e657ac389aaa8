"""A gateway on a real port, with what a test needs around it."""

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from model_store.models import ModelRepository
from model_store.records import Artifact, Lineage, Measured, ModelCard, TensorInfo
from model_store.store import ObjectStore
from service.app import create_app
from service.settings import GatewaySettings
from service.state import Services
from tests.jobs.samples import RESULT
from workers import filing
from workers.jobs import Jobs
from workers.messages import WorkerInfo

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
JPEG, WEBP = b"\xff\xd8\xff\xe0rest", b"RIFF\x10\x00\x00\x00WEBPrest"
ZIP, PARQUET = b"PK\x03\x04rest", b"PAR1rest"

MANIFEST: dict[str, Any] = {
    "id": "starter-0123456789ab",
    "version": 1,
    "targets": [
        {
            "id": "mlp",
            "architecture": "MLP 784-64-k",
            "parameters": 50_890,
            "input_size": [1, 28, 28],
            "conditions": ["images"],
            "min_classes": 2,
            "max_classes": 10,
            "expected": {"holdout_accuracy": 0.8},
            "limits": "small grey images",
        },
        {"id": "cnn-s", "architecture": "small CNN", "parameters": 2_464, "max_classes": 4},
    ],
    "default_target": "cnn-s",
    "card": {"licence": "Apache-2.0", "trained_on": ["glyphs"]},
    "files": {"denoiser.safetensors": "0" * 64},
    "defaults": {"steps": 30, "guidance": 2.0, "temperature": 1.0},
    "something_for_workers": {},
}


@dataclass(frozen=True)
class Gateway:
    """What runs, and the other end of it: `jobs` and `store` as a worker sees them."""

    url: str
    client: httpx.Client
    services: Services

    @property
    def jobs(self) -> Jobs:
        return self.services.jobs

    @property
    def store(self) -> ObjectStore:
        return self.services.store

    def post(self, count: int = 4, classes: int = 2, **extra: Any) -> httpx.Response:
        """POST so many samples, as a multipart form."""
        options = extra.pop("options", {})
        return self.client.post("/generate", **samples_form(count, classes, **options), **extra)

    def uploaded(self, job_id: str) -> bytes:
        """What a worker finds, wherever it lies."""
        inputs = self.jobs.get(job_id).inputs
        assert inputs
        return filing.upload(self.jobs, self.store, job_id, inputs)

    def finish(self, job_id: str) -> None:
        """Do a worker's part."""
        token = self.jobs.claim(job_id, "test-worker", 30)
        assert token
        self.jobs.progress(job_id, token, "sample", 1, 2)
        self.jobs.finish(job_id, token, RESULT)

    @contextmanager
    def working(self, delay_s: float = 0.1) -> Iterator[None]:
        """Do every job that arrives, each after a while."""
        done = threading.Event()

        def work() -> None:
            while not done.wait(delay_s):
                for job in self.jobs.page("queued").jobs:
                    self.finish(job.id)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def samples_form(count: int = 4, classes: int = 2, **options: str) -> dict[str, Any]:
    """What httpx needs to send so many samples."""
    return {
        "files": [("samples", (f"{n}.png", PNG, "image/png")) for n in range(count)],
        "data": {"labels": [f"class {n % classes}" for n in range(count)], **options},
    }


def samples_json(count: int = 4, classes: int = 2, **options: object) -> dict[str, Any]:
    """The JSON body of so many samples."""
    image = base64.b64encode(PNG).decode()
    return {"samples": [{"label": f"class {n % classes}", "image": image} for n in range(count)], **options}


def write_bundle(folder: Path, **changes: Any) -> Path:
    """Write a manifest."""
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(MANIFEST | changes))
    return folder


def a_worker(name: str = "worker-1") -> WorkerInfo:
    """A worker that lives."""
    return WorkerInfo(
        id=name, host="h", pid=1, bundle=MANIFEST["id"], targets=("mlp",), device="cpu", started_at=datetime.now(UTC)
    )


def save_model(
    models: ModelRepository,
    name: str = "m-1",
    *,
    onnx: bytes | None = b"onnx bytes",
    target: str = "mlp",
    owner: str | None = None,
) -> tuple[ModelCard, bytes]:
    """Store a model; returns its card and weights."""
    weights = bytes(range(256)) * 40 + name.encode()
    card = ModelCard(
        id=name,
        target=target,
        classes=("cat", "dog"),
        origin="mean",
        seed=7,
        bundle=MANIFEST["id"],
        sha256=hashlib.sha256(weights).hexdigest(),
        size=len(weights),
        tensors=(TensorInfo(name="head.weight", dtype="F32", shape=(2, 64)),),
        measured=Measured(holdout_accuracy=0.9, ranked_on="cross-validation", n_holdout=10),
        lineage=Lineage(job_id="job-1", rank=0),
        licence="Apache-2.0",
        created_at=datetime.now(UTC),
        onnx=Artifact(sha256=hashlib.sha256(onnx).hexdigest(), size=len(onnx)) if onnx else None,
        owner=owner,
    )
    return models.save(card, weights, onnx), weights


@contextmanager
def running(settings: GatewaySettings) -> Iterator[Gateway]:
    """Serve on a free port until the block ends."""
    app = create_app(settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            with httpx.Client(base_url=url, timeout=10) as client:
                yield Gateway(url, client, app.state.services)
        finally:
            server.should_exit = True
            thread.join()
