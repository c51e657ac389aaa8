"""`loomweight generate`: a folder of labelled images in, one checkpoint out."""

import io
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.client import ClientError, Job, LoomweightClient

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})

_MEASURED = {"holdout": "on held-out samples", "cross-validation": "in cross-validation over the samples"}


class EmptyFolder(Exception):
    """The folder holds no `class/image` files."""


def pack_folder(folder: Path) -> bytes:
    """Put the images of an ImageFolder directory (`class/name.png`) into a zip; other files stay behind."""
    images = sorted(
        path
        for path in folder.glob("*/*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts[-2:])
    )
    if not images:
        raise EmptyFolder(f"{folder} holds no images as class/name.png (or .jpg, .webp).")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
        for path in images:
            archive.write(path, "/".join(path.parts[-2:]))
    return buffer.getvalue()


def run(
    client: LoomweightClient,
    folder: Path,
    options: Mapping[str, Any],
    *,
    weights: Path,
    onnx: Path | None,
    console: Console,
) -> Job:
    """Upload, wait with a progress bar, download; a Ctrl-C on the way cancels the job."""
    data = pack_folder(folder)
    job = client.generate_dataset(f"{folder.resolve().name}.zip", data, options)
    try:
        job = _follow(client, job, console)
    except KeyboardInterrupt:
        with suppress(ClientError):
            client.cancel(job["id"])
        raise
    best = job["result"]["models"][0]["id"]
    weights.parent.mkdir(parents=True, exist_ok=True)
    client.download(best, weights)
    if onnx is not None:
        onnx.parent.mkdir(parents=True, exist_ok=True)
        client.download(best, onnx, part="onnx")
    _report(job, weights, onnx, console)
    return job


def _follow(client: LoomweightClient, job: Job, console: Console) -> Job:
    columns = (TextColumn("{task.description:>15}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=None)

        def show(state: Job) -> None:
            progress = state.get("progress") or {}
            steps = progress.get("steps") or None
            bar.update(
                task,
                description=progress.get("stage") or state["status"],
                completed=progress.get("step", 0),
                total=steps,
            )

        return client.wait(job, on_change=show)


def _report(job: Job, weights: Path, onnx: Path | None, console: Console) -> None:
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    result = job["result"]
    best = result["models"][0]
    accuracy, how = best["holdout_accuracy"], _MEASURED.get(result["ranked_on"])
    say(f"model     {best['id']}  (seed {result['seed']}, bundle {result['bundle']})")
    say(f"classes   {', '.join(result['classes'])}")
    say(f"accuracy  {'not measured: no samples were left out' if accuracy is None else f'{accuracy:.1%} {how}'}")
    for name, value in sorted(result["baselines"].items()):
        say(f"baseline  {value:.1%} {name}")
    if warning := result["novelty"]["warning"]:
        say(f"warning   {warning}")
    for path in filter(None, (weights, onnx)):
        say(f"written   {path}")
