"""Runs the images that `tests/deploy/images.sh` built, has them answer a generate request, and writes their sizes down.

make images-check    as root: no container engine, the containers share the machine's network
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.deploy import smoke
from tests.deploy.stack import DeployedStack

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
IMAGES = {"gateway": "api", "worker": "worker"}


class ContainerStack(DeployedStack):
    """The same service, with gateway and worker out of their images, as the user that the images name."""

    def _spawn(self, name: str, *arguments: str) -> None:
        if name not in IMAGES:
            super()._spawn(name, *arguments)
            return
        container = _buildah("from", f"localhost/loomweight/{IMAGES[name]}:0.1.0")
        self._stack.callback(_buildah, "rm", container)
        ours = {key: value for key, value in self.environment.items() if key.startswith("LOOMWEIGHT_")}
        del ours["LOOMWEIGHT_BUNDLE_DIR"]  # the image's own
        options = [option for key, value in ours.items() for option in ("--env", f"{key}={value}")]
        run = ["buildah", "run", "--isolation", "chroot", "--user", "10001:10001", *options, container, "--"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._parts[name] = subprocess.Popen(
                [*run, "tini", "--", "loomweight", *arguments[2:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


def _buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def sizes(targets: list[str]) -> dict[str, dict[str, float]]:
    """Megabytes on disk: all of it, and what lies on top of the base image."""
    listed = {image["names"][0]: image for image in json.loads(_buildah("images", "--json")) if image.get("names")}
    base = listed[BASE]["size"]

    def amount(text: str) -> float:
        number, unit = text.split()
        return float(number) * {"KB": 1e-3, "MB": 1, "GB": 1e3}[unit]

    found = {target: amount(listed[f"localhost/loomweight/{target}:0.1.0"]["size"]) for target in targets}
    return {"base": {"mb": amount(base)}} | {
        target: {"mb": size, "mb_without_base": round(size - amount(base), 1)} for target, size in found.items()
    }


def main() -> int:
    """Run them, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", default=["api", "worker", "trainer"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    # Where images.sh builds.
    os.environ.setdefault("CONTAINERS_STORAGE_CONF", "/var/tmp/loomweight-images/storage.conf")
    with (
        tempfile.TemporaryDirectory(prefix="loomweight-") as folder,
        ContainerStack(Path(folder), ROOT / "bundles" / "starter") as stack,
    ):
        try:
            job = smoke.generate(stack.url)
        except Exception:
            print((Path(folder) / "gateway.log").read_text()[-6000:])
            raise
        weights = smoke.download(stack.url, job["result"]["models"][0]["id"])
    result = {
        "table": "images",
        "command": "make images-check",
        "note": "The base is a trimmed Debian bookworm with Python 3.11; it stands for Docker Hub's slim image.",
        "images": sizes(arguments.targets),
        "ran": sorted(IMAGES.values()),
        "weights_bytes": len(weights),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
