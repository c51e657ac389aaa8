"""Waiting for jobs to end: one subscription to Redis for all clients of a process that wait.

Every gateway hears of every end, from the step in which it happens (`workers/job_scripts.py`). What is published while
nobody is connected is lost, so whoever waits looks at the record first, and again now and then.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis import RedisError
from redis.asyncio import Redis as AsyncRedis

_AGAIN_S = 1
_log = logging.getLogger(__name__)


class Endings:
    """Who waits for which job, in one event loop."""

    def __init__(self, redis: AsyncRedis, channel: str) -> None:
        self._redis, self._channel = redis, channel
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def heard_of(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set when the job may have ended: look at its record then."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def run(self) -> None:
        """Listen, for as long as the app runs."""
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        message = await pubsub.get_message(timeout=_AGAIN_S) or {}
                        if message.get("type") == "message":
                            self._wake([message["data"]])
                        elif message:  # subscribed, perhaps again: something may have ended before
                            self._wake(list(self._waiting))
            except RedisError as error:
                _log.warning("ends of jobs are not heard of: %s", error)
            except Exception:  # noqa: BLE001 - whatever it was, who waits goes on looking, and this goes on listening
                _log.exception("ends of jobs are not heard of")
            await asyncio.sleep(_AGAIN_S)

    def _wake(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            for event in self._waiting.get(job_id, ()):
                event.set()


async def within(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, not longer than so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
