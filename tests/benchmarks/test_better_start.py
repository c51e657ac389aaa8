import pytest
import torch

from benchmarks import better_start
from benchmarks.better_start import Job, Trained, Whole
from loomweight.architectures import CNN_S


@pytest.fixture
def made() -> Whole:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(8)
    # Classes differ in brightness: a few steps are enough to learn something.
    x = (60 * y[:, None, None, None] + torch.randint(0, 60, (24, 3, 32, 32), generator=generator)).to(torch.uint8)
    return Whole("made", x, y, x, y)


def test_marks_are_in_steps_and_end_with_the_training() -> None:
    assert better_start.marks(30, 5) == {
        "0 epochs": 0,
        "1 epoch": 30,
        "5 epochs": 150,
        "10 steps": 10,
        "100 steps": 100,
    }
    assert better_start.marks(400, 25)["1000 steps"] == 1000
    assert better_start.marks(400, 0) == {"0 epochs": 0}


def test_the_last_smaller_batch_counts() -> None:
    assert better_start.steps_per_epoch(129, 128) == 2
    assert better_start.steps_per_epoch(128, 128) == 1


def test_few_images_are_training_images_of_every_class(made: Whole) -> None:
    x, y = made.few(2, seed=1)
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(
        ((255 * image).round() == made.x[made.y == label]).flatten(1).all(1).any()
        for image, label in zip(x, y, strict=True)
    )
    assert len(made.few(100, seed=1)[1]) == len(made.y)


def test_a_curve_starts_at_the_start_and_is_the_same_every_time(made: Whole) -> None:
    initial = CNN_S.initial(3, torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in initial.items()}
    how = {"lr": 1e-2, "batch": 8, "epochs": 5, "seed": 0}
    first = better_start.curve(CNN_S, initial, made, **how)
    assert first["0 epochs"] == better_start.accuracy(CNN_S, initial, made)
    assert first["5 epochs"] > 0.6 > first["0 epochs"]
    assert better_start.curve(CNN_S, initial, made, **how) == first
    assert all(torch.equal(initial[k], before[k]) for k in initial)


def test_what_is_read_early_does_not_depend_on_how_long_training_goes_on(made: Whole) -> None:
    initial = CNN_S.initial(3, torch.Generator().manual_seed(0))
    short, long = (better_start.curve(CNN_S, initial, made, lr=1e-2, batch=8, epochs=e, seed=0) for e in (1, 5))
    assert short["1 epoch"] == long["1 epoch"]


def test_one_learning_rate_is_chosen_for_all_starts_by_their_mean() -> None:
    sweep = {
        "0.001": {"a": {"0 epochs": 0.9, "1 epoch": 0.5}, "b": {"0 epochs": 0.9, "1 epoch": 0.5}},
        "0.01": {"a": {"0 epochs": 0.0, "1 epoch": 0.4}, "b": {"0 epochs": 0.0, "1 epoch": 0.7, "10 steps": 0.0}},
    }
    assert better_start.choose(sweep) == 0.01


def test_digits_train_and_test_apart() -> None:
    s = better_start.digits(10)
    assert (s.classes, len(s.y), len(s.y) + len(s.test_y)) == (10, 1200, 1797)
    assert s.x.dtype == torch.uint8
    assert better_start.digits(3).classes == 3


def test_differences_are_paired_by_seed() -> None:
    def one(start: str, seed: int, accuracy: float) -> Trained:
        return Trained(Job(1, start, seed, 1e-3), {"0 epochs": accuracy}, 1.0)

    done = [one("random", 1, 0.4), one("generated", 0, 0.3), one("generated", 1, 0.5), one("random", 0, 0.2)]
    ours, theirs = better_start.rows_of("made", 24, done)
    assert (ours["start"], theirs["start"]) == ("generated", "random")
    ahead = theirs["points"]["0 epochs"]["generated_ahead_by"]  # type: ignore[index]
    assert (ahead["low"], ahead["high"]) == (pytest.approx(0.1), pytest.approx(0.1))
