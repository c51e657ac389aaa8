"""`loomweight keys`: who may use the service. Keys stand in the store, so settings come from LOOMWEIGHT_… variables."""

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from service.access.keys import ApiKey, Keys
    from service.settings import GatewaySettings

_SCOPES = ("read", "generate", "similarity", "metrics", "admin")
_REQUIRE, _OPEN = "LOOMWEIGHT_REQUIRE_KEYS", "LOOMWEIGHT_OPEN_TO_NETWORK_WITHOUT_KEYS"


class NotSecure(Exception):
    """The gateway would be open to a network; the text says what to do."""


def needs_keys(host: str) -> bool:
    """Whether a gateway that listens there asks for keys: unless told otherwise, if other machines reach it."""
    given = os.environ.get(_REQUIRE)
    return not _only_local(host) if given is None else _is_true(given)


def decide_on_keys(host: str) -> None:
    """Say through the environment whether keys are needed. Raises `NotSecure` for an open door to a network."""
    needed = needs_keys(host)
    if not needed and not _only_local(host) and not _is_true(os.environ.get(_OPEN, "")):
        raise NotSecure(
            f"{host} can be reached from other machines, and {_REQUIRE} turns API keys off. Remove it, or listen on "
            f"127.0.0.1; if whoever reaches this service may do everything, say so with {_OPEN}=true."
        )
    os.environ[_REQUIRE] = str(needed).lower()  # for the processes that serve


def _only_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on", "t", "y")


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys in the store that the service is configured with."""


class _Opened(NamedTuple):
    keys: "Keys"
    settings: "GatewaySettings"


@contextmanager
def _opened() -> Iterator[_Opened]:
    from contextlib import closing

    from model_store.store import NotFound, StoreError
    from service.access.keys import Keys
    from service.settings import GatewaySettings

    settings = GatewaySettings()
    with closing(settings.open_store()) as store:
        try:
            yield _Opened(Keys(store), settings)
        except NotFound as error:
            raise click.ClickException("There is no such key; `loomweight keys list` shows them.") from error
        except (StoreError, ValueError) as error:
            raise click.ClickException(str(error)) from error


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(_SCOPES),
    help="What it may do; may be repeated.  [default: read, generate, similarity]",
)
@click.option("--owner", help="Whose jobs and models are its own.  [default: nobody else's]")
@click.option("--days", type=click.IntRange(1), help="How long it works.  [default: until it is revoked]")
@click.option("--per-minute", type=click.IntRange(1), help="Requests a minute.  [default: the service's setting]")
@click.option("--jobs-per-day", type=click.IntRange(1), help="Jobs a day.  [default: the service's setting]")
@click.option("--active-jobs", type=click.IntRange(1), help="Jobs at once.  [default: the service's setting]")
def create(
    name: str,
    scopes: tuple[str, ...],
    owner: str | None,
    days: int | None,
    per_minute: int | None,
    jobs_per_day: int | None,
    active_jobs: int | None,
) -> None:
    """Make a key called NAME and print its token, which nothing can show again."""
    from service.access.keys import USUAL, Allowance

    allowance = Allowance(per_minute=per_minute, jobs_per_day=jobs_per_day, active_jobs=active_jobs)
    lifetime = timedelta(days=days) if days else None
    with _opened() as (known, _):
        wanted = [scope for scope in (*USUAL, "metrics", "admin") if scope in (scopes or USUAL)]
        issued = known.create(name, wanted, owner=owner, allowance=allowance, lifetime=lifetime)
        _tell(issued.key, issued.token)


@keys.command("list")
def list_() -> None:
    """Show every key: never a secret."""
    with _opened() as (known, settings):
        used = _last_used(settings)
        for key in sorted(known.all(), key=lambda key: key.created_at):
            last = f"{used[key.id]:%Y-%m-%d %H:%M}" if key.id in used else "unknown"
            click.echo(
                f"{key.id}  {_state(key):8}  {','.join(key.scopes):28}  owner {key.owner}  "
                f"made {key.created_at:%Y-%m-%d}  last used {last}  {key.name}"
            )


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """End a key for good, within seconds."""
    with _opened() as (known, settings):
        known.revoke(key_id)
        click.echo(f"{key_id} is revoked; gateways notice within {settings.key_cache_s:g} s.")


@keys.command()
@click.argument("key_id")
@click.option("--grace-hours", default=24.0, show_default=True, help="How long the secret that it had goes on working.")
def rotate(key_id: str, grace_hours: float) -> None:
    """Give a key a new secret and print its token; jobs and models stay its own."""
    with _opened() as (known, _):
        issued = known.rotate(key_id, timedelta(hours=grace_hours))
        _tell(issued.key, issued.token)


@keys.command("webhook-secret")
@click.argument("key_id")
@click.option("--rotate", "anew", is_flag=True, help="Make a new one; the one before signs too until the next time.")
def webhook_secret(key_id: str, anew: bool) -> None:
    """Print the secret that signs a key's webhooks; KEY_ID may be `bootstrap`, or `local` where keys are off."""
    from service.access.keys import BOOTSTRAP, LOCAL
    from service.webhooks.signing import secret_of

    with _opened() as (known, settings):
        if settings.callback_secret is None:
            raise click.ClickException("Set LOOMWEIGHT_CALLBACK_SECRET to what the gateways have.")
        version = 1
        if key_id not in (BOOTSTRAP, LOCAL):
            version = (known.rotate_webhook(key_id) if anew else known.get(key_id)).webhook_versions[0]
        elif anew:
            raise click.ClickException("This key has no record; a new LOOMWEIGHT_CALLBACK_SECRET changes all secrets.")
        click.echo(secret_of(settings.callback_secret.get_secret_value(), key_id, version))


def _tell(key: "ApiKey", token: str) -> None:
    click.echo(f"key    {key.id} ({', '.join(key.scopes)})")
    click.echo(f"token  {token}")


def _state(key: "ApiKey") -> str:
    now = datetime.now(UTC)
    if key.revoked_at:
        return "revoked"
    return "usable" if key.usable(now) else "expired"


def _last_used(settings: "GatewaySettings") -> dict[str, datetime]:
    from redis import RedisError

    from service.access.limits import RateLimits

    redis = settings.open_redis()
    try:
        return RateLimits(redis, settings.redis_prefix).last_used()
    except RedisError:
        return {}
    finally:
        redis.close()
