"""Around every request: its id, its measurement, the limit on its body, and an answer to what nobody foresaw."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError, TooLarge, Unavailable, problem_response
from service.metrics import Metrics
from service.settings import GatewaySettings
from workers import logs, tracing

_FORM_BYTES = 100_000  # what surrounds the files of a form
_CHECKPOINTS = {"/models": 1, "/similarity": 2}
"""Paths whose POST carries so many checkpoints, which go to disk as they come in."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class Boundary:
    """The outermost layer that is ours."""

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: GatewaySettings) -> None:
        self._app = app
        self._metrics = metrics
        self._settings = settings
        self._inflight = _Inflight(settings.max_inflight_bytes)
        self._inflight_checkpoints = _Inflight(settings.max_inflight_checkpoint_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        # A task of the server's own serves each request, so nothing needs to be set back.
        logs.request_id.set(request_id)
        with tracing.span(scope["method"], carrier, path=scope["path"]) as span:
            await self._serve(scope, receive, send, request_id, began)
            if span is not None:
                route = getattr(scope.get("route"), "path", "unmatched")
                span.update_name(f"{scope['method']} {route}")

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str, began: float) -> None:
        headers = Headers(scope=scope)
        body = self._body(scope, receive)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = MutableHeaders(scope=message)
                marked["X-Request-ID"] = request_id
                marked["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > body.limit:
                await problem_response(request_id, body.too_large())(scope, receive, send_marked)
            else:
                await self._app(scope, body.receive, send_marked)
        except Exception:
            _log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id)
            if status:
                raise  # the answer has begun: only breaking it off tells the client
            error = ServiceError("An error that nobody foresaw. Report it with the request_id.")
            await problem_response(request_id, error)(scope, receive, send_marked)
        finally:
            body.close()
            route = getattr(scope.get("route"), "path", "unmatched")
            seconds = time.perf_counter() - began
            self._metrics.observe(scope["method"], route, status or 499, seconds)
            principal = scope["state"].get("principal")
            fields = {
                "method": scope["method"],
                "route": route,
                "path": scope["path"],
                "status": status or 499,
                "milliseconds": round(1e3 * seconds, 1),
                "key_id": principal.key_id if principal else None,
            }
            _log.info("%s %s: %d", scope["method"], scope["path"], status or 499, extra={"fields": fields})

    def _body(self, scope: Scope, receive: Receive) -> "_Body":
        files = _CHECKPOINTS.get(scope["path"], 0) if scope["method"] == "POST" else 0
        if not files:
            return _Body(receive, self._settings.max_body_bytes, self._inflight)
        limit = files * self._settings.max_checkpoint_bytes + _FORM_BYTES
        return _Body(receive, limit, self._inflight_checkpoints)


class _Inflight:
    """The bytes of all bodies of a kind that are being served: what bounds the memory, or disk, of the process."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0


class _Body:
    """Counts what comes in, and stops at the limits."""

    def __init__(self, receive: Receive, limit: int, inflight: _Inflight) -> None:
        self._receive = receive
        self.limit = limit
        self._inflight = inflight
        self._seen = 0

    async def receive(self) -> Message:
        message = await self._receive()
        arrived = len(message.get("body", b""))
        self._seen += arrived
        self._inflight.bytes += arrived
        if self._seen > self.limit:
            raise self.too_large()
        if self._inflight.bytes > self._inflight.limit:
            raise Unavailable("Too much is being uploaded at once. Send the request again a little later.")
        return message

    def too_large(self) -> TooLarge:
        return TooLarge(f"The body is over {self.limit:,} bytes. Send fewer or smaller files.")

    def close(self) -> None:
        self._inflight.bytes -= self._seen
