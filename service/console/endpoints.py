"""`/`: the console page and its two files."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

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
