"""Runs the images that `tests/deploy/images.sh` built, and writes their sizes down.

Gateway and workers answer who has an API key and refuse who has none; the trainer trains the tiny recipe.

make images-check    as root: no container engine, the containers share the machine's network
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import results
from tests.deploy import smoke
from tests.deploy.stack import DeployedStack

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
API_MB = 250  # what the gateway's image must stay under
WORKERS = {"worker": {}, "worker-gpu": {"LOOMWEIGHT_DEVICE": "cpu"}}  # no GPU is asked for where none can be expected
DRIVERS = {"libcuda.so.1"}  # the host's own
# What ONNX Runtime's CUDA provider needs and torch, which is loaded before it, has not brought.
MISSING = """
import ctypes, importlib.util, pathlib, subprocess, torch
provider = pathlib.Path(importlib.util.find_spec("onnxruntime").origin).parent / "capi/libonnxruntime_providers_cuda.so"
for line in subprocess.check_output(["ldd", provider], text=True).splitlines():
    if "not found" in line:
        try:
            ctypes.CDLL(line.split()[0])
        except OSError:
            print(line.split()[0])
"""


class ContainerStack(DeployedStack):
    """The same service, with gateway and worker out of their images, as the user that the images name."""

    def __init__(self, folder: Path, bundle: Path, worker: str) -> None:
        super().__init__(folder, bundle)
        self._images = {"gateway": "api", "worker": worker}
        self._extra = WORKERS[worker]

    def _spawn(self, name: str, *arguments: str) -> None:
        if name not in self._images:
            super()._spawn(name, *arguments)
            return
        ours = {key: value for key, value in self.environment.items() if key.startswith("LOOMWEIGHT_")}
        del ours["LOOMWEIGHT_BUNDLE_DIR"]  # the image's own
        command = _loomweight(self._stack.enter_context(container(self._images[name])), ours | self._extra)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._parts[name] = subprocess.Popen(
                [*command, *arguments[2:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@contextmanager
def container(target: str) -> Iterator[str]:
    """A container of an image, by name, until the block ends."""
    name = _buildah("from", f"localhost/loomweight/{target}:0.1.0")
    try:
        yield name
    finally:
        _buildah("rm", name)


def answers(worker: str) -> int:
    """Have gateway and worker serve one job, to whoever has a key alone; returns the size of its weights."""
    with (
        tempfile.TemporaryDirectory(prefix="loomweight-") as folder,
        ContainerStack(Path(folder), ROOT / "bundles" / "starter", worker) as stack,
    ):
        try:
            job = smoke.generate(stack.url)
            with mock.patch.dict(os.environ, LOOMWEIGHT_TOKEN=""):
                _refuses(stack.url)
        except Exception:
            print((Path(folder) / "gateway.log").read_text()[-6000:])
            raise
        return len(smoke.download(stack.url, job["result"]["models"][0]["id"]))


def trains() -> str:
    """Train the tiny recipe from its first stage to its bundle; returns the bundle's id."""
    with container("trainer") as name:
        stages = ["train", "all", "--recipe", "tiny", "--run", "/tmp/run", "--out", "/tmp/bundle"]
        subprocess.run([*_loomweight(name, {}), *stages], check=True, stdin=subprocess.DEVNULL)
        manifest = Path(_buildah("mount", name)) / "tmp" / "bundle" / "bundle.json"
        return str(json.loads(manifest.read_text())["id"])


def missing_libraries() -> list[str]:
    """What the GPU's image leaves to the host: the driver's own library, and nothing else."""
    with container("worker-gpu") as name:
        run = ["buildah", "run", "--isolation", "chroot", name, "--", "/opt/venv/bin/python", "-c", MISSING]
        return subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()


def _loomweight(container: str, environment: dict[str, str]) -> list[str]:
    options = [option for key, value in environment.items() for option in ("--env", f"{key}={value}")]
    run = ["buildah", "run", "--isolation", "chroot", "--user", "10001:10001", *options, container, "--"]
    return [*run, "tini", "--", "loomweight"]


def _refuses(url: str) -> None:
    try:
        smoke.submit(url)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return
        raise
    raise SystemExit("A job without a key was accepted.")


def _buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def sizes(target: str) -> dict[str, float]:
    """Megabytes on disk: all of it, and what lies on top of the base image."""
    named = [image for image in json.loads(_buildah("images", "--json")) if image.get("names")]
    listed = {image["names"][0]: image["size"] for image in named}

    def megabytes(name: str) -> float:
        number, unit = listed[name].split()
        return float(number) * {"KB": 1e-3, "MB": 1, "GB": 1e3}[unit]

    size = megabytes(BASE if target == "base" else f"localhost/loomweight/{target}:0.1.0")
    return {"mb": size, "mb_without_base": round(size - megabytes(BASE), 1)}


def main() -> int:
    """Run them, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", default=["api", "worker", "trainer"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    targets = arguments.targets
    # Where images.sh builds.
    os.environ.setdefault("CONTAINERS_STORAGE_CONF", "/var/tmp/loomweight-images/storage.conf")
    facts: dict[str, dict[str, Any]] = {target: {} for target in ["base", "api", *targets]}
    for target in targets:
        if target in WORKERS:
            facts[target] |= {"weights_bytes": answers(target), "ran_on": "cpu"}
            facts["api"]["served_with_a_key_alone"] = True
        if target == "worker-gpu":
            facts[target]["libraries_left_to_the_host"] = missing_libraries()
        if target == "trainer":
            facts[target]["trained"] = trains()
    rows = [{"image": name, **sizes(name), **found} for name, found in facts.items()]
    print(json.dumps(rows, indent=1))
    if arguments.out:
        # In the place of Docker Hub's slim image stands a trimmed Debian of the same release.
        results.write(arguments.out, "images", None, rows, built_by="tests/deploy/images.sh", base="Debian bookworm")
    wrong = [f"api has {API_MB} MB or more" for row in rows if row["image"] == "api" and row["mb"] >= API_MB]
    left = {library for row in rows for library in row.get("libraries_left_to_the_host", ())}
    wrong += [f"worker-gpu lacks {library}: was its torch one for CUDA?" for library in sorted(left - DRIVERS)]
    print("\n".join(wrong))
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
