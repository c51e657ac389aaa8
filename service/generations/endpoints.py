"""`POST /generate`."""

import re
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from service.access.principal import PrincipalDep
from service.errors import problems
from service.generations.schemas import GenerateForm, GenerateJson
from service.generations.service import create
from service.generations.uploads import read_upload
from service.jobs.once import REPLAYED, IdempotencyKey
from service.jobs.schemas import Job
from service.jobs.service import wait
from service.state import ServicesDep
from workers.messages import TERMINAL

router = APIRouter(tags=["generate"])
BODIES = (GenerateForm, GenerateJson)
"""Models of the body, for the OpenAPI schema: the body is read by hand, while it comes in."""

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)
_HEADERS = {
    "Location": {"description": "The job.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until it is worth asking.", "schema": {"type": "integer"}},
    **REPLAYED,
}


def _reference(name: str) -> dict[str, dict[str, str]]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


@router.post(
    "/generate",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "With `Prefer: wait=N`: the job, which has ended."},
        202: {"model": Job, "description": "The job waits or runs.", "headers": _HEADERS},
        **problems(400, 409, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": _reference(GenerateForm.__name__),
                "application/json": _reference(GenerateJson.__name__),
            },
        }
    },
)
async def generate(
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    prefer: Annotated[
        str, Header(description="`wait=N` holds the answer until the job ends or N seconds (60 at most) pass.")
    ] = "",
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a network from a few labelled images.

    Exactly one source: `samples` (files) with `labels`, one `dataset` file, or JSON `samples` in base64.
    """
    upload = await read_upload(request, services.settings)
    record, new = await run_in_threadpool(create, services, principal, upload, idempotency_key)
    headers = {"Location": f"/jobs/{record.id}"}
    if not new:
        headers["Idempotent-Replayed"] = "true"
    wanted = _WAIT.search(prefer)
    if wanted:
        seconds = min(int(wanted[1]), services.settings.max_wait_s)
        headers["Preference-Applied"] = f"wait={seconds}"
        record = await wait(services, record.id, seconds)
    done = wanted and record.status in TERMINAL
    if not done:
        headers["Retry-After"] = "1"
    status = HTTPStatus.OK if done else HTTPStatus.ACCEPTED
    return Response(Job.of(record).model_dump_json(), status, headers, "application/json")
