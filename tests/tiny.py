"""One run of the trainer's `tiny` recipe, made at most once a test run: real stages, real and poor networks."""

import fcntl
import os
from pathlib import Path

import pytest
import torch

from trainer import cli


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, the run's products, and `bundle`. Read it, never write to it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the workers of one run share the parent
    folder, finished = shared / "tiny", shared / "tiny.finished"
    with (shared / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            threads = torch.get_num_threads()
            arguments = ["--run", str(folder / "run"), "--out", str(folder / "bundle"), "--processes", "1"]
            assert cli.main(["all", "--recipe", "tiny", *arguments]) == 0
            torch.set_num_threads(threads)
            finished.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Path) -> Path:
    return tiny / "bundle"


@pytest.fixture(scope="session")
def tiny_run(tiny: Path) -> Path:
    return tiny / "run"
