import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main
from cli.store import copy_objects
from model_store.local import LocalStore
from tests.servers import S3Server


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["store", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_bucket_is_made_and_a_store_is_backed_up_and_restored(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a service that is configured with a bucket that does not exist
    monkeypatch.setenv("LOOMWEIGHT_STORE_URL", f"s3://backup-{uuid.uuid4().hex}/live")
    monkeypatch.setenv("LOOMWEIGHT_S3_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("LOOMWEIGHT_S3_ACCESS_KEY", s3_server.access_key)
    monkeypatch.setenv("LOOMWEIGHT_S3_SECRET_KEY", s3_server.secret_key)
    assert run("init") == run("init") == "The store is ready.\n"
    made = LocalStore(tmp_path / "made")
    made.put("models/m/weights.safetensors", b"weights", content_type="a/b", metadata={"one": "1"})
    made.put("models/m/card.json", b"{}", content_type="application/json")
    # When objects go in, out to a backup, and in again
    assert run("copy", "--from", str(tmp_path / "made")) == "2 objects copied, 0 were there.\n"
    assert run("copy", "--to", str(tmp_path / "backup")) == "2 objects copied, 0 were there.\n"
    assert run("copy", "--from", str(tmp_path / "backup")) == "0 objects copied, 2 were there.\n"
    # Then everything is as it was
    backup = LocalStore(tmp_path / "backup")
    assert backup.get("models/m/weights.safetensors") == b"weights"
    info = backup.head("models/m/weights.safetensors")
    assert (info.content_type, info.metadata) == ("a/b", {"one": "1"})


def test_what_differs_is_copied_and_cards_come_last(tmp_path: Path) -> None:
    source, target = LocalStore(tmp_path / "a"), LocalStore(tmp_path / "b")
    order: list[str] = []
    for key in ("models/m/card.json", "models/m/weights.safetensors", "inputs/j/x"):
        source.put(key, b"new", content_type="a/b")
    target.put("inputs/j/x", b"old", content_type="a/b")
    put = target.put
    target.put = lambda key, *a, **k: (order.append(key), put(key, *a, **k))[1]  # type: ignore[method-assign]
    assert copy_objects(source, target) == (3, 0)
    assert order[-1] == "models/m/card.json"
    assert target.get("inputs/j/x") == b"new"


def test_one_side_is_the_configured_store() -> None:
    assert CliRunner().invoke(main, ["store", "copy"]).exit_code == 2
