import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from benchmarks import plots_similarity, similarity_checks, similarity_methods, similarity_protocols, transfer
from benchmarks.similarity_bench import OURS, Bench
from trainer import lps, modelset, recipe
from trainer.recipe import LpsRecipe, ModelSetRecipe

MODELS = ModelSetRecipe(
    domain="glyphs", tasks=8, withheld_tasks=0, seeds=4, networks=("plain-4-batch-relu",), epochs=3, per_class=40
)
LEARNING = LpsRecipe(
    steps=3, second_order_steps=3, tasks=3, models=2, probes=8, side=8, slots=2, protocol_tasks=4, protocol_seeds=3
)
SMALL = replace(recipe.load("tiny"), modelset=MODELS, lps=LEARNING)
ANOTHER = replace(SMALL, modelset=replace(MODELS, networks=("cnn-s", "residual-4-group-gelu"), epochs=1, seeds=4))


def run_with(tiny_run: Path, folder: Path, settings: recipe.Recipe) -> Path:
    folder.mkdir()
    (folder / "data").symlink_to(tiny_run / "data")
    modelset.build(settings, folder)
    return folder


@pytest.fixture(scope="module")
def bench(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    run = run_with(tiny_run, tmp_path_factory.mktemp("bench") / "run", SMALL)
    return Bench(SMALL, run, modelset.load(run))


@pytest.fixture(scope="module")
def mixed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with(tiny_run, tmp_path_factory.mktemp("mixed") / "run", ANOTHER)


def test_protocol_a_holds_all_methods_against_the_best_baseline(bench: Bench) -> None:
    rows = {r["method"]: r for r in similarity_protocols.protocol_a(bench)}
    assert {*similarity_methods.BASELINES, *similarity_methods.CONTROLS, *similarity_methods.UPPER, OURS} <= set(rows)
    best = max((r for r in rows.values() if r["kind"] == "baseline"), key=lambda r: r["top1"]["mean"])
    assert best["ahead_of_best_baseline"]["mean"] == 0
    for row in rows.values():
        assert 0 <= row["top1"]["mean"] <= 1
        assert row["top1"]["n"] == 8
        lead = row["top1"]["mean"] - best["top1"]["mean"]
        assert row["ahead_of_best_baseline"]["mean"] == pytest.approx(lead)


def test_protocol_b_asks_for_tasks_that_training_had_no_class_of(bench: Bench) -> None:
    taken = {c for t in bench.split.train for c in t.classes}
    assert not any(taken & set(t.classes) for t in bench.unseen)
    rows = {r["method"]: r for r in similarity_protocols.protocol_b(bench)}
    assert "chain, task labels shuffled in training" in rows
    for row in rows.values():
        assert 0 <= row["map"]["mean"] <= 1
        assert row["rank1"]["mean"] <= row["rank5"]["mean"] <= row["rank10"]["mean"]
        assert row["map"]["n"] == len(bench.unseen)


def test_protocol_c_compares_across_architectures(bench: Bench, mixed: Path) -> None:
    rows = similarity_protocols.protocol_c(bench, mixed)
    assert {r["network"] for r in rows} == set(ANOTHER.modelset.networks)
    assert {r["method"] for r in rows} >= {OURS, "statistics and singular values, pooled", "chain, untrained"}


def test_protocol_d_relates_score_to_measured_gain(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(bench.unseen)
    monkeypatch.setattr(similarity_protocols.pairs, "relation", lambda a, b: float(abs(a.number - b.number)))
    monkeypatch.setattr(transfer, "SHORT", replace(transfer.SHORT, epochs=1))
    rows = {r["method"]: r for r in similarity_protocols.protocol_d(bench)}
    assert np.array(rows["measured"]["gain"]).shape == (count, count)
    assert np.array(rows[OURS]["scores"]).shape == (count, count)
    # and once measured, the gains are read back
    stored = np.load(bench.run / "lps" / "transfer.npy")
    again = transfer.gains(SMALL, bench.run, bench.models, bench.unseen, store=bench.run / "lps" / "transfer.npy")
    assert np.array_equal(stored, again)


def test_copies_are_exact_and_checks_have_their_shapes(bench: Bench, mixed: Path) -> None:
    (exact,) = similarity_checks.exactness(bench)
    assert exact["largest_error"] < 1e-5
    (matrix,) = similarity_checks.matrix(bench)
    assert np.array(matrix["scores"]).shape == (len(matrix["tasks"]),) * 2
    rows = similarity_checks.controls(bench, {"mixed": mixed})
    (own,) = [r for r in rows if r["method"] == OURS]
    assert own["above_chance"]["mean"] == pytest.approx(own["map"]["mean"] - own["chance"])
    curves = similarity_checks.curves(bench)
    assert {r["protocol"] for r in curves} == {"A", "B"}


def test_labels_shuffled_in_training_are_the_same_labels() -> None:
    task = [pair_task(i) for i in range(5)]
    models = tuple(modelset.SetModel(task[i % 5], i, "n", "adamw", 0.5, 0.5, 1.0) for i in range(20))
    mixed_up = similarity_protocols._mixed_labels(lps.Collection(models, ()), 0)
    assert sorted(m.task.number for m in mixed_up.models) == sorted(m.task.number for m in models)
    assert [m.task for m in mixed_up.models] != [m.task for m in models]


def pair_task(number: int) -> modelset.PairTask:
    return modelset.PairTask(number, (2 * number, 2 * number + 1), (f"a{number}", f"b{number}"), False)


def test_upper_bounds_find_a_model_in_itself(bench: Bench) -> None:
    models = bench.models.models[:2]
    tensors = [bench.models.tensors(m) for m in (*models, models[0])]
    images = torch.rand(12, 3, 32, 32)
    found = similarity_methods.by_running((*models, models[0]), tensors, images)
    for vectors in found.values():
        assert vectors[0] @ vectors[2] == pytest.approx(1)


def cell(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 5}


def test_figures_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    curves = [{"protocol": "B", "tasks": t, "models": m, "map": cell(0.5)} for t, m in ((5, 10), (30, 10), (30, 2))]
    curves += [{"protocol": "A", "tasks": 50, "models": m, "top1": cell(0.8)} for m in (2, 6)]
    scores = [[1.0, 0.2, 0.1], [0.2, 1.0, 0.3], [0.1, 0.3, 1.0]]
    spearman = {"value": 0.5, "low": 0.1, "high": 0.8, "tasks": 3}
    rows = {
        "matrix": [{"tasks": ["a / b", "a / b", "c / d"], "scores": scores}],
        "curves": curves,
        "b": [{"kind": "baseline", "method": "statistics", "map": cell(0.3)}],
        "d": [{"method": OURS, "scores": scores, "transfer_gain": spearman}, {"method": "measured", "gain": scores}],
    }
    drawn = plots_similarity.similarity(json.loads(json.dumps({"rows": rows})))
    assert set(drawn) == {"similarity-matrix", "similarity-curves", "similarity-transfer"}
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.svg")
        plt.close(figure)
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
    assert plots_similarity.similarity({"rows": {}}) == {}
