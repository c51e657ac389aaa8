"""Every error that a client can see, as an RFC 9457 problem document.

ServiceError                 carries status, slug (the end of its `type`), title; the detail says what to do
├── Malformed            400
├── Unauthorized         401   with WWW-Authenticate
├── Forbidden            403
├── NotFound             404
├── Conflict             409
├── Gone                 410
├── TooLarge             413
├── UnsupportedType      415
├── RangeNotSatisfiable  416
├── Unprocessable        422
├── TooManyRequests      429   with Retry-After
└── Unavailable          503   with Retry-After
"""

import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from redis import RedisError
from starlette.exceptions import HTTPException

from model_store import store
from workers import jobs
from workers.messages import PROBLEM_BASE, ErrorItem, JobError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
Responses = dict[int | str, dict[str, Any]]
"""What FastAPI takes as the `responses` of an endpoint."""
_log = logging.getLogger(__name__)


class Problem(JobError):
    """An RFC 9457 problem document."""

    request_id: str = Field(description="What to quote when reporting the problem; also in `X-Request-ID`.")


class ServiceError(HTTPException):
    """Base of what the gateway refuses. An HTTPException, so that FastAPI's own body parsing lets it through."""

    status: int = 500
    slug: str = "internal-error"
    title: str = "Something went wrong here"

    def __init__(self, detail: str, *, pointer: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(self.status, detail, headers)
        self.errors: tuple[ErrorItem, ...] = (ErrorItem(pointer=pointer, detail=detail),) if pointer else ()


class Malformed(ServiceError):
    """The request cannot be parsed."""

    status, slug, title = 400, "malformed-request", "The request cannot be read"


class Unauthorized(ServiceError):
    """No API key, or none that is good."""

    status, slug, title = 401, "unauthorized", "An API key is needed"

    def __init__(self, detail: str, *, known: bool = True) -> None:
        challenge = 'Bearer realm="loomweight"' + ("" if known else ', error="invalid_token"')
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class Forbidden(ServiceError):
    """Whoever asks may not do this."""

    status, slug, title = 403, "forbidden", "This is not allowed"


class NotFound(ServiceError):
    """There is no such thing."""

    status, slug, title = 404, "not-found", "There is no such thing"


class Conflict(ServiceError):
    """The request contradicts the state of things."""

    status, slug, title = 409, "conflict", "The request comes at the wrong time"


class Gone(ServiceError):
    """It was there, and time is up."""

    status, slug, title = 410, "expired", "It was there, and is no longer kept"


class TooLarge(ServiceError):
    """Something in the request is over a limit."""

    status, slug, title = 413, "too-large", "The upload is over a limit"


class UnsupportedType(ServiceError):
    """A format this service does not read."""

    status, slug, title = 415, "unsupported-media-type", "The format is not supported"


class RangeNotSatisfiable(ServiceError):
    """The range holds no byte."""

    status, slug, title = 416, "range-not-satisfiable", "The range lies outside the file"


class Unprocessable(ServiceError):
    """Readable, but it makes no sense."""

    status, slug, title = 422, "invalid-request", "The request cannot be served as it is"


class InvalidSamples(Unprocessable):
    """Readable samples that do not make a task."""

    slug, title = "invalid-samples", "The samples cannot be used"


class InvalidCheckpoint(Unprocessable):
    """A file that is no sound checkpoint."""

    slug, title = "invalid-checkpoint", "The checkpoint cannot be used"


class UnknownTarget(Unprocessable):
    """No such target in the bundle."""

    slug, title = "unknown-target", "There is no such target"


class KeyReused(Unprocessable):
    """An idempotency key came with another payload."""

    slug, title = "idempotency-key-reused", "The idempotency key belongs to another request"


class KeyInFlight(Conflict):
    """The first request with an idempotency key is not answered yet."""

    slug, title = "idempotency-key-in-flight", "The first request with this idempotency key is not answered yet"


class TooManyRequests(ServiceError):
    """An allowance is used up."""

    status, slug, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, retry_after_s: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, headers={**(headers or {}), "Retry-After": str(retry_after_s)})


class Unavailable(ServiceError):
    """A part that is needed does not answer now."""

    status, slug, title = 503, "unavailable", "The service cannot do this now"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": str(RETRY_AFTER_S)})


class QueueFull(Unavailable):
    """Too many jobs wait already."""

    slug, title = "queue-full", "The queue is full"


