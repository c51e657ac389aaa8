"""The literature's tables on a small run in their setting: whole data sets, independent seeds, whole weights."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import literature, literature_arms, literature_tables, results
from benchmarks.literature_arms import Made, Seen
from benchmarks.seen_tasks import vector
from loomweight.bundle import Bundle
from loomweight.runtime import open_runtime
from trainer import bank, diffusion, export, recipe, set_encoder, shared, vae, zoo
from trainer.evalsets import Problem
from trainer.recipe import Recipe, TrainingRecipe

TINY = recipe.load("tiny")


def small() -> Recipe:
    """The recipe `table4` on the tiny recipe's data."""
    own = TINY.targets["cnn-s"]
    published = recipe.load("table4").targets["cnn-l"].diffusion
    target = replace(
        own,
        shared=TrainingRecipe(steps=0),
        zoo=replace(own.zoo, models=8, tasks="whole", init="independent", epochs=1),
        vae=replace(own.vae, steps=2, gate=0.0, behaviour=0.0),
        diffusion=replace(published, steps=5, tasks=2, width=32, layers=1, heads=2, max_classes=20, max_shots=2),
    )
    return replace(TINY, targets={"cnn-s": target})


@pytest.fixture(scope="module")
def made(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    run = tmp_path_factory.mktemp("table4")
    for part in ("data", "encoder"):
        (run / part).symlink_to(tiny_run / part)
    for stage in (shared.train, bank.build):
        stage(small(), run)
    zoo.build(small(), run, "cnn-s")
    for stage in (vae.train, set_encoder.train, diffusion.train):
        stage(small(), run)
    export.export(small(), run, run / "bundle")
    return Made.open(small(), run, run / "bundle")


def test_a_zoo_of_whole_data_sets_makes_the_published_table(made: Made, tmp_path: Path) -> None:
    rows, settings = literature.table4(made, Namespace(draws=2, samples=3, shots=2, spare=3))
    assert [(r["set"], r["seeds"], r["known"]) for r in rows] == [("glyphs", 4, 3), ("textures", 4, 4)]
    models = list(zoo.models(made.run, "cnn-s"))
    for r in rows:
        accuracies = [m.test_accuracy for m in models if m.task.variant.domain == r["set"]]
        assert r["arms"]["trained"]["mean"] == pytest.approx(sum(accuracies) / 4)
        assert r["arms"]["generated"]["n"] == 6
        assert r["arms"]["generated, best of 3"]["n"] == 2
        assert len(r["distances"]["generated"]) == 6
    assert "reconstruction, models held out" in rows[0]["arms"]
    # and its file renders to grids, whatever arms a row lacks
    results.write(tmp_path / "t.json", "table4", made.bundle.id, rows, **settings, published=[])
    grids = literature_tables.table4(json.loads((tmp_path / "t.json").read_text()))
    assert "| trained | " in grids
    assert "| median, zoo | " in grids
    held = next(line for line in grids.splitlines() if line.startswith("| reconstruction, models held out"))
    assert "±" not in held  # one model has no spread


def test_a_copy_is_told_from_a_network_of_its_own(made: Made) -> None:
    codes = vae.codes(made.loom.spec, list(zoo.models(made.run, "cnn-s")))[::2]
    s = Seen(made, codes[:3], codes[3:], (torch.zeros(0), torch.zeros(0)))
    copies = [vector(c.trunk, c.rows) for c in codes[:3]]
    found = literature_arms.distances(s, copies)
    assert found["ratio"] == pytest.approx(0, abs=1e-3)
    assert found["nearer_than_half"] == 1
    others = literature_arms.distances(s, [v + 10 for v in copies])
    assert others["nearer_than_half"] == 0
    assert others["ratio"] > 1
    assert set(found["medians"]) == {"generated", "zoo", "zoo, held out"}


def test_images_that_select_did_not_condition(made: Made) -> None:
    codes = vae.codes(made.loom.spec, list(zoo.models(made.run, "cnn-s")))[:1]
    s = Seen(made, codes, [], (torch.zeros(0), torch.zeros(0)))
    support, x, y = s.given(3, 4, 5)
    classes = len(codes[0].model.task.classes)
    assert support.images.shape[:3] == (1, classes, 3)
    assert y.tolist() == [c for c in range(classes) for _ in range(4)]
    own = support.images[0].flatten(0, 1).flatten(1)
    assert torch.cdist(made.loom.spec.adapt(x).flatten(1), own).min() > 1e-3


def test_every_head_is_judged_on_the_same_images(tiny_bundle: Path, tiny_run: Path) -> None:
    # Given a problem that two lines of scikit-learn solve
    bundle = Bundle.open(tiny_bundle)
    loom = bundle.loom("head")
    m = Made(TINY, tiny_run, bundle, loom, open_runtime(bundle, backend="torch", threads=1))
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, loom.spec.width, generator=generator)
    y = torch.arange(3).repeat_interleave(4)
    near, far = (centres[y] + 0.1 * torch.randn(12, loom.spec.width, generator=generator) for _ in range(2))
    images = torch.zeros(12, 3, 32, 32)
    found = literature_arms.heads(m, Problem(images, y, near, images, far, y, 3, 0))
    assert found["nearest class mean"] == found["logistic probe"] == 1
    assert set(found) - set(literature_arms.RIVALS) == {
        "generated",
        "generated, best of 8",
        "mean of 8 generated",
        "conditional mean",
    }
    assert all(0 <= a <= 1 for a in found.values())


def few() -> dict[str, object]:
    cells = {"generated": results.interval([0.4, 0.5]), "logistic probe": results.interval([0.6, 0.6])}
    leads = {"generated": {"logistic probe": results.interval([-0.2, -0.1]), "other": results.interval([0.1, 0.1])}}
    row = {"set": "s", "ways": 5, "shots": 1, "arms": cells, "leads": leads}
    return {"rows": [row], "settings": {"published": [{"what": "a lead", "points": 6.0, "source": "somebody"}]}}


def test_a_lead_is_over_the_better_rival() -> None:
    text = literature_tables.fewshot(few())
    assert "| s, 5-way, 1 | -15.0 ± 5.0 |" in text
    assert "Published: a lead: +6 (somebody)." in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 6


def test_published_figures_name_their_source() -> None:
    for table in literature_tables.PUBLISHED.values():
        assert table
        assert all(p["source"] and ("percent" in p or "points" in p) for p in table)
    assert (
        set(literature_tables.PUBLISHED) == set(literature_tables.TABLES) == {t for _, t in literature.TABLES.values()}
    )
