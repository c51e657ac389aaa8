"""A little of `make fuzz` with every run of the tests."""

from pathlib import Path

from tests.service.fuzzing import answered, failures, fuzz, target


def test_a_few_hundred_requests_from_the_document(redis_url: str, tmp_path: Path) -> None:
    with target(redis_url, tmp_path) as (gateway, token):
        status, text = fuzz(gateway, token, seed=7, seconds=15, examples=12)
        counts = answered(gateway)
    assert status == 0, text
    assert failures(text) == []
    assert not [status for status in counts["status"] if status.startswith("5") and status != "503"]
    assert counts["status"]["200"] > 0  # how many fit into the time is the machine's business
