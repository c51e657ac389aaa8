"""`loomweight store`: the store's own affairs, for operators. Settings come from LOOMWEIGHT_… variables."""

from contextlib import closing

import click

from model_store.store import ObjectStore

_PAGE = 1000


@click.group()
def store() -> None:
    """Look after the store that the service is configured with."""


@store.command()
@click.option("--attempts", default=30, show_default=True, help="A server that only just starts gets so many seconds.")
def init(attempts: int) -> None:
    """Make the bucket if it is missing; harmless when repeated."""
    import time

    from model_store.store import StoreError
    from workers.settings import Settings

    with closing(Settings().open_store()) as opened:
        for left in reversed(range(attempts)):
            try:
                if hasattr(opened, "ensure_bucket"):  # a directory is there once it is opened
                    opened.ensure_bucket()
                opened.check()
                click.echo("The store is ready.")
                return
            except StoreError as error:
                if not left:
                    raise click.ClickException(str(error)) from error
                time.sleep(1)


@store.command()
@click.option("--from", "source", help="Where from.  [default: the configured store]")
@click.option("--to", "target", help="Where to.  [default: the configured store]")
def copy(source: str | None, target: str | None) -> None:
    """Copy every object that is missing or differs; the other store is a directory or an s3:// address.

    This is how a store is backed up and restored: objects are held against their hashes on the way, nothing is deleted.
    An s3:// address is reached with the configured store's endpoint and credentials.
    """
    from model_store.store import StoreError
    from workers.settings import Settings

    if (source is None) == (target is None):
        raise click.UsageError("Give either --from or --to.")
    configured = Settings()
    other = configured.model_copy(update={"store_url": source or target})
    with closing(configured.open_store()) as ours, closing(other.open_store()) as theirs:
        try:
            copied, there = copy_objects(theirs, ours) if source else copy_objects(ours, theirs)
        except StoreError as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"{copied} objects copied, {there} were there.")


@store.command()
def sweep() -> None:
    """Remove what is over its time: uploads, records of ended jobs, models if LOOMWEIGHT_MODEL_TTL_S says so.

    Every gateway does this once an hour.
    """
    from model_store.models import ModelRepository
    from model_store.store import StoreError
    from service.jobs.retention import sweep as run
    from service.settings import GatewaySettings

    settings = GatewaySettings()
    with closing(settings.open_store()) as opened:
        try:
            click.echo(f"{run(ModelRepository(opened), settings)} removed.")
        except StoreError as error:
            raise click.ClickException(str(error)) from error


def copy_objects(source: ObjectStore, target: ObjectStore) -> tuple[int, int]:
    """Copy all objects, cards last: a model exists once its card does. Returns how many were copied and were there."""
    from model_store.store import NotFound

    copied = there = 0
    names = _names(source)
    for key in sorted(names, key=lambda name: (name.endswith("/card.json"), name)):
        with source.stream(key) as pieces:
            info = pieces.info
            try:
                found = target.head(key)
                if found.sha256 is not None and found.sha256 == info.sha256:
                    there += 1
                    continue
            except NotFound:
                pass
            body = b"".join(pieces)
        target.put(key, body, content_type=info.content_type, metadata=info.metadata)
        copied += 1
    return copied, there


def _names(source: ObjectStore) -> list[str]:
    names: list[str] = []
    while page := source.list("", after=names[-1] if names else None, limit=_PAGE):
        names += [entry.key for entry in page]
    return names
