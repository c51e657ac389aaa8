"""`/`: the console page and its two files; `/session`: the API key of whoever uses it, as a cookie.

A page cannot send headers with event streams and links, and no script should be able to read a key that is kept: so
the browser keeps it, out of reach of scripts and of other sites, until it is closed.
"""

from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from service.access.gate import COOKIE, bearer, neighbourhood, same_origin
from service.errors import Forbidden, Unauthorized
from service.state import ServicesDep

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> FileResponse:
    """The page."""
    return FileResponse(_FOLDER / "index.html", headers=_HEADERS)


@router.get("/console.css")
async def style() -> FileResponse:
    """Its style."""
    return FileResponse(_FOLDER / "console.css", headers=_HEADERS)


@router.get("/console.js")
async def script() -> FileResponse:
    """Its behaviour."""
    return FileResponse(_FOLDER / "console.js", headers=_HEADERS, media_type="text/javascript")


@router.put("/session", status_code=HTTPStatus.NO_CONTENT)
async def sign_in(request: Request, response: Response, services: ServicesDep) -> None:
    """Keep the bearer token of this request as the console's cookie, if it is good."""
    if not same_origin(request.headers):
        raise Forbidden("Only the console signs in.")
    if not services.settings.require_keys:
        return
    token = bearer(request.headers)
    if token is None:
        raise Unauthorized("Send an API key: `Authorization: Bearer lw_…`.")
    address = neighbourhood(request.client.host if request.client else "")
    await run_in_threadpool(services.access.principal, token, address)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure, path="/")


@router.delete("/session", status_code=HTTPStatus.NO_CONTENT)
async def sign_out(response: Response) -> None:
    """Forget it."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
