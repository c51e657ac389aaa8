from pathlib import Path

import httpx
import pytest

from benchmarks import similarity_latency as bench
from loomweight.similarity import Similarity
from tests.service.gateway import write_bundle


def test_a_bundle_without_the_part_gets_one_in_a_copy(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    with bench.with_part(bundle) as (copy, trained):
        assert not trained
        assert Similarity.load(copy).id
        with bench.with_part(copy) as again:
            assert again == (copy, True)
    assert not (bundle / "similarity").exists()
    assert not copy.exists()


def test_files_have_the_sizes_they_are_named_for() -> None:
    assert 40_000 < len(bench.small(0)) < 60_000
    assert 44_000_000 < len(bench.large(0)) < 46_000_000


def test_a_job_is_waited_for() -> None:
    answers = [
        httpx.Response(202, json={"status": "queued"}, headers={"location": "/jobs/1"}),
        httpx.Response(200, json={"status": "running"}),
        httpx.Response(200, json={"status": "succeeded", "result": {"similarity": 0.5}}),
    ]
    with httpx.Client(transport=httpx.MockTransport(lambda _: answers.pop(0)), base_url="http://x") as http:
        milliseconds, found = bench.compare(http, b"a", b"b")
    assert found == {"similarity": 0.5}
    assert milliseconds > 0
    failed = httpx.Response(202, json={"status": "failed"}, headers={"location": "/jobs/1"})
    with (
        httpx.Client(transport=httpx.MockTransport(lambda _: failed), base_url="http://x") as http,
        pytest.raises(RuntimeError, match="failed"),
    ):
        bench.compare(http, b"a", b"b")


def test_rows(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "large", lambda seed: bench.small(seed))
    with bench.with_part(tiny_bundle) as (bundle, _), bench.service(bundle) as address:
        rows = bench.measure(address, 2, 1)
    assert [(r["measure"], r["n"], r["bar_ms"]) for r in rows] == [("two cnn-l", 2, 60.0), ("two of 45 MB", 1, 3_000.0)]
    assert all(0 < r["p50"] <= r["p95"] and r["workers_peak_mb"] > 50 for r in rows)
