import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import fewshot, leads, rivals
from benchmarks.fewshot import Plan
from trainer.evalsets import EvalSet, Problem

PLAN = Plan("cnn-l", "digits", 1, tasks=4, hundred=2, thousand=1)


def a_set() -> EvalSet:
    x, features = torch.rand(12, 6, 3, 32, 32), torch.rand(12, 6, 8)
    return EvalSet("made", x, features, x, features)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Not one: the arms are pretended, and say which task they were asked and how long they might train."""

    def generated(generator: Any, target: str, p: Problem) -> rivals.Outcomes:
        return dict.fromkeys((leads.ALONE, leads.ANSWER, "conditional mean", "closed form"), (p.seed / 10, 0.1))

    def every(generator: Any, target: str, p: Problem, *, most_steps: int) -> rivals.Outcomes:
        steps = [n for n in (10, 100, 1000) if n <= most_steps]
        return {"nearest class mean": (1.0, 0.01), **{f"fine-tune {n}": (p.seed / 20, n / 100) for n in steps}}

    monkeypatch.setattr(fewshot, "generated", generated)
    monkeypatch.setattr(rivals, "every", every)
    return SimpleNamespace(looms={"cnn-l": SimpleNamespace(spec=SimpleNamespace(trunk=("conv1",)))})


def test_dear_arms_run_on_the_first_tasks_only(generator: Any) -> None:
    r = fewshot.row(generator, a_set(), PLAN)
    assert {a: c["n"] for a, c in r["arms"].items() if a.startswith("fine")} == {
        "fine-tune 10": 4,
        "fine-tune 100": 2,
        "fine-tune 1000": 1,
    }
    assert r["arms"]["fine-tune 100"]["generated_alone_ahead_by"]["mean"] == pytest.approx(0.025)  # of tasks 0 and 1


def test_the_closed_form_counts_as_a_rival_and_the_conditional_mean_does_not(generator: Any) -> None:
    found = fewshot.row(generator, a_set(), PLAN)["leads"][leads.ALONE]
    assert found["same architecture"]["over"] in ("closed form", "fine-tune 1000")
    assert found["any"]["over"] == "nearest class mean"


def test_a_row_says_how_to_make_it_alone(generator: Any) -> None:
    r = fewshot.row(generator, a_set(), PLAN)
    assert r["only"] == "digits/cnn-l/1"
    assert Plan(**r["plan"]) == PLAN
    assert (r["ways"], r["shots"]) == (10, 1)
    assert json.loads(json.dumps(r)) == r


def options(**others: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"tasks": {"cnn-l": 4, "head": 9}, "hundred": 2, "thousand": 1, **others})


def test_every_target_set_and_number_of_images_is_a_row() -> None:
    wanted = fewshot.plans(options())
    assert len({p.name for p in wanted}) == len(wanted) == 2 * 4 * 3
    assert {p.tasks for p in wanted if p.target == "head"} == {9}


def test_only_rows_that_would_be_made_the_same_way_are_kept(tmp_path: Path) -> None:
    wanted = fewshot.plans(options())
    rows = [{"only": p.name, "plan": asdict(p)} for p in (wanted[0], replace(wanted[1], tasks=99))]
    out = tmp_path / "fewshot.json"
    content = {"bundle": "b-1", "settings": {"learning_rates": fewshot._rates()}, "rows": rows}
    out.write_text(json.dumps(content))
    assert [r["only"] for r in fewshot.kept(out, "b-1", wanted)] == [wanted[0].name]
    assert fewshot.kept(out, "b-2", wanted) == []
    assert fewshot.kept(tmp_path / "none.json", "b-1", wanted) == []
    out.write_text(json.dumps({**content, "settings": {"learning_rates": {}}}))
    assert fewshot.kept(out, "b-1", wanted) == []
