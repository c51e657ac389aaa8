"""The command `loomweight`. Each subcommand imports what it needs when it runs: `--help` stays instant."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from cli.jobs import jobs
from cli.keys import keys
from cli.store import store

EXIT_FAILED = 1  # the request was refused, the job failed, or the service stopped by itself
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="loomweight")
def main() -> None:
    """Neural network weights on demand: a few images in, a working network out."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option("--workers", default=1, show_default=True, help="Gateway processes.")
def serve(host: str, port: int, workers: int) -> None:
    """Run the HTTP gateway. Settings come from LOOMWEIGHT_… variables.

    API keys are needed unless only the loopback address is listened on: `loomweight keys create` makes one.
    """
    import uvicorn

    from cli.keys import NotSecure, decide_on_keys

    try:
        decide_on_keys(host)
    except NotSecure as error:
        _fail(str(error), EXIT_FAILED)
    uvicorn.run(
        "service.app:create_app", factory=True, host=host, port=port, workers=workers, timeout_graceful_shutdown=3
    )


@main.command()
def worker() -> None:
    """Run one worker: it loads the bundle and generates, a few jobs beside each other."""
    # Read by Celery when it is imported: SIGTERM gives a running job `soft_shutdown_s` to end, then the worker goes.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from workers.app import main as run

    run()


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--data",
    default=Path("data"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where jobs, models and logs are kept.",
)
@click.option("--bundle", type=_FOLDER, help="The bundle to generate with.  [default: the configured one]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Workers.  [default: one on a GPU, else one a core, at most 4]",
)
def up(host: str, port: int, data: Path, bundle: Path | None, workers: int | None) -> None:
    """Run the whole service on this machine: broker, workers and gateway."""
    from cli.up import Stack, StackError, default_workers

    with ExitStack() as cleanup:
        cleanup.enter_context(_interruptible())
        stack = Stack(
            host=host, port=port, data=data, bundle=bundle or default_bundle(), workers=workers or default_workers()
        )
        cleanup.enter_context(stack)
        try:
            stack.start()
            click.echo(f"Loomweight is ready at {stack.url}")
            if stack.key_file:
                click.echo(f"It needs an API key; one with every scope is in {stack.key_file}")
            while True:
                time.sleep(0.5)
                stack.watch()
        except StackError as error:
            _fail(str(error), EXIT_FAILED)
        except KeyboardInterrupt:
            pass
        finally:
            _ignore_signals()


@main.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option(
    "--server", envvar="LOOMWEIGHT_SERVER", help="URL of a running service; without one, a private one starts."
)
@click.option("--token", envvar="LOOMWEIGHT_TOKEN", help="Sent as a bearer token.")
@click.option("--bundle", type=_FOLDER, help="For the private service.  [default: the configured one]")
@click.option("--target", help="Architecture to fill with weights.  [default: the bundle's]")
@click.option(
    "--method",
    type=click.Choice(["conditional-mean", "diffusion", "kde", "retrieve"]),
    help="[default: conditional-mean]",
)
@click.option("--candidates", type=int, help="Weight sets made and ranked, at most.  [default: 8]")
@click.option("--keep", type=int, help="How many of them the service stores.  [default: 1]")
@click.option(
    "--holdout", type=float, help="Share of the samples that only ranks.  [default: none, cross-validation ranks]"
)
@click.option("--steps", type=int, help="Denoising steps.  [default: the bundle's]")
@click.option("--guidance", type=float, help="Strength of the condition.  [default: the bundle's]")
@click.option("--temperature", type=float, help="Scale of the sampling noise.  [default: the bundle's]")
@click.option("--refine-steps", type=int, help="Gradient steps after generation.  [default: 0]")
@click.option("--seed", type=int, help="The same seed and samples give the same weights.  [default: random]")
@click.option("--callback-url", help="Where a signed webhook goes when the job has ended.")
@click.option("--out", default=Path("model.safetensors"), show_default=True, type=_FILE, help="Where the weights go.")
@click.option("--onnx", type=_FILE, help="Where the runnable ONNX model goes, if wanted.")
def generate(
    folder: Path,
    server: str | None,
    token: str | None,
    bundle: Path | None,
    out: Path,
    onnx: Path | None,
    **options: Any,
) -> None:
    """Generate a network for the images in DIR, laid out as class/name.png."""
    from rich.console import Console

    from cli.client import ClientError, LoomweightClient, Unreachable
    from cli.generate import EmptyFolder, run
    from cli.up import Stack, StackError

    console = Console()
    with ExitStack() as cleanup:
        cleanup.enter_context(_interruptible())
        try:
            if server is None:
                data = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="loomweight-")))
                stack = Stack(host="127.0.0.1", port=0, data=data, bundle=bundle or default_bundle())
                cleanup.enter_context(stack)
                with console.status("starting a private service"):
                    stack.start()
                server = stack.url
                if stack.key_file:
                    token = stack.key_file.read_text()
            client = cleanup.enter_context(LoomweightClient(server, token=token))
            run(client, folder, options, weights=out, onnx=onnx, console=console)
        except Unreachable as error:
            _fail(str(error), EXIT_UNREACHABLE)
        except (ClientError, EmptyFolder, StackError) as error:
            _fail(str(error), EXIT_FAILED)
        except KeyboardInterrupt:
            _fail("interrupted", EXIT_INTERRUPTED)
        finally:
            _ignore_signals()


