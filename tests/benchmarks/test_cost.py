import pytest

from benchmarks import cost


def test_stages_count_where_a_target_needs_them_and_wall_time_becomes_core_time() -> None:
    stages = {"encoder": 10.0, "zoo cnn-l (core seconds)": 7.0, "vae cnn-l": 3.0, "vae head": 100.0}
    assert cost.beforehand(stages, "cnn-l", threads=2) == {"encoder": 20.0, "zoo cnn-l": 7.0, "vae cnn-l": 6.0}


@pytest.mark.parametrize(
    ("arguments", "requests"),
    [
        ((100.0, 1.0, 0.0, 3.0), 51),  # after 50 both have cost 150; with the 51st ours has cost less
        ((100.0, 1.0, 100.0, 3.0), 1),
        ((10.0, 1.0, 100.0, 3.0), 0),
        ((100.0, 3.0, 0.0, 3.0), None),
        ((100.0, 3.0, 0.0, 1.0), None),
    ],
)
def test_break_even(arguments: tuple[float, float, float, float], requests: int | None) -> None:
    assert cost.break_even(*arguments) == requests
    ours, request, theirs, theirs_request = arguments
    if requests:
        assert ours + requests * request < theirs + requests * theirs_request


def test_never_is_said() -> None:
    assert cost.verdict(None).startswith("never")
    assert cost.verdict(1234) == "1,234"


def test_a_measurement_is_repeated_but_not_without_end() -> None:
    calls = []
    assert len(cost.measure(lambda: calls.append(1), 5)) == 5
    assert len(calls) == 6
    assert len(cost.measure(lambda: None, 50, most_seconds=0.0)) == 3
