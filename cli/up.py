"""The whole service on one machine: an embedded Valkey, workers and the gateway, under one supervisor.

Every part is a process in a session of its own, so that Ctrl-C reaches only the supervisor, which stops them in order:
the gateway takes no more, the workers end, the broker goes last. What they say goes to `DATA/logs`.
"""

import ctypes
import fcntl
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import httpx

from cli.keys import needs_keys

START_SECONDS = 180.0
STOP_SECONDS = 5.0
SOFT_SHUTDOWN_SECONDS = 2.0
_RESTARTS = 5  # of a worker within a minute, until it is given up
_WORKER = "worker"
_GPU_NODES = ("/dev/nvidiactl", "/dev/dxg")  # dxg: Windows' subsystem for Linux
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MOST_WORKERS = 4  # unless more are asked for: each holds the bundle, half a gigabyte with all around it
_PR_SET_PDEATHSIG = 1
_GIVEN_FIRST = {"LOOMWEIGHT_BOOTSTRAP_KEY", "LOOMWEIGHT_CALLBACK_SECRET"}  # ours only where the environment has none


class StackError(Exception):
    """The service cannot start or go on; the text is one line for a terminal."""


class Stack:
    """The parts of one service, so many workers among them. A context manager: leaving it leaves no process behind."""

    def __init__(self, *, host: str, port: int, data: Path, bundle: Path, workers: int = 1) -> None:
        self.host, self.port, self.data, self.bundle = host, port, data.resolve(), bundle.resolve()
        self._workers = [_WORKER, *(f"{_WORKER}-{number}" for number in range(2, workers + 1))]
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: IO[bytes] | None = None
        self._worker_starts: dict[str, list[float]] = {name: [] for name in self._workers}
        self._environment: dict[str, str] = {}

    @property
    def key_file(self) -> Path | None:
        """Where the key with every scope stands, if the service asks for keys and none was configured."""
        made = self.data / "bootstrap.key"
        return made if made.is_file() and "LOOMWEIGHT_BOOTSTRAP_KEY" not in os.environ else None

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"  # noqa: S104

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start every part and return once `/readyz` says that all are there, workers but the first left out.

        Raises `StackError`.
        """
        if not (self.bundle / "bundle.json").is_file():
            raise StackError(f"{self.bundle} holds no bundle; name one with --bundle DIR, or train it.")
        self._claim_port()
        self._claim_data()
        redis_port = free_port()
        self._environment = self._settings(redis_port)
        self._spawn("redis", "-m", "cli.valkey", str(self.data / "redis"), str(redis_port))
        self._await(lambda: _listens(redis_port), 15)
        self._start_worker(_WORKER)
        self._spawn("gateway", "-m", "cli.main", "serve", "--host", self.host, "--port", str(self.port))
        self._await(self._is_ready, START_SECONDS)
        for name in self._workers[1:]:  # not before: they load the bundle on the cores that the first one loads it on
            self._start_worker(name)

    def watch(self) -> None:
        """Return while all is well; start a worker that ended anew. Raises `StackError` when a part cannot be had."""
        for name, process in self._parts.items():
            if process.poll() is None:
                continue
            if name not in self._workers:
                raise StackError(f"The {name} ended unexpectedly; see {self._log(name)}.")
            self._start_worker(name)
            return

    def stop(self) -> None:
        """Stop every part, the broker last, within seconds; safe to call again."""
        for names in (("gateway", *self._workers), ("redis",)):
            _end([process for name in names if (process := self._parts.pop(name, None))])
        if self._lock:
            self._lock.close()
            self._lock = None

    def _claim_port(self) -> None:
        if self.port == 0:
            self.port = free_port()
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise StackError(f"Port {self.port} on {self.host} cannot be used: {error.strerror}.") from error

    def _claim_data(self) -> None:
        try:
            for folder in ("redis", "store", "logs"):
                (self.data / folder).mkdir(parents=True, exist_ok=True)
            self._lock = (self.data / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"{self.data} is in use by another `loomweight up`.") from error
        except OSError as error:
            raise StackError(f"{self.data} cannot be used: {error.strerror}.") from error

    def _settings(self, redis_port: int) -> dict[str, str]:
        ours = {
            "LOOMWEIGHT_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "LOOMWEIGHT_STORE_URL": str(self.data / "store"),
            "LOOMWEIGHT_BUNDLE_DIR": str(self.bundle),
            "LOOMWEIGHT_SOFT_SHUTDOWN_S": str(SOFT_SHUTDOWN_SECONDS),
            "LOOMWEIGHT_CALLBACK_SECRET": _kept_secret(self.data / "callback.secret"),
        }
        if needs_keys(self.host):
            ours["LOOMWEIGHT_BOOTSTRAP_KEY"] = _kept_secret(self.data / "bootstrap.key")
        ours = {name: os.environ.get(name, value) if name in _GIVEN_FIRST else value for name, value in ours.items()}
        # Idle OpenMP threads sleep instead of spinning: the gateway, the broker and the client share these cores.
        return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **ours}

    def _start_worker(self, name: str) -> None:
        now = time.monotonic()
        starts = [at for at in self._worker_starts[name] if now - at < 60] + [now]
        if len(starts) > _RESTARTS:
            self._give_up(name)
            return
        self._worker_starts[name] = starts
        self._spawn(name, "-m", "cli.main", "worker", **self._share(name))

    def _share(self, name: str) -> dict[str, str]:
        """What one of several workers is told beside the others: its part of the cores, and a port of its own."""
        number, share = self._workers.index(name), {}
        if len(self._workers) > 1 and "LOOMWEIGHT_THREADS" not in os.environ:
            share["LOOMWEIGHT_THREADS"] = str(math.ceil(_cores() / len(self._workers)))
        port = os.environ.get("LOOMWEIGHT_METRICS_PORT", "")
        if number and port.isdecimal():
            share["LOOMWEIGHT_METRICS_PORT"] = str(int(port) + number)
        return share

    def _give_up(self, name: str) -> None:
        """Go on without a worker, as long as there is another. Raises `StackError` if there is none."""
        problem = f"The {name} ends again and again; see {self._log(name)}."
        self._parts.pop(name, None)
        if not any(other in self._parts for other in self._workers):
            raise StackError(problem)
        print(f"loomweight: {problem} The others go on.", file=sys.stderr)

    def _spawn(self, name: str, *arguments: str, **environment: str) -> None:
        with self._log(name).open("ab") as log:
            self._parts[name] = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, *arguments],
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _await(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            for name, process in self._parts.items():
                if process.poll() is not None:
                    raise StackError(f"The {name} does not start; see {self._log(name)}.")
            if time.monotonic() > end:
                raise StackError(f"The service is not ready after {seconds:g} s; see {self.data / 'logs'}.")
            time.sleep(0.1)


def _kept_secret(path: Path) -> str:
    """Return the secret in a file that only its owner can read; made at the first start."""
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text().strip()


def default_workers() -> int:
    """Return how many workers make good use of this machine: jobs share a GPU best from one (docs/decisions/0010)."""
    device = os.environ.get("LOOMWEIGHT_DEVICE", "auto")
    gpu = any(Path(node).exists() for node in _GPU_NODES) if device == "auto" else device != "cpu"
    return 1 if gpu else min(_cores(), _MOST_WORKERS)


def _cores() -> int:
    """Return how many cores this process may use, a container's quota rounded up."""
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # another system, another cgroup version, or "max": no quota
        quota, period = map(int, _QUOTA.read_text().split())
        return min(here, math.ceil(quota / period))
    return here


def free_port() -> int:
    """Return a port on the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM should the supervisor be killed in a way that it cannot handle."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever is left of its session
        process.wait()
