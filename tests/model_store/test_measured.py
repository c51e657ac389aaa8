from pathlib import Path

import pytest

from model_store.local import LocalStore
from model_store.measured import MeasuredStore
from model_store.store import NotFound, StoreUnavailable


class Away(LocalStore):
    def check(self) -> None:
        raise StoreUnavailable("away")


def test_every_call_passes_through_and_is_observed(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    store = MeasuredStore(Away(tmp_path), lambda operation, outcome, seconds: seen.append((operation, outcome)))
    info = store.put("a/b", b"12345", content_type="text/plain")
    assert store.get("a/b", start=1, end=3) == b"23"
    assert b"".join(store.stream("a/b")) == b"12345"
    assert store.head("a/b") == info
    assert [entry.key for entry in store.list("a/")] == ["a/b"]
    store.delete("a/b")
    with pytest.raises(NotFound):
        store.get("a/b")
    with pytest.raises(StoreUnavailable):
        store.check()
    operations = ["put", "get", "stream", "head", "list", "delete", "get", "check"]
    assert [operation for operation, _ in seen] == operations
    assert [outcome for _, outcome in seen] == ["ok"] * 7 + ["unavailable"]
