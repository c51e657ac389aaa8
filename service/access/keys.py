"""API keys, kept in the store: one record each, with hashes of its secrets and never a secret.

A token reads `lw_<key id>_<secret>`. The secret has 256 random bits, so that one SHA-256 is enough to keep it. Records
live in the store and not in Redis: a Redis that is lost forgets queues, and must not forget who may use the service.
What changes with every request (last use, counters) is in Redis, where losing it costs nothing.
"""

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from model_store import keys
from model_store.store import NotFound, ObjectStore, StoreUnavailable

Scope = Literal["read", "generate", "similarity", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL: tuple[Scope, ...] = ("read", "generate", "similarity")
BOOTSTRAP, LOCAL, METRICS = "bootstrap", "local", "metrics"
"""Ids of keys that are not in the store: given by the environment, and nobody's where keys are off."""

_TOKEN = re.compile(r"lw_([0-9a-f]{12})_([A-Za-z0-9_-]{20,100})")
_MOST_CACHED = 10_000
_log = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Allowance(_Record):
    """What a key may use; None takes the service's setting."""

    per_minute: int | None = Field(default=None, ge=1, description="Requests a minute.")
    jobs_per_day: int | None = Field(default=None, ge=1, description="Jobs created on one day, UTC.")
    active_jobs: int | None = Field(default=None, ge=1, description="Jobs that wait or run at once.")


class Secret(_Record):
    """One secret of a key, as much as is kept of it."""

    sha256: str
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    def matches(self, given: str, now: datetime) -> bool:
        """Whether this is the secret, and still good."""
        same = hmac.compare_digest(self.sha256, digest(given))
        return same and (self.expires_at is None or now < self.expires_at)


class ApiKey(_Record):
    """What is kept of a key."""

    id: str
    name: str = Field(max_length=100)
    owner: str = Field(description="Whose jobs and models are its own; keys with the same owner share them.")
    scopes: tuple[Scope, ...]
    allowance: Allowance = Allowance()
    secrets: tuple[Secret, ...]
    webhook_versions: tuple[int, ...] = (1,)
    """Versions of the secret that signs webhooks, the newest first; older ones sign too until they are dropped."""
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def usable(self, now: datetime) -> bool:
        """Whether it is neither revoked nor over its time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Issued(NamedTuple):
    """A key together with its token, which nothing can show again."""

    key: ApiKey
    token: str


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(token: str) -> tuple[str, str] | None:
    """Return the key's id and the secret, None for what no token of ours looks like."""
    match = _TOKEN.fullmatch(token)
    return (match[1], match[2]) if match else None


class Keys:
    """The keys in a store. Every method may raise `StoreError`; ids that do not exist raise `model_store.NotFound`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(
        self,
        name: str,
        scopes: Iterable[Scope] = USUAL,
        *,
        owner: str | None = None,
        allowance: Allowance | None = None,
        lifetime: timedelta | None = None,
    ) -> Issued:
        """Make a key. Its owner is itself unless another is named."""
        key_id, secret, now = secrets.token_hex(6), secrets.token_urlsafe(32), datetime.now(UTC)
        if owner is not None and not keys.is_id(owner):
            raise ValueError(f"not an owner: {owner!r}; letters, digits, '.', '_' and '-', 64 at most")
        key = ApiKey(
            id=key_id,
            name=name,
            owner=owner or key_id,
            scopes=tuple(sorted(set(scopes))),
            allowance=allowance or Allowance(),
            secrets=(Secret(sha256=digest(secret), created_at=now),),
            created_at=now,
            expires_at=now + lifetime if lifetime else None,
        )
        self._put(key)
        return Issued(key, f"lw_{key_id}_{secret}")

    def get(self, key_id: str) -> ApiKey:
        """Return a key."""
        return ApiKey.model_validate_json(self._store.get(keys.access_key(key_id)))

    def all(self) -> Iterator[ApiKey]:
        """Yield every key, revoked ones too."""
        last = None
        while page := self._store.list(keys.ACCESS, after=last):
            for entry in page:
                yield ApiKey.model_validate_json(self._store.get(entry.key))
            last = page[-1].key

    def revoke(self, key_id: str) -> ApiKey:
        """End a key for good; gateways that know it learn of it within `key_cache_s`."""
        return self._change(key_id, revoked_at=datetime.now(UTC))

    def rotate(self, key_id: str, grace: timedelta) -> Issued:
        """Give a key a new secret; what it had works for `grace` longer. Jobs and models stay the key's own."""
        key, secret, now = self.get(key_id), secrets.token_urlsafe(32), datetime.now(UTC)
        ends = now + grace
        kept = [
            old.model_copy(update={"expires_at": min(ends, old.expires_at or ends)})
            for old in key.secrets
            if grace and (old.expires_at is None or old.expires_at > now)
        ]
        new = Secret(sha256=digest(secret), created_at=now)
        return Issued(self._change(key_id, secrets=(new, *kept)), f"lw_{key_id}_{secret}")

    def rotate_webhook(self, key_id: str) -> ApiKey:
        """Make a new webhook secret; webhooks carry signatures with it and the one before, until the next rotation."""
        newest = self.get(key_id).webhook_versions[0]
        return self._change(key_id, webhook_versions=(newest + 1, newest))

    def _change(self, key_id: str, **changes: object) -> ApiKey:
        key = self.get(key_id).model_copy(update=changes)
        self._put(key)
        return key

    def _put(self, key: ApiKey) -> None:
        self._store.put(keys.access_key(key.id), key.model_dump_json().encode(), content_type="application/json")


class KnownKeys:
    """Keys as a gateway asks for them: remembered for `fresh_s`, and longer while the store does not answer.

    That is safe: while nobody can reach the store, nobody can revoke a key either.
    """

    def __init__(self, keys_: Keys, fresh_s: float, stale_s: float = 900) -> None:
        self._keys = keys_
        self._fresh_s, self._stale_s = fresh_s, stale_s
        self._known: dict[str, tuple[float, ApiKey | None]] = {}
        self._lock = threading.Lock()

    def find(self, token: str) -> ApiKey | None:
        """Return the key that a token is good for. Raises `StoreUnavailable`."""
        parts = parse(token)
        if parts is None:
            return None
        key, now = self._get(parts[0]), datetime.now(UTC)
        if key is None or not key.usable(now):
            return None
        return key if any(secret.matches(parts[1], now) for secret in key.secrets) else None

    def remembers(self, token: str) -> bool:
        """Whether the token was good for a key when the store was asked last."""
        parts = parse(token)
        _, key = self._known.get(parts[0], (0.0, None)) if parts else (0.0, None)
        now = datetime.now(UTC)
        return parts is not None and key is not None and any(secret.matches(parts[1], now) for secret in key.secrets)

    def by_id(self, key_id: str) -> ApiKey | None:
        """Return a key, None if there is none. Raises `StoreUnavailable`."""
        return self._get(key_id)

    def _get(self, key_id: str) -> ApiKey | None:
        now = time.monotonic()
        at, key = self._known.get(key_id, (float("-inf"), None))
        if now - at < self._fresh_s:
            return key
        try:
            key = self._keys.get(key_id)
        except NotFound:
            key = None
        except ValidationError as error:
            _log.error("the record of key %s cannot be read, so it opens nothing: %s", key_id, error)
            key = None
        except StoreUnavailable:
            if key is None or now - at > self._stale_s:
                raise
            return key
        with self._lock:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            self._known[key_id] = (now, key)
        return key
