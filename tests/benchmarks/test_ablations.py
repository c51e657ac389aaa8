"""Table 6: differences are paired, finished rows are kept, and what a row is made from is what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ablations, loom_tasks, sweeps
from benchmarks.ablations_table import table
from benchmarks.loom_tasks import Judging, Scores
from loomweight.architectures import CNN_S
from tests.loomweight.made import loom, seeded
from trainer.evalsets import EvalSet
from trainer.recipe import load


def made_set(name: str, classes: int = 3) -> EvalSet:
    x = torch.rand(classes, 8, 3, 32, 32, generator=seeded())
    return EvalSet(name, x, torch.zeros(classes, 8, 24), x, torch.zeros(classes, 8, 24))


A, B, C = (Judging(made_set(n), n != "c") for n in "abc")


def scores(**ways: float) -> Scores:
    """Two tasks of one image a class in every set; b is easier by a tenth."""
    easier = {"a": 0.0, "b": 0.1, "c": 0.5}
    return {w: {s: {"1": [v + e, v + e + 0.2]} for s, e in easier.items()} for w, v in ways.items()}


def test_differences_are_paired_by_task() -> None:
    ours, theirs = scores(way=0.4), scores(other=0.3)
    cells = {c["set"]: c for c in ablations.cells(ours, "way", theirs, "other")}
    assert cells["a"]["accuracy"]["mean"] == pytest.approx(0.5)
    ahead = cells["a"]["ahead"]
    # Tasks differ by 20 points, their differences do not.
    assert (ahead["low"], ahead["high"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_what_chooses_is_pooled_and_what_reports_is_not() -> None:
    row = ablations.row("swept", "guidance", "way", scores(way=0.4), scores(other=0.4), "other", [A, B, C])
    (cell,) = row["pooled"]
    assert (cell["set"], cell["shots"], cell["accuracy"]["n"]) == ("choosing", 1, 4)
    assert cell["accuracy"]["mean"] == pytest.approx((0.5 + 0.6) / 2)
    assert cell["ahead"]["mean"] == pytest.approx(0.0)
    assert {c["set"] for c in row["sets"]} == {"a", "b", "c"}


def test_rows_made_anew_replace_theirs_and_stand_in_order() -> None:
    def one(part: str, name: str, way: str) -> dict[str, Any]:
        return {"part": part, "name": name, "way": way}

    old = [one("trained", "full", "old"), one("trained", "zero-head", "old"), one("swept", "guidance", "old")]
    new = [one("trained", "unconditional", "new"), one("trained", "full", "new")]
    found = [(r["name"], r["way"]) for r in ablations.merged(old, new)]
    assert found == [("full", "new"), ("unconditional", "new"), ("zero-head", "old"), ("guidance", "old")]


def test_scores_are_made_again_only_where_they_were_made_otherwise(tmp_path: Path) -> None:
    calls = []

    def make() -> Scores:
        calls.append(1)
        return scores(way=0.5)

    path = tmp_path / "sub" / "scores.json"
    first = ablations.remembered(path, {"tasks": 2}, make)
    assert ablations.remembered(path, {"tasks": 2}, make) == first
    assert len(calls) == 1
    ablations.remembered(path, {"tasks": 3}, make)
    assert len(calls) == 2


def content() -> dict[str, Any]:
    trained: dict[str, tuple[Scores, dict[str, Any]]] = {
        "full": (scores(**{"conditional mean": 0.5, "closed form": 0.4}), {"seconds": 1.0}),
        "zoo-40": (scores(**{"conditional mean": 0.45}), {"decoded_zoo_keeps": 0.93}),
    }
    swept = {f"one sample: {v}": 0.5 - 0.1 * (v != "1") for v in ("1", "2")}
    rows = ablations.trained_rows(trained, [A, B, C])
    rows += ablations.swept_rows("temperature", scores(**swept), [A, B, C])
    sets = [{"set": j.images.name, "role": ablations.ROLES[j.chooses], "ways": 3} for j in (A, B, C)]
    how = {"target": "cnn-l", "tasks": 2, "shots": [1, 5], "sets": sets}
    steps = {"steps": 300, "full_recipe_steps": 6000}
    return {"rows": rows, "settings": {"trained": how | steps, "swept": how}}


def test_the_table_has_accuracies_of_references_and_differences_of_the_others() -> None:
    text = table(content())
    grids = [[line for line in part.splitlines() if line.startswith("|")] for part in text.split("**Chosen")]
    for lines in grids:
        assert len({line.count("|") for line in lines}) == 1
    assert grids[0][0] == "| trained with | validation classes, 1 | validation classes, 5 | c, 1 | c, 5 |"
    assert "| the full recipe | 65.0 ± " in grids[0][2]
    assert "| the closed form alone | **-10.0 ± 0.0** | – | **-10.0 ± 0.0** | – |" in grids[0]
    assert any("(decoded models keep 93 %) | **-5.0 ± 0.0**" in line for line in grids[0])
    assert any(line.startswith("| temperature | one sample: 1 | 65.0 ± ") for line in grids[1])
    assert any(line.startswith("| temperature | one sample: 2 | **-10.0 ± 0.0**") for line in grids[1])


def test_every_loom_answers_the_same_tasks() -> None:
    task, again = (loom_tasks.draw(loom(CNN_S, seed=seed), made_set("a"), 2, 0) for seed in (0, 1))
    assert torch.equal(task.query, again.query)
    assert torch.equal(task.support.images, again.support.images)
    assert task.support.images.shape[:3] == (1, 3, 2)
    assert not torch.equal(task.query, loom_tasks.draw(loom(CNN_S), made_set("a"), 2, 1).query)


def test_a_view_is_one_for_all_images_of_a_set() -> None:
    class Bright:
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).mean(1, keepdim=True)

    s = made_set("a")
    seen = loom_tasks.through("invert", s, Bright())  # type: ignore[arg-type]
    torch.testing.assert_close(seen.train, 1 - s.train)
    torch.testing.assert_close(seen.test_features[..., 0], 1 - s.test.flatten(2).mean(2))
    assert seen.name == "a, invert"


@pytest.fixture
def arguments(tiny: Path, tmp_path: Path) -> list[str]:
    paths = {
        "--run": tiny / "run",
        "--bundle": tiny / "bundle",
        "--work": tmp_path / "work",
        "--out": tmp_path / "o.json",
    }
    how = {"--recipe": "tiny", "--target": "cnn-s", "--steps": 2, "--tasks": 2}
    return [str(a) for pair in (paths | how).items() for a in pair]


def test_rows_are_made_one_at_a_time_and_kept(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows() -> dict[str, Any]:
        return {f"{r['name']}/{r['way']}": r for r in json.loads((tmp_path / "o.json").read_text())["rows"]}

    # Given a row made alone
    ablations.main([*arguments, "--only", "unconditional"])
    first = rows()
    assert set(first) == {"full/conditional mean", "full/closed form", "unconditional/conditional mean"}
    # When a sweep is made later, and nothing can be trained any more
    monkeypatch.setattr("trainer.ablations.train", lambda *a: pytest.fail("trained again"))
    ablations.main([*arguments, "--only", "temperature", "unconditional"])
    # Then it stands beside the rows that were there, with what it was made on
    second = rows()
    assert {k: second[k] for k in first} == first
    written = json.loads((tmp_path / "o.json").read_text())
    assert set(second) - set(first) == {f"temperature/one sample: {t:g}" for t in sweeps.TEMPERATURES}
    assert written["bundle"].startswith("tiny-")
    assert written["settings"]["swept"]["sets"] == [{"set": "digits", "role": "reports", "ways": 10}]
    assert written["settings"]["trained"]["full_recipe_steps"] == load("tiny").targets["cnn-s"].diffusion.steps
    # And the table was shown
    assert "**Chosen at request time**" in capsys.readouterr().out
    # And rows made otherwise do not stand among them
    monkeypatch.undo()
    ablations.main([*arguments, "--steps", "1", "--only", "full"])
    assert set(rows()) == {k for k in second if not k.startswith("unconditional")}
