"""`loomweight keys`, and what `serve` does without them."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.keys import NotSecure, decide_on_keys, needs_keys
from cli.main import main
from cli.up import _kept_secret
from model_store.local import LocalStore
from service.access.keys import Keys


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str) -> None:
    monkeypatch.setenv("LOOMWEIGHT_STORE_URL", str(tmp_path))
    monkeypatch.setenv("LOOMWEIGHT_REDIS_URL", redis_url)
    monkeypatch.setenv("LOOMWEIGHT_REQUIRE_KEYS", "")
    monkeypatch.delenv("LOOMWEIGHT_REQUIRE_KEYS")


def loomweight(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(main, ["keys", *arguments])
    assert done.exit_code == status, done.output
    return done.output


def test_a_key_from_its_making_to_its_end(tmp_path: Path) -> None:
    made = loomweight("create", "laptop", "--scope", "read", "--owner", "team", "--days", "3", "--per-minute", "5")
    token = re.search(r"^token  (lw_\S+)$", made, re.MULTILINE)
    assert token
    key_id = token[1].split("_")[1]
    key = Keys(LocalStore(tmp_path)).get(key_id)
    assert (key.name, key.owner, key.scopes, key.allowance.per_minute) == ("laptop", "team", ("read",), 5)
    assert key.expires_at
    listed = loomweight("list")
    assert f"{key_id}  usable" in listed
    assert token[1] not in listed
    rotated = loomweight("rotate", key_id, "--grace-hours", "1")
    assert token[1] not in rotated
    assert key_id in rotated
    assert "within 5 s" in loomweight("revoke", key_id)
    assert f"{key_id}  revoked" in loomweight("list")


def test_keys_that_do_not_exist_and_owners_that_cannot(tmp_path: Path) -> None:
    for command in ("revoke", "rotate"):
        assert "no such key" in loomweight(command, "0123456789ab", status=1)
        assert "not an id" in loomweight(command, "../secrets", status=1)
    assert "not an owner" in loomweight("create", "k", "--owner", "a/b", status=1)


@pytest.mark.parametrize(
    ("host", "given", "needed"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("192.0.2.1", None, True),
        ("box.example", None, True),
        ("127.0.0.1", "true", True),
        ("127.0.0.1", "false", False),
    ],
)
def test_keys_are_needed_wherever_others_reach(
    host: str, given: str | None, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given:
        monkeypatch.setenv("LOOMWEIGHT_REQUIRE_KEYS", given)
    assert needs_keys(host) is needed


def test_an_open_door_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOMWEIGHT_REQUIRE_KEYS", "false")
    with pytest.raises(NotSecure, match="LOOMWEIGHT_OPEN_TO_NETWORK_WITHOUT_KEYS=true"):
        decide_on_keys("0.0.0.0")
    refused = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0"])
    assert refused.exit_code == 1
    assert "can be reached from other machines" in refused.output
    monkeypatch.setenv("LOOMWEIGHT_OPEN_TO_NETWORK_WITHOUT_KEYS", "true")
    decide_on_keys("0.0.0.0")


def test_secrets_of_one_machine_are_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.key"
    first = _kept_secret(path)
    assert len(first) >= 32
    assert _kept_secret(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
