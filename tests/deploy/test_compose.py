"""The Dockerfile and docker-compose.yml, as far as a file can be judged without running it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import mebibytes, redis_needed, tmp_needed

ROOT = Path(__file__).parents[2]


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compose") / "env"
    path.write_text(re.sub(r"=$", "=x", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    return path


@pytest.fixture(scope="module")
def compose(settings: Path) -> dict[str, Any]:
    return config(settings, "--profile", "gpu")


def config(settings: Path, *options: str) -> dict[str, Any]:
    command = [tool("docker-compose"), "--env-file", str(settings), *options, "config", "--format", "json"]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return dict(json.loads(made.stdout))


@pytest.mark.parametrize("name", ["Dockerfile", "tests/deploy/standins.Dockerfile"])
def test_a_dockerfile_passes_its_linter(name: str) -> None:
    linted = subprocess.run([tool("hadolint"), str(ROOT / name)], check=False, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_only_what_the_dockerfile_copies_reaches_a_build() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+)", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    copied = {source.split("/")[0] for line in copies for source in line.split()[:-1]}
    assert copied == let_in


def test_secrets_have_no_defaults(tmp_path: Path) -> None:
    command = [tool("docker-compose"), "--env-file", "/dev/null", "config", "-q"]
    refused = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "set it in .env" in refused.stderr


def test_every_service_is_confined_watched_and_pinned(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not service["image"].endswith(":latest"), name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
        for needed in service.get("depends_on", {}).values():
            assert needed["condition"] in ("service_healthy", "service_completed_successfully"), name


def test_gateway_and_workers_agree(compose: dict[str, Any]) -> None:
    services = compose["services"]
    shared = services["bucket"]["environment"]
    for name in ("gateway", "worker", "worker-gpu"):
        if name in services:
            assert services[name]["environment"].items() >= shared.items(), name
    gateway = services["gateway"]["environment"]
    assert gateway["LOOMWEIGHT_REQUIRE_KEYS"] == "true"
    assert {"LOOMWEIGHT_BOOTSTRAP_KEY", "LOOMWEIGHT_CALLBACK_SECRET"} <= gateway.keys()
    gpu = services["worker-gpu"]
    assert int(gpu["environment"]["LOOMWEIGHT_JOB_LIMIT_S"]) < int(gpu["environment"]["LOOMWEIGHT_SOFT_SHUTDOWN_S"])
    assert gpu["stop_grace_period"] == "16m0s"


def test_uploads_fit_into_the_gateways_tmp(compose: dict[str, Any]) -> None:
    gateway = compose["services"]["gateway"]
    [(path, size)] = (entry.split(":size=") for entry in gateway["tmpfs"])
    assert path == "/tmp"
    assert tmp_needed(gateway["environment"]) < mebibytes(size)


def test_waiting_uploads_fit_into_redis(compose: dict[str, Any]) -> None:
    command = compose["services"]["redis"]["command"]
    most = command[command.index("--maxmemory") + 1]
    assert redis_needed(compose["services"]["gateway"]["environment"]) < mebibytes(most)


def test_what_compose_check_starts_differs_in_its_network_alone(settings: Path) -> None:
    plain = config(settings)["services"]
    checked = config(settings, "-f", "docker-compose.yml", "-f", "tests/deploy/compose.host.yml")["services"]
    assert plain.keys() - checked.keys() == {"grafana"}
    for name in plain.keys() & checked.keys() - {"s3"}:  # it waits for the names
        differ = {key for key, value in plain[name].items() if checked[name].get(key) != value}
        assert differ <= {"networks", "ports"}, name
