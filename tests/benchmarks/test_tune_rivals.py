import json
from pathlib import Path

from benchmarks import tune_rivals
from trainer import arms

RESULT = json.loads(Path("docs/results/tune_rivals.json").read_text())


def test_what_the_arms_use_is_what_was_chosen() -> None:
    by_images: dict[str, dict[int, float]] = {}
    for row in RESULT["rows"]:
        if row["arm"] in arms.JUDGES:
            assert arms.JUDGES[row["arm"]] == row["chosen"]
        else:
            by_images.setdefault(row["arm"], {})[row["shots"]] = float(row["chosen"])
    assert by_images == arms.LEARNING_RATES


def test_the_choice_was_made_on_validation_classes_and_over_the_whole_grid() -> None:
    assert all(name.endswith("validation classes") for name in RESULT["settings"]["sets"])
    for row in RESULT["rows"]:
        known = tune_rivals.JUDGES if row["arm"] in arms.JUDGES else [f"{lr:g}" for lr in tune_rivals.RATES[row["arm"]]]
        assert set(row["grid"]) == set(known)


def test_every_rate_of_every_arm_is_tried_once() -> None:
    tried = [(arm, lr) for (_, lr), passed in tune_rivals.trainings(tune_rivals.RATES).items() for arm in passed]
    assert sorted(tried) == sorted((arm, lr) for arm, rates in tune_rivals.RATES.items() for lr in rates)
    assert set(tune_rivals.RATES) == set(arms.LEARNING_RATES)


def test_trainings_of_one_start_and_rate_are_one() -> None:
    found = tune_rivals.trainings(["fine-tune 10", "fine-tune 1000", "scratch 1000"])
    assert found["fine-tune", 1e-3] == ["fine-tune 10", "fine-tune 1000"]
    assert found["fine-tune", 1e-2] == ["fine-tune 10"]
    assert found["scratch", 1e-3] == ["scratch 1000"]


def test_the_best_mean_is_chosen() -> None:
    (row,) = tune_rivals.rows_of({("scratch 100", 5): {"0.001": [0.2, 0.9], "0.01": [0.5, 0.5]}})
    assert (row["chosen"], row["shots"]) == ("0.001", 5)


def test_rows_of_other_arms_are_kept_if_this_run_would_make_them_the_same(tmp_path: Path) -> None:
    out = tmp_path / "tune.json"
    out.write_text(json.dumps({"bundle": "b-1", "settings": {"tasks": 2}, "rows": [{"arm": "scratch 100"}]}))
    assert tune_rivals.earlier(out, "b-1", {"tasks": 2}) == [{"arm": "scratch 100"}]
    assert tune_rivals.earlier(out, "b-1", {"tasks": 3}) == []
    assert tune_rivals.earlier(out, "b-2", {"tasks": 2}) == []
    assert tune_rivals.earlier(tmp_path / "none.json", "b-1", {}) == []
