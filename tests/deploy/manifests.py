"""What `kubectl kustomize` makes of `k8s/`, for the tests."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from service.settings import GatewaySettings

ROOT = Path(__file__).parents[2]
BUILDS = ("overlays/local", "overlays/gpu", "overlays/aws", "training")
Resource = dict[str, Any]


def kubectl() -> str | None:
    return shutil.which("kubectl")


@cache
def _built(build: str) -> str:
    made = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / build)], check=True, capture_output=True, text=True
    )
    return json.dumps([resource for resource in yaml.safe_load_all(made.stdout) if resource])


def resources(build: str) -> list[Resource]:
    """Every resource of a build, fresh for each caller."""
    found: list[Resource] = json.loads(_built(build))
    return found


def named(build: str, kind: str, name: str) -> Resource:
    [found] = [r for r in resources(build) if r["kind"] == kind and r["metadata"]["name"] == name]
    return found


def pods(build: str) -> list[tuple[str, Resource]]:
    """Every pod template, by kind and name of its owner."""
    return [
        (f"{r['kind']}/{r['metadata']['name']}", r["spec"]["template"])
        for r in resources(build)
        if r["kind"] in ("Deployment", "StatefulSet", "Job", "DaemonSet")
    ]


def environment(container: Resource, config: dict[str, str] | None = None) -> dict[str, str]:
    return {**(config or {}), **{entry["name"]: entry.get("value", "") for entry in container.get("env", [])}}


def tmp_needed(environment: dict[str, str]) -> int:
    """Bytes that the gateway's /tmp must hold: bodies that are forms are spooled to it."""
    named = {name: f"LOOMWEIGHT_{name.upper()}" for name in ("max_inflight_bytes", "max_inflight_checkpoint_bytes")}
    settings = GatewaySettings(**{name: environment[key] for name, key in named.items() if key in environment})
    return settings.max_inflight_bytes + settings.max_inflight_checkpoint_bytes


def redis_needed(environment: dict[str, str]) -> int:
    """Bytes that Redis must hold when every job that may wait has the largest upload it keeps, and as much again."""
    named = {name: f"LOOMWEIGHT_{name.upper()}" for name in ("max_queued", "inline_bytes")}
    settings = GatewaySettings(**{name: environment[key] for name, key in named.items() if key in environment})
    return 2 * settings.max_queued * settings.inline_bytes


def mebibytes(text: str) -> int:
    """What `512m` of Compose, `512Mi` of Kubernetes and `512mb` of Redis are, in bytes."""
    return int(text.lower().rstrip("bim")) * 2**20
