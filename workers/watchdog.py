"""Ends a worker that is alive but no longer consumes, so that its supervisor starts a fresh one.

After a broker's restart, a Celery worker has been seen to reconnect and yet receive nothing. What counts is therefore
not the connection but the effect: messages wait, the worker is idle, and still it gets none.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from redis import Redis, RedisError

_log = logging.getLogger(__name__)
CLEAN_EXIT_S = 15.0


class Starvation:
    """Tells from repeated observations whether the worker starves."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: float | None = None

    def observe(self, waiting: int, busy: bool, now: float) -> bool:
        """Return whether messages have waited beside an idle worker at every look for `patience_s`."""
        if busy or not waiting:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= self._patience_s


def start(redis: Redis, queues: Sequence[str], is_busy: Callable[[], bool], patience_s: float) -> threading.Thread:
    """Watch from a thread; while Redis does not answer there is nothing to tell, and Celery retries for itself."""

    def watch() -> None:
        starvation = Starvation(patience_s)
        while True:
            time.sleep(patience_s / 6)
            try:
                waiting = sum(int(redis.llen(queue)) for queue in queues)
            except RedisError:
                continue
            if starvation.observe(waiting, is_busy(), time.monotonic()):
                _log.critical("%d messages wait and none arrives: the worker ends to be started afresh", waiting)
                _end()

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    return thread


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CLEAN_EXIT_S)
    os._exit(1)  # it does not even stop; the pool's processes die with their parent
