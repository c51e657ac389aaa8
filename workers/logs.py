"""Logs of gateway and workers: as people read them, or one JSON object a line; both say which request and job.

Ids are context variables: whatever logs while a request or job is served says whose line it is, threads included. With
a job's message its request's id travels to the worker.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

Format = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
key_id: ContextVar[str | None] = ContextVar("key_id", default=None)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
_IDS = (request_id, job_id, key_id, trace_id)
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


class JsonLines(logging.Formatter):
    """One object a line; `extra={"fields": {…}}` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {variable.name: value for variable in _IDS if (value := variable.get()) is not None}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """A line for people, the ids at its end; line breaks of strangers cannot start a line of their own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without its traceback."""
        ids = "".join(f" {variable.name}={value}" for variable in _IDS if (value := variable.get()) is not None)
        return super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r") + ids


def configure(form: Format) -> None:
    """Send every logger's lines to standard error in this form; what servers set up for themselves gives way."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


@contextmanager
def serving(variable: ContextVar[str | None], value: str | None) -> Iterator[None]:
    """Say in every line from here on whose it is."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