@main.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="A B …")
@click.option("--server", envvar="LOOMWEIGHT_SERVER", help="Ask a running service; checkpoints may then be model ids.")
@click.option("--token", envvar="LOOMWEIGHT_TOKEN", help="Sent as a bearer token.")
@click.option("--bundle", type=_FOLDER, help="Whose similarity part compares.  [default: the configured one]")
@click.option("--out", type=_FILE, help="Draw the matrix here: .png, .svg or .pdf; needs matplotlib.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def similarity(
    checkpoints: tuple[str, ...],
    server: str | None,
    token: str | None,
    bundle: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare safetensors files by their weights: were these networks trained for related tasks?"""
    import json

    from rich.console import Console

    from cli.client import ClientError, LoomweightClient, Unreachable
    from cli.similarity import CannotCompare, check_heatmap, compare_files, compare_served, heatmap, show

    if len(checkpoints) < 2:
        raise click.UsageError("Name at least two checkpoints.")
    try:
        if out is not None:
            check_heatmap(out)
        if server is None:
            found = compare_files([Path(name) for name in checkpoints], bundle or default_bundle())
        else:
            with LoomweightClient(server, token=token) as client:
                found = compare_served(client, checkpoints)
        if out is not None:
            heatmap(found, out)
    except Unreachable as error:
        _fail(str(error), EXIT_UNREACHABLE)
    except (ClientError, CannotCompare) as error:
        _fail(str(error), EXIT_FAILED)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        show(found, Console())


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="STAGE …")
def train(arguments: tuple[str, ...]) -> None:
    """Run a stage of the trainer; `loomweight train --help` lists them."""
    from trainer.cli import main as run

    sys.exit(run(list(arguments)))


@main.group()
def bundle() -> None:
    """Look at bundles, the trained parts that generate."""


@bundle.command()
@click.argument("folder", metavar="[DIR]", required=False, type=_FOLDER)
def verify(folder: Path | None) -> None:
    """Check format, presence and hash of every file of a bundle."""
    from loomweight.bundle import verify as check
    from loomweight.errors import InvalidBundle

    try:
        manifest = check(folder or default_bundle())
    except InvalidBundle as error:
        _fail(str(error), EXIT_FAILED)
    click.echo(f"{manifest['id']}: {len(manifest['files'])} files are as they should be.")


main.add_command(keys)
main.add_command(store)
main.add_command(jobs)


def default_bundle() -> Path:
    """Return the configured bundle; a relative one that is not here is looked for beside the checkout's packages."""
    from workers.settings import Settings

    configured = Settings().bundle_dir
    beside = Path(__file__).parents[1] / configured
    return configured if configured.exists() or not beside.exists() else beside


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"loomweight: {message}", err=True)
    sys.exit(code)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let every signal that asks for an end raise KeyboardInterrupt, also where a shell had SIGINT ignored."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """From here on everything is being stopped, which nothing may interrupt."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
