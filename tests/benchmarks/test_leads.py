import pytest

from benchmarks import leads


def made() -> dict[str, leads.Cell]:
    accuracy = {
        leads.ALONE: [0.5, 0.7, 0.9],
        leads.ANSWER: [0.6, 0.8, 1.0],
        "trunk probe": [0.4, 0.5, 0.6],
        "fine-tune 100": [0.6, 0.8],  # ahead of `alone` where it ran, behind its mean over all tasks
        "nearest class mean": [0.9, 0.9, 0.9],
    }
    seconds = {name: [0.1 * (i + 1) for i in range(len(v))] for name, v in accuracy.items()}
    seconds["fine-tune 100"] = [1.0, 4.0]
    return leads.cells(accuracy, seconds)


def test_differences_are_paired_by_task_and_over_the_tasks_of_the_rival() -> None:
    cells = made()
    assert cells["trunk probe"]["generated_alone_ahead_by"]["mean"] == pytest.approx(0.2)
    assert cells["fine-tune 100"]["generated_alone_ahead_by"]["mean"] == pytest.approx(-0.1)
    assert cells["fine-tune 100"]["generated_alone_ahead_by"]["n"] == 2
    assert cells["fine-tune 100"]["answer_ahead_by"]["high"] == pytest.approx(0, abs=1e-12)
    assert cells[leads.ALONE]["generated_alone_ahead_by"]["high"] == 0


def test_wall_time_is_beside_fine_tunings_on_the_same_tasks() -> None:
    assert made()["trunk probe"]["times_fine_tune_100"] == pytest.approx((0.1 / 1 + 0.2 / 4) / 2)
    assert made()["trunk probe"]["seconds"] == pytest.approx(0.2)
    heads = leads.cells({leads.ALONE: [0.5], leads.ANSWER: [0.5]}, {leads.ALONE: [1.0], leads.ANSWER: [1.0]})
    assert "times_fine_tune_100" not in heads[leads.ALONE]


def test_the_hardest_rival_is_never_one_of_ours() -> None:
    found = leads.of_row(made(), own={leads.ALONE, leads.ANSWER}, other_class=["nearest class mean"])
    assert found[leads.ALONE]["same architecture"]["over"] == "fine-tune 100"
    assert found[leads.ALONE]["any"]["over"] == "nearest class mean"
    assert found[leads.ANSWER]["any"]["mean"] == pytest.approx(-0.1)
    nobody = leads.of_row(made(), own=made().keys(), other_class=())
    assert nobody[leads.ANSWER] == {"same architecture": None, "any": None}
