import json
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from benchmarks import better_start, figures, plots, plots_fewshot
from tests.benchmarks import made


def test_every_result_file_is_drawn_and_twice_the_same(tmp_path: Path) -> None:
    for name, make in made.ALL.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(make()))
    written = plots.draw(tmp_path)
    assert sorted(p.stem for p in written) == [
        "better_start",
        "distances",
        "fewshot-cnn-l",
        "fewshot-head",
        "novelty-cnn-l",
        "similarity-curves",
        "similarity-matrix",
        "similarity-transfer",
        "time-cnn-l",
        "time-head",
    ]
    first = {p: p.read_bytes() for p in written}
    for content in first.values():
        assert ElementTree.fromstring(content).tag.endswith("svg")
    assert {p: p.read_bytes() for p in plots.draw(tmp_path)} == first


def test_without_results_nothing_is_drawn(tmp_path: Path) -> None:
    assert plots.draw(tmp_path) == []


def test_error_bars_reach_the_ends_of_the_interval() -> None:
    (below,), (above,) = figures.errors([{"mean": 0.5, "low": 0.4, "high": 0.7}])
    assert (below, above) == (pytest.approx(0.1), pytest.approx(0.2))


def test_everything_that_is_drawn_has_a_style() -> None:
    assert {*better_start.STARTS, *plots_fewshot.BY_SHOTS, *plots_fewshot.BY_TIME} <= set(figures.STYLES)


def test_wall_time_has_a_panel_a_set_and_number_of_images() -> None:
    figure = plots_fewshot.by_time([r for r in made.fewshot()["rows"] if r["target"] == "cnn-l"])
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert titles == ["digits\n1 a class", "digits\n5 a class"]
    assert all(axis.get_xscale() == "log" for axis in figure.axes if axis.get_visible())
    plt.close(figure)
