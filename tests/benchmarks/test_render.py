import json
from pathlib import Path

import pytest

from benchmarks import render, render_fewshot
from tests.benchmarks import made


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, make in made.ALL.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(make()))
    path = tmp_path / "README.md"
    path.write_text("before\n\n<!-- results:cost -->\nstale\n<!-- end -->\n\nafter\n")
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "MARKED", (path,))
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
def test_every_table_is_a_grid(name: str) -> None:
    source, table = render.TABLES[name]
    for part in table(made.ALL[source]()).split("\n\n"):
        lines = [line for line in part.splitlines() if line.startswith("|")]
        assert len(lines) in (0, *range(3, 30))
        assert len({line.count("|") for line in lines}) <= 1


def test_a_marked_table_may_share_its_result_file(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme.write_text("<!-- results:leads -->\n<!-- end -->\n<!-- results:fewshot -->\n<!-- end -->\n")
    assert run(monkeypatch) == 0
    assert readme.read_text().count("docs/results/fewshot.json)") == 2


def test_what_stands_beside_a_result_file_is_written_and_checked(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = readme.with_name("fewshot.md")
    run(monkeypatch)
    assert "| digits, 10-way, 1 |" in document.read_text()
    assert run(monkeypatch, "--check") == 0
    document.write_text(document.read_text().replace("+10.0", "+11.0"))
    assert run(monkeypatch, "--check") == 1
    document.unlink()
    assert run(monkeypatch, "--check") == 1


def test_leads_are_over_the_hardest_rival_and_a_rival_ahead_is_shown_so() -> None:
    text = render_fewshot.leads(made.fewshot())
    # of its own architecture the best rival is fine-tuning, on two tasks; nearest class mean keeps the encoder
    whole = "| fine-tune 100: 55.0 % | **+5.0 ± 0.0** | **+6.0 ± 0.0** | 2 | -10.0 ± 0.0 (nearest class mean) | 1.00 |"
    assert f"| digits, 10-way, 1 {whole}" in text
    assert "| digits, 10-way, 1 | nearest class mean: 70.0 % | -10.0 ± 0.0 | -9.0 ± 0.0 | 3 |" in text


def test_fewer_tasks_are_said() -> None:
    assert "| fine-tune 100 | 55.0 (2) | 55.0 (2) |" in render_fewshot.accuracies(made.fewshot())


def test_an_interval_is_shown_as_half_its_width() -> None:
    assert "| generated | 20.0 ± 2.0 | 40.0 ± 2.0 | 30.0 ± 2.0 |" in render.better_start(made.better_start())


def test_what_is_undefined_is_called_so() -> None:
    assert "| -0.50 (-0.80 to -0.10) | undefined |" in render.novelty(made.novelty())


def test_the_page_of_similarity_has_every_part() -> None:
    page = render.DOCUMENTS["similarity"](made.similarity())
    assert [line[3:4] for line in page.splitlines() if line.startswith("## ")][:4] == ["A", "B", "C", "D"]
    assert page.count("\n## ") == 8
    for part in page.split("## ")[1:]:
        assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) == 1
