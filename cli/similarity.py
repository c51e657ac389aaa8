"""`loomweight similarity`: checkpoints in, how related their tasks are out; in this process, or asked of a server."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cli.client import LoomweightClient

if TYPE_CHECKING:
    from torch import Tensor

    from loomweight.similarity import Embedding

MAX_FILE = 200 * 2**20


class CannotCompare(Exception):
    """What keeps the command from an answer; the text is one line for a terminal."""


def compare_files(paths: Sequence[Path], bundle: Path) -> dict[str, Any]:
    """Compare files in this process: names, matrix and warnings, and the details of a pair for two. No server."""
    from loomweight.errors import InvalidBundle, InvalidCheckpoint
    from loomweight.similarity import Similarity
    from workers.embeddings import tensors_of

    try:
        part = Similarity.load(bundle)
    except InvalidBundle as error:
        raise CannotCompare(f"{bundle} cannot compare: {error}") from error
    given: list[dict[str, Tensor]] = []
    embedded: list[Embedding] = []
    for path in paths:
        try:
            if path.stat().st_size > MAX_FILE:
                raise CannotCompare(f"{path} is larger than {MAX_FILE:,} bytes.")
            tensors = tensors_of(path.read_bytes())
            embedded.append(part.embed(tensors))
            if len(paths) == 2:
                given.append(tensors)
        except (OSError, InvalidCheckpoint) as error:
            raise CannotCompare(f"{path}: {error}") from error
    names = [str(path) for path in paths]
    if len(paths) == 2:
        pair = part.compare_embedded(embedded[0], embedded[1], given[0], given[1])
        layers = [vars(layer) for layer in pair.layers]
        return {
            "ids": names,
            "matrix": part.matrix(embedded).tolist(),
            "pair": {**vars(pair), "layers": layers, "part": part.id},
            "warnings": list(pair.warnings),
        }
    warnings = [w for name, e in zip(names, embedded, strict=True) for w in part.about(name, e.sketch)]
    if len({e.fingerprint for e in embedded}) > 1:
        warnings.insert(0, "The networks have different architectures: scores between these are lower.")
    return {"ids": names, "matrix": part.matrix(embedded).tolist(), "pair": None, "warnings": warnings}


def compare_served(client: LoomweightClient, names: Sequence[str]) -> dict[str, Any]:
    """Ask a server: two files or ids of stored models, or any number of ids."""
    if len(names) > 2:
        if files := [name for name in names if Path(name).is_file()]:
            raise CannotCompare(f"{files[0]} is a file: a server compares more than two by the ids of stored models.")
        return {**client.similarity_matrix(names), "pair": None}
    a, b = (Path(name) if Path(name).is_file() else name for name in names)
    pair = client.similarity(a, b)
    score = pair["similarity"]
    matrix = [[1.0, score], [score, 1.0]]
    return {"ids": list(names), "matrix": matrix, "pair": pair, "warnings": pair["warnings"]}


def show(found: dict[str, Any], console: Console) -> None:
    """Print the matrix, and for two the details."""
    names, matrix = _short(found["ids"]), found["matrix"]
    table = Table("", *(str(i + 1) for i in range(len(names))), title="similarity", title_justify="left")
    for i, name in enumerate(names):
        table.add_row(f"{i + 1} {name}", *(f"{value:.3f}" for value in matrix[i]))
    console.print(table)
    if pair := found["pair"]:
        console.print(f"same task   {pair['same_task_probability']:.1%} likely", highlight=False)
        for name, value in pair["baselines"].items():
            console.print(f"baseline    {'-' if value is None else f'{value:.3f}'} {name}", highlight=False)
        layers = Table("a", "b", "similarity", title="layers", title_justify="left")
        for layer in pair["layers"]:
            layers.add_row(layer["a"], layer["b"], f"{layer['similarity']:.3f}")
        console.print(layers)
    for warning in found["warnings"]:
        console.print(f"warning     {warning}", highlight=False, markup=False, soft_wrap=True)


def check_heatmap(path: Path) -> None:
    """Raise `CannotCompare` where no picture can be drawn: better before the work than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CannotCompare("--out draws with matplotlib: pip install 'loomweight[trainer]'.") from error
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise CannotCompare(f"{path}: --out writes .png, .svg or .pdf.")


def heatmap(found: dict[str, Any], path: Path) -> None:
    """Draw the matrix."""
    from matplotlib.figure import Figure

    names, size = _short(found["ids"]), 2.5 + 0.5 * len(found["ids"])
    figure = Figure((size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(found["matrix"], vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for i, row in enumerate(found["matrix"]):
            for j, value in enumerate(row):
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black"
                )
    figure.colorbar(image, ax=axes, label="similarity")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _short(names: Sequence[str]) -> list[str]:
    """File names alone, where that tells them apart."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else list(names)
