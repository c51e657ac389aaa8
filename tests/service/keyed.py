"""A gateway that asks for keys, and clients with keys of their own."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from service.access.keys import Issued, Keys
from tests.service.conftest import Start
from tests.service.gateway import Gateway

BOOTSTRAP = "bootstrap-key-for-tests-0123456789abcdef"
METRICS = "metrics-key-for-tests-0123456789abcdef-x"


class Keyed:
    """`gateway` with keys on; `made` opens a client with a new key."""

    def __init__(self, gateway: Gateway, stack: ExitStack) -> None:
        self.gateway = gateway
        self.keys = Keys(gateway.store)
        self.issued: list[Issued] = []
        self._stack = stack

    def made(self, *scopes: Any, **options: Any) -> httpx.Client:
        self.issued.append(self.keys.create("test", scopes or ("read", "generate", "similarity"), **options))
        return self.client(self.issued[-1].token)

    def client(self, token: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._stack.enter_context(httpx.Client(base_url=self.gateway.url, headers=headers, timeout=10))


@pytest.fixture
def keyed(start: Start) -> Iterator[Keyed]:
    with ExitStack() as stack:
        yield Keyed(start(require_keys=True, key_cache_s=0, bootstrap_key=BOOTSTRAP, metrics_key=METRICS), stack)
