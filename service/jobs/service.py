"""Jobs shown, and followed without a thread each."""

import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import cast

from redis import RedisError
from redis.asyncio import Redis as AsyncRedis
from starlette.concurrency import run_in_threadpool

from service.access.principal import Principal
from service.errors import Gone
from service.jobs.endings import within
from service.state import Services
from workers import filing
from workers.jobs import Event, UnknownJob, parse_events
from workers.messages import TERMINAL, JobRecord

START = "0-0"
_LOOK_EVERY_S = 10
"""However sure one is to hear of an end."""
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")


def find(services: Services, principal: Principal, job_id: str) -> JobRecord:
    """Return a job that may be seen, as Redis has it or, of one that ended, the store.

    Raises `UnknownJob`, for somebody else's too, and `Gone` for one forgotten.
    """
    record = _known(services, job_id)
    if record is None:
        owner = services.jobs.owner_of_forgotten(job_id)
        if owner is not None and principal.may_see(owner or None):
            detail = "The job ended long ago and was forgotten. Its models are where they were."
            raise Gone(detail)
    if record is None or not principal.may_see(record.owner):
        raise UnknownJob(job_id)
    return record


def _known(services: Services, job_id: str) -> JobRecord | None:
    with suppress(UnknownJob):
        return services.jobs.get(job_id)
    with suppress(UnknownJob):
        return filing.find(services.store, job_id)
    return None


def ends(event: Event) -> bool:
    """Whether nothing can follow this event."""
    return event.name == "status" and json.loads(event.data)["status"] in TERMINAL


def event_id(text: str | None) -> str:
    """Return a client's `Last-Event-ID`, or the start of the stream for one that we never gave out."""
    return text if text and _EVENT_ID.fullmatch(text) else START


async def follow(redis: AsyncRedis, key: str, after: str, silence_s: float) -> AsyncIterator[list[Event]]:
    """Yield the events that follow `after` as they come, nothing after `silence_s` without any; ends with the job.

    Ends as well when Redis does not answer, or has no connection left: clients take up again where they were.
    """
    ended = False
    while not ended:
        try:
            answer = await redis.xread({key: after}, block=max(1, int(silence_s * 1000)))
        except RedisError:
            return
        streams = cast("Sequence[tuple[str, Sequence[tuple[str, Mapping[str, str]]]]]", answer)
        events = parse_events(streams[0][1]) if streams else []
        if events:
            after = events[-1].id
            ended = ends(events[-1])
        yield events


async def wait(services: Services, job_id: str, seconds: float) -> JobRecord:
    """Return the record when the job has ended, or as it is when the time is up."""
    end = time.monotonic() + seconds
    with services.endings.heard_of(job_id) as event:
        while True:
            event.clear()
            record = await run_in_threadpool(services.jobs.get, job_id)
            left = end - time.monotonic()
            if record.status in TERMINAL or left <= 0:
                return record
            await within(event, min(left, _LOOK_EVERY_S))
