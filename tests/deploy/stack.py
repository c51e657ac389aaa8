"""The service as docker-compose.yml has it, as processes: a persistent Redis, an S3, a gateway and a worker."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from unittest import mock

from tests.servers import S3Server, _ready, _start, _stop, free_ports

READY_S = 600  # a loaded machine takes its time over torch
KEY = "key-of-a-stack-on-the-loopback-address-alone"


class DeployedStack:
    """A context manager; `stop` and `start` take single parts down and up again, their data kept."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.bundle = folder, bundle
        self.redis_port, self.gateway_port, self.metrics_port = free_ports(3)
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()
        self.s3: S3Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def redis_folder(self) -> Path:
        return self.folder / "redis"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_WAIT_POLICY": "PASSIVE",
            "LOOMWEIGHT_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "LOOMWEIGHT_STORE_URL": "s3://loomweight/production",
            "LOOMWEIGHT_S3_ENDPOINT_URL": self.s3.endpoint,
            "LOOMWEIGHT_S3_PUBLIC_ENDPOINT_URL": self.s3.endpoint.replace("127.0.0.1", "localhost"),
            "LOOMWEIGHT_S3_REGION": "us-east-1",
            "LOOMWEIGHT_S3_ACCESS_KEY": self.s3.access_key,
            "LOOMWEIGHT_S3_SECRET_KEY": self.s3.secret_key,
            "LOOMWEIGHT_BUNDLE_DIR": str(self.bundle),
            "LOOMWEIGHT_METRICS_PORT": str(self.metrics_port),
            "LOOMWEIGHT_SOFT_SHUTDOWN_S": "5",
            "LOOMWEIGHT_REQUIRE_KEYS": "true",
            "LOOMWEIGHT_BOOTSTRAP_KEY": KEY,
            "LOOMWEIGHT_CALLBACK_SECRET": KEY[::-1],
            "LOOMWEIGHT_REQUESTS_PER_MINUTE": "100000",  # its one key stands for many clients
            "LOOMWEIGHT_OPEN_METRICS": "true",
        }

    def __enter__(self) -> Self:
        self._stack.__enter__()
        self._stack.enter_context(mock.patch.dict(os.environ, LOOMWEIGHT_TOKEN=KEY))  # what smoke.py asks with
        self._stack.callback(self.stop, "redis")
        self.start_s3()
        self.start_redis()
        self.start_service()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("worker", "gateway")
        self._stack.close()
        self.stop_s3()

    def start_s3(self) -> None:
        folder = self.folder / "s3"
        folder.mkdir(parents=True, exist_ok=True)
        self._s3_process, self.s3 = _start(folder)
        if not _ready(self._s3_process, self.s3, READY_S):
            raise RuntimeError((folder / "log").read_text()[-2000:])
        self.loomweight("store", "init")

    def stop_s3(self) -> None:
        _stop(self._s3_process)

    def start_redis(self) -> None:
        self.redis_folder.mkdir(parents=True, exist_ok=True)
        self._spawn("redis", "-m", "cli.valkey", str(self.redis_folder), str(self.redis_port))

    def start_service(self) -> None:
        self._spawn("gateway", "-m", "cli.main", "serve", "--port", str(self.gateway_port))
        self._spawn("worker", "-m", "cli.main", "worker")
        wait_for(lambda: answers(f"{self.url}/readyz") and answers(f"http://127.0.0.1:{self.metrics_port}/metrics"))

    def stop(self, *names: str) -> None:
        for name in names:
            if process := self._parts.pop(name, None):
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def loomweight(self, *arguments: str) -> str:
        """Run the command as an operator would."""
        command = [sys.executable, "-m", "cli.main", *arguments]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._parts[name] = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = READY_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.5)