# What other layers raise, as a client should read it.
_TRANSLATED: dict[type[Exception], ServiceError] = {
    store.StoreUnavailable: Unavailable("The object store does not answer. Nothing was lost: send the request again."),
    store.NotFound: NotFound("It was there a moment ago, and was deleted."),
    store.Corrupt: ServiceError("The stored bytes are damaged, and are not given out."),
    RedisError: Unavailable("The job records do not answer. Send the request again, with an Idempotency-Key."),
    jobs.UnknownJob: NotFound("There is no such job, or it ended so long ago that it was forgotten."),
    jobs.QueueFull: QueueFull("Too many jobs wait already. Send the request again later."),
    jobs.KeyReused: KeyReused("This Idempotency-Key came with another payload before. Use a new key."),
    jobs.KeyInFlight: KeyInFlight("Wait for the answer to the first request with this Idempotency-Key, or ask again."),
}


def failed(error: JobError) -> ServiceError:
    """Turn the problem that a job ended with into the answer to the request that waited for it."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
    problem = ServiceError(error.detail, headers=headers)
    problem.status_code, problem.errors = error.status, error.errors
    problem.slug, problem.title = error.type.removeprefix(PROBLEM_BASE), error.title
    return problem


def problem_response(request_id: str, error: HTTPException) -> Response:
    """Turn an error into the answer."""
    status = error.status_code
    if isinstance(error, ServiceError):
        slug, title, items = error.slug, error.title, error.errors
    else:
        title = HTTPStatus(status).phrase
        slug, items = title.lower().replace(" ", "-"), ()
    problem = Problem(
        type=PROBLEM_BASE + slug, title=title, status=status, detail=error.detail, errors=items, request_id=request_id
    )
    return Response(problem.model_dump_json(), status, error.headers, MEDIA_TYPE)


def invalid(errors: Iterable[ErrorDetails | dict[str, Any]]) -> ServiceError:
    """Turn pydantic's errors into one of ours, with a pointer each; the rejected values are not repeated."""
    items = []
    for error in errors:
        if error["type"] == "json_invalid":
            return Malformed("The body is not valid JSON.")
        location = [str(part) for part in error["loc"]]
        if location and location[0] in ("body", "query", "path", "header"):
            location = location[1:]
        detail = error["msg"].removeprefix("Value error, ")
        items.append(ErrorItem(pointer="/" + "/".join(location), detail=detail))
    described = "; ".join(f"{item.pointer.strip('/') or 'request'}: {item.detail}" for item in items[:5])
    problem = Unprocessable(described + ("" if len(items) <= 5 else f"; and {len(items) - 5} more"))
    problem.errors = tuple(items[:100])
    return problem


def install_handlers(app: FastAPI) -> None:
    """Make the app answer every known error with a problem document; the unknown ones are the middleware's."""

    def answer(request: Request, error: HTTPException) -> Response:
        return problem_response(request.state.request_id, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if not isinstance(error, ServiceError) and error.status_code == HTTPStatus.NOT_FOUND:
            error = NotFound(f"Nothing is at {request.url.path}; see /docs for what is.")
        elif not isinstance(error, ServiceError) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "other methods")
            error.detail = f"{request.url.path} takes {allowed}, not {request.method}."
        return answer(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | ValidationError)
        return answer(request, invalid(error.errors()))

    async def on_translated(request: Request, error: Exception) -> Response:
        known = next(known for kind, known in _TRANSLATED.items() if isinstance(error, kind))
        if known.status >= 500:
            _log.warning("%s %s: %r", request.method, request.url.path, error)
        return answer(request, known)

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    for kind in _TRANSLATED:
        app.add_exception_handler(kind, on_translated)


_DESCRIPTIONS = {
    400: "Malformed.",
    401: "No API key, or none that is good.",
    403: "The API key lacks the scope.",
    404: "There is no such thing, or it is somebody else's.",
    409: "At the wrong time.",
    410: "It was there, and is no longer kept.",
    413: "Over a limit.",
    415: "A format that is not read.",
    416: "The range lies outside the file.",
    422: "Readable, but it makes no sense.",
    429: "An allowance is used up; `Retry-After` says when to try again.",
    503: "A part is down or full; `Retry-After` says when to try again.",
}


def problems(*statuses: int) -> Responses:
    """Document these errors for an endpoint; replaces FastAPI's own 422 schema."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _DESCRIPTIONS[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }
