import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import results


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_an_interval_holds_the_mean_and_lies_among_the_values(values: list[float]) -> None:
    found = results.interval(values, samples=200)
    assert found["n"] == len(values)
    assert found["mean"] == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-9 <= found["low"] <= found["high"] <= max(values) + 1e-9


def test_an_interval_is_the_same_every_time_and_narrows_with_more_values() -> None:
    few, many = [0.0, 1.0] * 5, [0.0, 1.0] * 500
    assert results.interval(few) == results.interval(few)
    assert results.interval(many)["high"] - results.interval(many)["low"] < 0.1
    assert results.interval(few)["high"] - results.interval(few)["low"] > 0.4


def test_a_result_file_says_how_to_make_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--draws", "3"])
    path = tmp_path / "new" / "table.json"
    results.write(path, "table", "bundle-1", [{"a": 1}], draws=3)
    content = json.loads(path.read_text())
    assert content["command"].endswith("--draws 3")
    assert (content["bundle"], content["settings"], content["rows"]) == ("bundle-1", {"draws": 3}, [{"a": 1}])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--run", "runs/x", "--data", "sets", "--out", "a.json"], "--run runs/x --data DIR --out a.json"),
        (["--only", "digits/head/1", "*/cnn-l/*", "--data", "sets"], "--data DIR"),
        (["--data", "sets", "--only", "digits/head/1"], "--data DIR"),
    ],
)
def test_a_command_hides_where_the_data_lie_and_makes_the_whole_table(
    given: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["x", *given])
    assert results.command().endswith(f" {shown}")
