import json
from pathlib import Path

import pytest

from benchmarks import render
from tests.benchmarks import made


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, make in made.ALL.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(make()))
    path = tmp_path / "README.md"
    path.write_text("before\n\n<!-- results:cost -->\nstale\n<!-- end -->\n\nafter\n")
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "README", path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["render", *arguments])
    return render.main()


def test_a_marked_table_is_filled_and_what_surrounds_it_stays(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch) == 0
    text = readme.read_text()
    assert "| fine-tune 100 | 1,234 | 0.5 | 2.00 | 51 |" in text
    assert "stale" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\n\nafter\n")
    assert "docs/results/cost.json" in text
    assert "`b-1`" in text


def test_check_fails_on_a_difference_and_changes_nothing(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = readme.read_text()
    assert run(monkeypatch, "--check") == 1
    assert readme.read_text() == stale
    run(monkeypatch)
    assert run(monkeypatch, "--check") == 0
    assert run(monkeypatch) == 0
    readme.write_text(readme.read_text().replace("1,234", "1,235"))
    assert run(monkeypatch, "--check") == 1


@pytest.mark.parametrize("name", sorted(render.TABLES))
def test_every_table_is_one_grid(name: str) -> None:
    lines = [line for line in render.TABLES[name](made.ALL[name]()).splitlines() if line.startswith("|")]
    assert len(lines) >= 3
    assert len({line.count("|") for line in lines}) == 1


def test_an_interval_is_shown_as_half_its_width() -> None:
    assert "| generated | 20.0 ± 2.0 | 40.0 ± 2.0 | 30.0 ± 2.0 |" in render.better_start(made.better_start())


def test_what_is_undefined_is_called_so() -> None:
    assert "| -0.50 (-0.80 to -0.10) | undefined |" in render.novelty(made.novelty())
