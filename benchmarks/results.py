"""Result files: one JSON shape for every table, with what is needed to make it again."""

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loomweight import __version__


def interval(values: Sequence[float], *, seed: int = 0, samples: int = 2000) -> dict[str, float]:
    """Mean with its 95 % bootstrap interval over `values`."""
    x = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = x[rng.integers(len(x), size=(samples, len(x)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(x.mean()), "low": float(low), "high": float(high), "n": len(x)}


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def _arguments() -> list[str]:
    """The command's arguments, as they make the whole table.

    Where the data lie on this machine is nobody else's business; which of the rows were made at this go (`--only`) is
    none of the table's, since rows are the same alone and together.
    """
    given: list[str] = []
    option = ""
    for argument in sys.argv[1:]:
        named = argument.startswith("--")
        option = argument if named else option
        if option != "--only":
            given.append("DIR" if option == "--data" and not named else argument)
    return given


def command() -> str:
    """The command that is running, as somebody else would type it."""
    spec = sys.modules["__main__"].__spec__
    module = getattr(spec, "name", "") if spec else sys.argv[0]
    return f"python -m {module} {' '.join(_arguments())}".strip()


def write(path: Path, table: str, bundle: str | None, rows: Any, **settings: Any) -> None:
    """Write a result file; the command stands in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "table": table,
        "command": command(),
        "bundle": bundle,
        "software": __version__,
        "python": platform.python_version(),
        "cpu": cpu(),
        "settings": settings,
        "rows": rows,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
