"""The same gateway and worker as separate processes, with a broker and an S3 store named by the environment."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load

from cli.client import LoomweightClient
from model_store import open_store
from tests.servers import S3Server, free_ports
from tests.workers import uploads

BUCKET = "e2e"


@pytest.fixture
def address(tmp_path: Path, tiny_bundle: Path, redis_url: str, s3_server: S3Server) -> Iterator[str]:
    store = open_store(f"s3://{BUCKET}/pets", **s3_server.settings)
    store.ensure_bucket()  # type: ignore[attr-defined]
    store.close()
    port = free_ports(1)[0]
    environment = {
        **os.environ,
        "LOOMWEIGHT_REDIS_URL": redis_url,
        "LOOMWEIGHT_STORE_URL": f"s3://{BUCKET}/pets",
        "LOOMWEIGHT_S3_ENDPOINT_URL": s3_server.endpoint,
        "LOOMWEIGHT_S3_ACCESS_KEY": s3_server.access_key,
        "LOOMWEIGHT_S3_SECRET_KEY": s3_server.secret_key,
        "LOOMWEIGHT_BUNDLE_DIR": str(tiny_bundle),
        "LOOMWEIGHT_THREADS": "1",
        "LOOMWEIGHT_SOFT_SHUTDOWN_S": "1",
    }
    with ExitStack() as stack:
        for arguments in (["worker"], ["serve", "--port", str(port)]):
            log = stack.enter_context((tmp_path / f"{arguments[0]}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments], env=environment, stdout=log, stderr=log
            )
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        _await_ready(f"http://127.0.0.1:{port}", tmp_path)
        yield f"http://127.0.0.1:{port}"


def _await_ready(url: str, logs: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("\n".join(path.read_text() for path in logs.glob("*.log")))


def test_weights_go_through_s3_and_come_back_by_a_presigned_address(address: str, tmp_path: Path) -> None:
    # Given a service whose store is S3
    pets = uploads.zipped(uploads.folder(("bee", "cat", "dog"), each=6))
    with LoomweightClient(address) as client:
        # When weights are generated
        job = client.wait(client.generate_dataset("pets.zip", pets, {"target": "cnn-s", "seed": 5}), timeout=60)
        model = job["result"]["models"][0]["id"]
        # Then the gateway hands out an address in the store, and the file there is what the card declares
        answer = httpx.get(f"{address}/models/{model}/weights", follow_redirects=False)
        assert answer.status_code == httpx.codes.TEMPORARY_REDIRECT
        assert f"/{BUCKET}/pets/" in answer.headers["location"]
        client.download(model, tmp_path / "model.safetensors")
    assert load((tmp_path / "model.safetensors").read_bytes())["head.weight"].shape == (3, 20)
