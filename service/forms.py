"""Bodies with files of up to many megabytes, read while they come in; what is not a file stays small."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.errors import Malformed, ServiceError, TooLarge, Unprocessable

_FIELD_BYTES = 100_000


def media_type(request: Request) -> str:
    """Return what the body claims to be, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def form(request: Request, *, files: int, fields: int) -> AsyncIterator[FormData]:
    """Read a multipart form of so many files and fields; its files last until the block ends."""
    try:
        async with request.form(max_files=files, max_fields=fields, max_part_size=_FIELD_BYTES) as data:
            yield data
    except ServiceError:
        raise
    except HTTPException as error:
        if error.detail.startswith("Too many"):
            raise Unprocessable(f"{error.detail} The form may have {files} files and {fields} fields.") from None
        if error.detail.startswith("Part exceeded"):
            raise TooLarge(f"{error.detail} A field that is no file may have {_FIELD_BYTES:,} bytes.") from None
        raise Malformed(f"The form cannot be read: {error.detail}") from None


async def small_body(request: Request) -> bytes:
    """Return a body that has no business to be large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FIELD_BYTES:
            raise TooLarge(f"A JSON body may have {_FIELD_BYTES:,} bytes here.")
    return body


def one(data: FormData, name: str) -> UploadFile | str | None:
    """Return the one value of a field; None for a field left empty. Raises `Unprocessable` for several."""
    values = [v for v in data.getlist(name) if (v if isinstance(v, str) else v.filename or v.size)]
    if len(values) > 1:
        raise Unprocessable(f"`{name}` is given twice.", pointer=f"/{name}")
    return values[0] if values else None


def no_others(data: FormData, known: frozenset[str]) -> None:
    """Raise `Unprocessable` for a field that nobody knows."""
    if unknown := sorted(set(data) - known):
        expected = ", ".join(f"`{name}`" for name in sorted(known))
        raise Unprocessable(
            f"There is no field {unknown[0][:100]!r}; there are {expected}.", pointer=f"/{unknown[0][:100]}"
        )
