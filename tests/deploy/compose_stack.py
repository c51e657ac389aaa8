"""Starts docker-compose.yml with the real Compose, without a container engine: `make compose-check`, as root.

Podman answers Compose, and the containers share the machine's network: compose.host.yml says what that changes, and
standins.Dockerfile what stands for the images that would be pulled. Images of ours are those of images.sh.

up          every service healthy, `make smoke` with the bootstrap key, a key made by an operator, a large upload
watched     Prometheus finds gateway and worker by name, and has loaded every rule and alert
restarted   Redis and worker: jobs are remembered, the next one is done
restored    backed up, all volumes removed, and restored, by the commands of docs/deployment.md
"""

import argparse
import hashlib
import http.client
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from unittest import mock

import yaml

from benchmarks import results
from service.settings import GatewaySettings
from tests.deploy import smoke
from tests.deploy.stack import wait_for

ROOT = Path(__file__).parents[2]
TARGETS = {"gateway": "up", "prometheus": "up", "worker": "up"}
EXPECTED: dict[str, dict[str, Any]] = {
    "presigned": {"without_a_key": 401, "of_the_store": True, "fetched": 200, "changed": 403},
    "upload": {"kept": True},
    "prometheus": {"targets": TARGETS, "all_of_them": True, "unhealthy": []},
    "restarted": {"remembered": True, "next_job": "succeeded"},
    "restored": {"remembered": True, "next_job": "succeeded"},
}
GATEWAY, PROMETHEUS, S3 = "http://localhost:8000", "http://localhost:9090", "http://localhost:8333"
PORTS = (53, 6379, 8000, 8333, 9090, 9100)
# Shared network, and limits as a machine has them; cgroups are left to the machine.
CONTAINERS = """
[containers]
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""


class ComposeStack:
    """The stack of docker-compose.yml; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("REDIS_PASSWORD", "BOOTSTRAP_KEY", "CALLBACK_SECRET", "S3_SECRET_KEY", "GRAFANA_PASSWORD")
        self.settings = {name: secrets.token_hex(24) for name in names} | {
            "IMAGE_PREFIX": "localhost/loomweight",
            "REDIS_IMAGE": "localhost/loomweight/valkey:0.1.0",
            "S3_IMAGE": "localhost/loomweight/seaweedfs:0.1.0",
            "PROMETHEUS_IMAGE": "localhost/loomweight/prometheus:0.1.0",
        }
        self._stack, self._over = ExitStack(), threading.Event()

    def __enter__(self) -> Self:
        door, containers, env = (self.folder / name for name in ("podman.sock", "containers.conf", "env"))
        containers.write_text(CONTAINERS)
        template = [line for line in (ROOT / ".env.example").read_text().splitlines() if not line.endswith("=")]
        env.write_text("\n".join(template + [f"{name}={value}" for name, value in self.settings.items()]))
        self._stack.enter_context(
            mock.patch.dict(
                os.environ,
                CONTAINERS_CONF=str(containers),
                # Where images.sh builds.
                CONTAINERS_STORAGE_CONF=os.environ.get("WORK", "/var/tmp/loomweight-images") + "/storage.conf",
                DOCKER_HOST=f"unix://{door}",
                COMPOSE_FILE="docker-compose.yml:tests/deploy/compose.host.yml",
                COMPOSE_ENV_FILES=str(env),
                LOOMWEIGHT_TOKEN=self.settings["BOOTSTRAP_KEY"],
            )
        )
        with (self.folder / "podman.log").open("wb") as log:
            podman = subprocess.Popen(
                ["podman", "system", "service", "--time", "0", f"unix://{door}"], stdout=log, stderr=log
            )
        self._stack.callback(podman.wait)
        self._stack.callback(podman.terminate)
        wait_for(door.exists, 30)
        self.compose("down", "--volumes")
        self._stack.callback(self.compose, "down", "--volumes")
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        self._stack.callback(watcher.join)
        self._stack.callback(self._over.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def up(self, *services: str) -> float:
        """Start, and wait until every service is healthy; returns the seconds it took."""
        start = time.perf_counter()
        try:
            self.compose("up", "--detach", "--no-build", "--wait", *services)
        except subprocess.CalledProcessError:
            print(self.compose("logs", "--tail", "30"))
            raise
        return round(time.perf_counter() - start, 1)

    def compose(self, *arguments: str) -> str:
        return _run(str(Path(sys.executable).with_name("docker-compose")), *arguments)

    def _watch(self) -> None:
        """Run the health checks, which podman leaves to systemd."""
        while not self._over.wait(4):
            names = subprocess.run(
                ["podman", "ps", "--format", "{{.Names}}"], check=False, capture_output=True, text=True
            )
            for name in names.stdout.split():
                subprocess.run(["podman", "healthcheck", "run", name], check=False, capture_output=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        done.check_returncode()
    return done.stdout


def status(url: str, token: str = "") -> tuple[int, str]:
    """Status and Location of an answer; nothing is followed."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
    answer = connection.getresponse()
    connection.close()
    return answer.status, answer.getheader("location", "")


def presigned(model: str) -> dict[str, Any]:
    """Whether the address of a model's weights is the store's, good without a key, and bad once it is changed."""
    weights = f"{GATEWAY}/models/{model}/weights"
    _, address = status(weights, os.environ["LOOMWEIGHT_TOKEN"])
    changed = address[:-1] + ("0" if address[-1] != "0" else "1")
    return {
        "without_a_key": status(weights)[0],
        "of_the_store": address.startswith(S3),
        "fetched": status(address)[0],
        "changed": status(changed)[0],
    }


def upload(size: int) -> dict[str, Any]:
    """Send a checkpoint of so many bytes; it passes through the gateway's /tmp."""
    header = json.dumps({"zeros": {"dtype": "U8", "shape": [size - 200], "data_offsets": [0, size - 200]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(size - 200)
    head = b'--part\r\nContent-Disposition: form-data; name="weights"; filename="zeros.safetensors"\r\n\r\n'
    body = head + content + b"\r\n--part--\r\n"
    card = json.loads(smoke.ask(f"{GATEWAY}/models", body, {"Content-Type": "multipart/form-data; boundary=part"}))
    return {"bytes": len(content), "kept": card["sha256"] == hashlib.sha256(content).hexdigest()}


def watched() -> dict[str, Any]:
    """What Prometheus found and loaded, beside what the repository has."""

    def ask(path: str) -> Any:
        return json.loads(smoke.ask(f"{PROMETHEUS}/api/v1/{path}"))["data"]

    def targets() -> dict[str, str]:
        return {target["labels"]["job"]: target["health"] for target in ask("targets")["activeTargets"]}

    with suppress(TimeoutError):
        wait_for(lambda: targets() == TARGETS, 90)
    loaded = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    files = (ROOT / "observability" / "prometheus" / "rules").glob("*.yml")
    ours = [rule for path in files for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    return {
        "targets": targets(),
        "rules": sum(rule["type"] == "recording" for rule in loaded),
        "alerts": sum(rule["type"] == "alerting" for rule in loaded),
        "all_of_them": sorted(rule["name"] for rule in loaded) == sorted(r.get("record") or r["alert"] for r in ours),
        "unhealthy": sorted(rule["name"] for rule in loaded if rule["health"] == "err"),
    }


def lose_and_restore(stack: ComposeStack, backup: Path) -> float:
    """As docs/deployment.md has it for one machine; returns the seconds from nothing to ready."""
    backup.mkdir()
    of_gateway = ("run", "--rm", "--no-deps", "--user", "root", "--volume", f"{backup}:/backup", "gateway")
    stack.compose("exec", "-T", "redis", "sh", "-c", "valkey-cli --rdb /data/backup.rdb")
    stack.compose("cp", "redis:/data/backup.rdb", str(backup / "dump.rdb"))
    stack.compose(*of_gateway, "store", "copy", "--to", "/backup/store")
    stack.compose("down", "--volumes")
    start = time.perf_counter()
    stack.compose("up", "--detach", "--no-build", "--wait", "s3")
    stack.compose("run", "--rm", "--no-deps", "bucket")
    stack.compose(*of_gateway, "store", "copy", "--from", "/backup/store")
    dump = f"{backup / 'dump.rdb'}:/data/dump.rdb:ro"
    redis = ("valkey-server", "--dir", "/data", "--appendonly", "no", "--save", "")
    stack.compose("run", "--rm", "--detach", "--no-deps", "--name", "restore", "--volume", dump, "redis", *redis)
    wait_for(lambda: "PONG" in _run("podman", "exec", "restore", "valkey-cli", "ping"), 60)
    _run("podman", "exec", "restore", "valkey-cli", "config", "set", "appendonly", "yes")
    info = ("podman", "exec", "restore", "valkey-cli", "info", "persistence")
    wait_for(lambda: "aof_rewrite_in_progress:0" in _run(*info), 60)
    _run("podman", "stop", "restore")
    stack.up()
    return round(time.perf_counter() - start, 1)


def main() -> int:
    """Do it all, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise SystemExit(f"Something else listens on port {port}.")
    with tempfile.TemporaryDirectory(prefix="loomweight-") as folder, ComposeStack(Path(folder)) as stack:
        seconds = stack.up()
        services = [json.loads(line) for line in stack.compose("ps", "--all", "--format", "json").splitlines()]
        rows: dict[str, dict[str, Any]] = {"up": {"seconds": seconds}}
        rows["up"] |= {s["Service"]: s["Health"] or f"{s['State']} {s['ExitCode']}" for s in services}
        print(_run("make", "--silent", "smoke"), end="")
        made = stack.compose("exec", "-T", "gateway", "loomweight", "keys", "create", "compose-check").split()
        with mock.patch.dict(os.environ, LOOMWEIGHT_TOKEN=made[-1]):
            job = smoke.generate(GATEWAY)
            [model] = job["result"]["models"]
            weights = smoke.download(GATEWAY, model["id"])
            bundle = json.loads(smoke.ask(f"{GATEWAY}/models/{model['id']}"))["bundle"]
            rows["presigned"] = presigned(model["id"])
            room = stack.compose("exec", "-T", "gateway", "df", "--output=size", "--block-size=1M", "/tmp").split()[-1]
            limit = GatewaySettings.model_fields["max_checkpoint_bytes"].default
            rows["upload"] = {"tmp_mib": int(room), **upload(limit)}
            rows["prometheus"] = watched()

            def remembers() -> dict[str, Any]:
                same = json.loads(smoke.ask(f"{GATEWAY}/jobs/{job['id']}")) == job
                same = same and smoke.download(GATEWAY, model["id"]) == weights
                return {"remembered": same, "next_job": smoke.generate(GATEWAY)["status"]}

            stack.compose("restart", "redis", "worker")
            rows["restarted"] = {"seconds": stack.up(), **remembers()}
            rows["restored"] = {"seconds": lose_and_restore(stack, Path(folder) / "backup"), **remembers()}
    wrong = [name for name, facts in EXPECTED.items() if not facts.items() <= rows[name].items()]
    print(json.dumps(rows, indent=1), f"Not as expected: {', '.join(wrong) or 'nothing'}", sep="\n")
    if arguments.out:
        table = [{"check": name, "passed": name not in wrong, **facts} for name, facts in rows.items()]
        results.write(arguments.out, "compose", bundle, table, left_out=["grafana"])
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
