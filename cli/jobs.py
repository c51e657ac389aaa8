"""`loomweight jobs`: jobs, for operators, also while no gateway runs. Settings: LOOMWEIGHT_… variables.

It speaks to Redis and the store itself: dead letters concern nobody who comes through the gateway.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from model_store.store import ObjectStore
    from workers.jobs import Jobs
    from workers.messages import JobRecord

_STATUSES = ("queued", "running", "succeeded", "failed", "canceled", "expired")


@click.group()
def jobs() -> None:
    """Look at jobs, cancel them, and give those a second chance that failed through no fault of their own."""


@jobs.command("list")
@click.option("--status", type=click.Choice(_STATUSES), help="Only jobs with this status.")
@click.option("--dead", is_flag=True, help="Only dead letters: jobs that failed through no fault of the request's.")
@click.option("--limit", default=50, show_default=True, help="How many, newest first.")
def list_jobs(status: str | None, dead: bool, limit: int) -> None:
    """One job a line: id, status, when it was created, attempts, and why it failed."""
    with _opened() as (records, _):
        if dead:
            for letter in records.dead_letters(limit):
                at = datetime.fromtimestamp(float(letter["at"]), UTC).isoformat(timespec="seconds")
                click.echo(f"{letter['id']}  dead  {at}  {letter['attempts']}  {letter.get('detail', '')}")
            return
        for job in records.page(status, limit=limit).jobs:  # type: ignore[arg-type]
            at = job.created_at.isoformat(timespec="seconds")
            click.echo(f"{job.id}  {job.status}  {at}  {job.attempt}  {job.error.detail if job.error else ''}".rstrip())


@jobs.command()
@click.argument("job_id", metavar="ID")
def show(job_id: str) -> None:
    """The whole record as JSON; of a job that ended long ago, as the store has it."""
    with _opened() as (records, store):
        click.echo(_find(records, store, job_id).model_dump_json(indent=2))


@jobs.command()
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True)
def cancel(job_ids: tuple[str, ...]) -> None:
    """Stop jobs: at once those that wait, between two denoising steps those that run."""
    with _opened() as (records, _):
        for job_id in job_ids:
            status = records.request_cancel(job_id)
            click.echo(f"{job_id}: {'asked to stop' if status == 'running' else status}")


@jobs.command()
@click.argument("job_ids", metavar="[ID…]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Replay every dead letter.")
def replay(job_ids: tuple[str, ...], everything: bool) -> None:
    """Enter dead letters as new jobs, with the same request and a copy of the upload; each leaves the list."""
    from model_store.store import NotFound
    from workers import filing

    if bool(job_ids) == everything:
        raise click.UsageError("Name jobs, or give --all.")
    with _opened() as (records, store):
        for job_id in job_ids or [letter["id"] for letter in records.dead_letters(1_000)]:
            try:
                record = filing.replay(records, store, job_id)
            except filing.NotDead:
                raise click.ClickException(f"{job_id} is not a dead letter.") from None
            except NotFound:
                click.echo(f"{job_id}: its samples are no longer stored", err=True)
                continue
            click.echo(f"{job_id}: replayed as {record.id}")


def _find(records: "Jobs", store: "ObjectStore", job_id: str) -> "JobRecord":
    from workers import filing
    from workers.jobs import UnknownJob

    try:
        return records.get(job_id)
    except UnknownJob:
        return filing.find(store, job_id)


@contextmanager
def _opened() -> "Iterator[tuple[Jobs, ObjectStore]]":
    """The job records and the store; what they raise becomes a line for a terminal."""
    from redis import RedisError

    from model_store.store import StoreError
    from workers.jobs import QueueFull, UnknownJob
    from workers.settings import Settings

    settings = Settings()
    with closing(settings.open_redis()) as redis, closing(settings.open_store()) as store:
        try:
            yield settings.open_jobs(redis), store
        except UnknownJob as error:
            raise click.ClickException(f"There is no job {error}.") from error
        except QueueFull as error:
            raise click.ClickException(f"The queue {error} is full; try again later.") from error
        except (RedisError, StoreError) as error:
            raise click.ClickException(str(error)) from error
