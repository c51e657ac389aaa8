"""`/jobs`: look, follow, cancel."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.access.principal import PrincipalDep
from service.errors import Conflict, Unprocessable, problems
from service.jobs.schemas import Job, JobList
from service.jobs.service import event_id, find, follow
from service.state import ServicesDep
from workers.jobs import Event, UnknownJob
from workers.messages import TERMINAL, JobStatus

router = APIRouter(tags=["jobs"])

_EVENT = {
    "type": "object",
    "description": "One event.",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "description": "Give the last one as `Last-Event-ID` to go on after it."},
        "event": {"type": "string", "enum": ["status", "progress"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


@router.get("/jobs", responses=problems(422, 503))
def list_jobs(
    services: ServicesDep,
    principal: PrincipalDep,
    status: Annotated[JobStatus | None, Query(description="Only jobs with this status.")] = None,
    cursor: Annotated[
        str | None, Query(pattern="^[0-9]{0,15}$", description="`next_cursor` of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobList:
    """Jobs, newest first."""
    try:
        page = services.jobs.page(status, cursor, limit, owner=principal.sees)
    except ValueError as error:
        raise Unprocessable("The cursor is not one of ours; leave it out to start anew.", pointer="/cursor") from error
    return JobList(jobs=[Job.of(job) for job in page.jobs], next_cursor=page.next_cursor)


@router.get("/jobs/{job_id}", response_model=Job, responses=problems(404, 410, 503))
async def get_job(services: ServicesDep, principal: PrincipalDep, job_id: str) -> Response:
    """How a job stands, with its result once it has succeeded; `Retry-After` says when to look again."""
    record = await run_in_threadpool(find, services, principal, job_id)
    headers = {"Cache-Control": "no-store"}
    if record.status not in TERMINAL:
        headers["Retry-After"] = "1"
    return Response(Job.of(record).model_dump_json(), headers=headers, media_type="application/json")


@router.post(
    "/jobs/{job_id}/cancel",
    responses={202: {"model": Job, "description": "The worker was asked to stop."}, **problems(404, 409, 410, 503)},
)
def cancel_job(services: ServicesDep, principal: PrincipalDep, job_id: str, response: Response) -> Job:
    """Stop a job: at once if it waits, between two denoising steps if it runs."""
    record = find(services, principal, job_id)
    try:
        status = services.jobs.request_cancel(job_id)
    except UnknownJob:
        status = record.status
    if status == "running":
        response.status_code = HTTPStatus.ACCEPTED
    elif status != "canceled":
        raise Conflict(f"The job has already ended: {status}.")
    return Job.of(find(services, principal, job_id))


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events `status` and `progress`, data as JSON; ends with the job.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {"description": "The job has ended, and the client has seen it: do not connect again."},
        **problems(404, 410, 503),
    },
)
async def follow_job(
    services: ServicesDep,
    principal: PrincipalDep,
    job_id: str,
    last_event_id: Annotated[str | None, Header(description="Replay what followed this event.")] = None,
) -> Response:
    """Everything that happened to a job and what happens next, as server-sent events."""
    record = await run_in_threadpool(find, services, principal, job_id)
    after = event_id(last_event_id)
    if record.status in TERMINAL and not await run_in_threadpool(services.jobs.events, job_id, after, 1):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    events = follow(services.followers, services.jobs.events_key(job_id), after, services.settings.keepalive_s)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_server_sent(events), media_type="text/event-stream", headers=headers)


async def _server_sent(batches: AsyncIterator[list[Event]]) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    async for events in batches:
        yield "".join(f"id: {e.id}\nevent: {e.name}\ndata: {e.data}\n\n" for e in events) or ": still here\n\n"
