"""The gate before every endpoint: no byte of a body is read for a request that may not be made.

With keys: a bearer token, or the console's cookie, leads to a `Principal`; scope and rate are checked here, whose jobs
and models may be seen by the endpoints. Without keys (loopback): everybody may do everything, except web pages of other
sites, which could otherwise send forms to a service on the visitor's own machine or reach it under a name of theirs.
"""

import hmac
import ipaddress
import logging
from http.cookies import CookieError, SimpleCookie
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import urlsplit

from redis import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_store.store import StoreUnavailable
from service.access import rules
from service.access.keys import BOOTSTRAP, METRICS, SCOPES, ApiKey, Keys, KnownKeys, digest
from service.access.limits import RateLimits, Spent
from service.access.principal import ANYBODY, Principal
from service.errors import Forbidden, ServiceError, TooManyRequests, Unauthorized, Unavailable, problem_response
from service.settings import GatewaySettings

COOKIE = "loomweight_key"
_SAFE = {"GET", "HEAD", "OPTIONS"}
_log = logging.getLogger(__name__)


class _Pass(NamedTuple):
    principal: Principal
    spent: Spent | None = None


class Access:
    """Decides who a token belongs to; blocking."""

    def __init__(self, settings: GatewaySettings, keys: Keys, limits: RateLimits) -> None:
        self.settings = settings
        self.keys = KnownKeys(keys, settings.key_cache_s)
        self.limits = limits
        self._fixed = [
            (digest(given.get_secret_value()), principal)
            for given, principal in (
                (settings.bootstrap_key, Principal(BOOTSTRAP, BOOTSTRAP, frozenset(SCOPES))),
                (settings.metrics_key, Principal(METRICS, METRICS, frozenset({"metrics"}))),
            )
            if given
        ]

    def principal(self, token: str, address: str) -> Principal:
        """Return whose token this is. Raises `Unauthorized`, `TooManyRequests`, `StoreUnavailable`."""
        given = digest(token)
        for known, principal in self._fixed:
            if hmac.compare_digest(known, given):
                return principal
        most = self.settings.wrong_keys_per_minute
        if not self.keys.remembers(token):  # behind a proxy all may have one address: known keys go on
            self._check_guesses(address, most)
        key = self.keys.find(token)
        if key is None:
            try:
                self.limits.guessed_wrong(address, most)
            except RedisError as error:
                _log.warning("a wrong key is not counted: %s", error)
            raise Unauthorized("This API key is not known, was revoked or is over its time.", known=False)
        return _principal(key)

    def _check_guesses(self, address: str, most: int) -> None:
        try:
            tried = self.limits.may_guess(address, most)
        except RedisError as error:
            _log.warning("wrong keys are not counted: %s", error)
            return
        if not tried.granted:
            raise TooManyRequests(
                "Too many wrong keys came from this address. Wait before the next try.", tried.retry_after_s
            )

    def enter(self, method: str, path: str, token: str | None, address: str) -> _Pass:
        """Let a request pass, or raise the `ServiceError` that refuses it."""
        if path == "/metrics" and self.settings.open_metrics:
            return _Pass(ANYBODY)
        if token is None:
            raise Unauthorized("Send an API key: `Authorization: Bearer lw_…`.")
        principal = self.principal(token, address)
        scopes = rules.asked(method, path)
        if not principal.may(scopes):
            raise Forbidden(
                f"This API key lacks the scope {' or '.join(repr(scope) for scope in sorted(scopes))}.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{" ".join(sorted(scopes))}"'},
            )
        per_minute = principal.allowance.per_minute or self.settings.requests_per_minute
        try:
            spent = self.limits.request(principal.key_id, per_minute)
        except RedisError as error:
            _log.warning("a request is not counted: %s", error)  # what needs Redis says so itself
            return _Pass(principal)
        if not spent.granted:
            raise TooManyRequests(
                f"This API key may send {per_minute:,} requests a minute.", spent.retry_after_s, spent.headers()
            )
        return _Pass(principal, spent)


class Gate:
    """The middleware."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        spent: Spent | None = None
        scope["state"]["principal"] = ANYBODY
        try:
            if not self._access.settings.require_keys:
                check_local(scope["method"], headers, anywhere=self._access.settings.open_to_network_without_keys)
            elif not rules.is_open(scope["method"], scope["path"]):
                token = bearer(headers) or cookie(scope["method"], headers)
                address = neighbourhood((scope.get("client") or ("",))[0])
                principal, spent = await run_in_threadpool(
                    self._access.enter, scope["method"], scope["path"], token, address
                )
                scope["state"]["principal"] = principal
        except StoreUnavailable:
            await _refuse(Unavailable("Keys cannot be looked up now. Send the request again."), scope, receive, send)
            return
        except ServiceError as error:
            await _refuse(error, scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if spent and message["type"] == "http.response.start":
                marked = MutableHeaders(scope=message)
                marked.update(spent.headers())
                marked.setdefault("Cache-Control", "no-store")  # it is this key's, and nobody else's
            await send(message)

        await self._app(scope, receive, send_marked)


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    scope["route"] = SimpleNamespace(path=rules.template(scope["path"]))  # the router never sees it, the metrics do
    await problem_response(scope["state"]["request_id"], error)(scope, receive, send)


def _principal(key: ApiKey) -> Principal:
    return Principal(key.id, key.owner, frozenset(key.scopes), key.allowance, key.webhook_versions)


def bearer(headers: Headers) -> str | None:
    """Return the token of the Authorization header."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def cookie(method: str, headers: Headers) -> str | None:
    """Return the token of the console's cookie; what changes something must come from the console itself."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    if found is None:
        return None
    if method not in _SAFE and not same_origin(headers):
        raise Forbidden("The console's cookie works from the console alone. Send the key as a bearer token.")
    return found.value


def same_origin(headers: Headers) -> bool:
    """Whether a browser says that the request comes from a page of ours."""
    origin = headers.get("origin")
    return origin is not None and _netloc(origin) == headers.get("host", "").lower()


def check_local(method: str, headers: Headers, *, anywhere: bool) -> None:
    """Refuse what a foreign web page sends to a service without keys. Raises `Forbidden`."""
    host = headers.get("host", "")
    if not anywhere and not is_local_name(host):
        raise Forbidden(
            f"Without API keys this service answers to localhost, not to {host[:100]!r}. See docs/security.md."
        )
    foreign = "origin" in headers and not same_origin(headers)
    if foreign or (method not in _SAFE and headers.get("sec-fetch-site") == "cross-site"):
        raise Forbidden("Without API keys this service takes no requests from other web sites.")


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine for itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address (or name)."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def neighbourhood(address: str) -> str:
    """Return what one client can change at will as one: an IPv4 address, or the /64 around an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
