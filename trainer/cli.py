"""The trainer's command line: `loomweight train STAGE --recipe NAME --run DIR [--data DIR]`.

Stages in order; `all` runs them one after another. Each leaves its product in the run folder and starts where it
stopped.
"""

import argparse
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from model_store.store import open_store
from trainer import recipe as recipes
from trainer.mirror import Mirror, zoo_shard
from trainer.parallel import team
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """What a stage may need beside the recipe and the run folder."""

    data: Path | None
    shard: int
    shards: int
    processes: int
    targets: tuple[str, ...]
    out: Path | None
    also: tuple[Path, ...] = ()


def _prepare(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import data

    data.prepare(recipe, run, options.data)


def _encoder(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import encoder

    encoder.train(recipe, run)


def _shared(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import shared

    shared.train(recipe, run)


def _bank(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import bank

    bank.build(recipe, run)


def _zoo(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import zoo

    for target in recipe.targets:
        zoo.build(recipe, run, target, shard=options.shard, shards=options.shards, processes=options.processes)


def _vae(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import vae

    vae.train(recipe, run)


def _set_encoder(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import set_encoder

    set_encoder.train(recipe, run)


def _diffusion(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import diffusion

    diffusion.train(recipe, run, options.targets)


def _export(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import export

    manifest = export.export(recipe, run, options.out or Path("bundles") / recipe.name)
    print(manifest["id"])


def _card(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import export

    export.measured(options.out or Path("bundles") / recipe.name, Path("docs/results"))


STAGES: dict[str, Callable[[Recipe, Path, Options], None]] = {
    "data": _prepare,
    "encoder": _encoder,
    "shared": _shared,
    "bank": _bank,
    "zoo": _zoo,
    "vae": _vae,
    "set_encoder": _set_encoder,
    "diffusion": _diffusion,
    "export": _export,
}


def _modelset(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import modelset

    modelset.build(recipe, run, shard=options.shard, shards=options.shards, processes=options.processes)


def _lps(recipe: Recipe, run: Path, options: Options) -> None:
    from trainer import lps

    print(lps.build(recipe, run, options.out or run, also=options.also))


def _lps_zoo(recipe: Recipe, run: Path, options: Options) -> None:
    from loomweight.similarity import index

    found = index.build(options.out or Path("bundles") / recipe.name)
    print(f"{len(found.names)} zoo models embedded")


AFTERWARDS = {"card": _card, "modelset": _modelset, "lps": _lps, "lps-zoo": _lps_zoo}
"""Not part of `all`: `card` runs once the tables were measured; similarity has runs of its own."""


_STAGES = f"one or more of {', '.join([*STAGES, *AFTERWARDS])}; or all: the first {len(STAGES)}"


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with 0 <= i < n")
    return int(index), int(count)


def main(argv: Sequence[str] | None = None) -> int:
    """Run some stages, or all."""
    parser = argparse.ArgumentParser(prog="loomweight train", description=__doc__)
    parser.add_argument("stage", nargs="+", choices=[*STAGES, "all", *AFTERWARDS], metavar="STAGE", help=_STAGES)
    parser.add_argument("--recipe", default="starter", help="a shipped recipe's name or a TOML file")
    parser.add_argument("--run", type=Path, default=None, help="folder of the run (default runs/RECIPE)")
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of image sets in the Hugging Face parquet layout"
    )
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="stage zoo: build this part only")
    parser.add_argument("--processes", type=int, default=2, help="stage zoo: models trained side by side")
    parser.add_argument(
        "--out", type=Path, default=None, help="stage export: the bundle's folder (default bundles/RECIPE)"
    )
    parser.add_argument("--targets", nargs="+", default=(), help="stage diffusion: these alone (default: the recipe's)")
    parser.add_argument(
        "--also", type=Path, nargs="+", default=(), help="stage lps: further runs whose model sets it learns from"
    )
    parser.add_argument("--threads", type=int, default=None, help="torch's threads (default: the recipe's)")
    parser.add_argument(
        "--store",
        default=None,
        metavar="URL",
        help="keep a copy of the run folder here, s3://bucket/prefix or a directory, and begin with what it holds",
    )
    arguments = parser.parse_args(argv)
    recipe = recipes.load(arguments.recipe)
    run = arguments.run or Path("runs") / recipe.name
    torch.set_num_threads(arguments.threads or recipe.threads)
    shard, shards = arguments.shard
    also = tuple(arguments.also)
    options = Options(arguments.data, shard, shards, arguments.processes, tuple(arguments.targets), arguments.out, also)
    with _mirrored(arguments, run):
        for name in STAGES if arguments.stage == ["all"] else arguments.stage:
            {**STAGES, **AFTERWARDS}[name](recipe, run, options)
    return 0


@contextmanager
def _mirrored(arguments: argparse.Namespace, run: Path) -> Iterator[None]:
    if arguments.store is None:
        yield
        return
    with closing(open_store(arguments.store)) as store:
        mirror = Mirror(store, run)
        crew = team()
        if crew.writes:
            mirror.pull(zoo_shard(*arguments.shard) if arguments.stage == ["zoo"] else lambda name: True)
        crew.wait()
        with _ended_by_sigterm(), mirror.following() if crew.leads else nullcontext():
            yield


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A machine that is taken away says so with SIGTERM: time to hand over what is finished."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(main())
