"""Real servers for the tests, each started at most once a session and only if a test asks for it."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from model_store import S3Settings


@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS server on loopback: a real S3, with signatures checked. `pid` is the server's process."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int

    @property
    def settings(self) -> S3Settings:
        """What `open_store("s3://…", **settings)` needs."""
        return S3Settings(endpoint_url=self.endpoint, access_key=self.access_key, secret_key=self.secret_key)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("weed")
    process = None
    try:
        for _ in range(3):  # another process may take a port between the look and the start
            process, server = _start(folder)
            if _ready(process, server):
                break
            _stop(process)
        else:
            pytest.fail(f"weed does not start:\n{(folder / 'log').read_text()[-3000:]}")
        yield server
    finally:
        if process:
            _stop(process)


def free_ports(count: int) -> list[int]:
    """Ports that are free together with their neighbours 10,000 above, which weed takes too.

    All lie below the range that the kernel hands out to outgoing connections.
    """
    with ExitStack() as held:
        found: list[int] = []
        for port in random.sample(range(11_000, 22_000), 500):
            try:
                for number in (port, port + 10_000):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no free ports")


def _start(folder: Path, ports: Sequence[int] = ()) -> tuple[subprocess.Popen[bytes], S3Server]:
    s3, master, volume, filer, admin = ports or free_ports(5)
    access, secret = "test-access", "test-secret-of-the-loopback-server"
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": folder / "s3.json",
        "s3.port": s3,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "master.port": master,
        "master.telemetry": "false",
        "volume.port": volume,
        "filer.port": filer,
        "admin.port": admin,
        "admin.ui": "false",
        "webdav": "false",
    }
    weed = Path(sys.executable).with_name("weed")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "mini", *(f"-{name}={value}" for name, value in options.items())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return process, S3Server(f"http://127.0.0.1:{s3}", access, secret, process.pid)


def _ready(process: subprocess.Popen[bytes], server: S3Server, patience: float = 30) -> bool:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    try:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and process.poll() is None:
            # The gateway answers before the volumes take data: only a write that works counts.
            with suppress(BotoCoreError, ClientError):
                with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return True
            time.sleep(0.1)
        return False
    finally:
        client.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)  # a test may have frozen it
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
