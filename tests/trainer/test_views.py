import pytest
import torch
from torch import Tensor

from tests.loomweight.made import seeded
from trainer import views
from trainer.views import NEW_CLASSES, VIEWS

ALL = (*VIEWS, *NEW_CLASSES, "jigsaw")


def pictures(count: int = 12) -> Tensor:
    """Noise, black, white, and saturated colours."""
    x = torch.rand(count, 3, 32, 32, generator=seeded())
    x[0], x[1], x[2] = 0, 1, x[2].round()
    return x


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(5))
def test_views_keep_shape_and_range_and_repeat(name: str, seed: int) -> None:
    x = pictures()
    seen = views.view(name, x, seeded(seed))
    assert seen.shape == x.shape
    assert seen.min() >= -1e-6
    assert seen.max() <= 1 + 1e-6
    assert torch.equal(seen, views.view(name, pictures(), seeded(seed)))
    assert torch.equal(x, pictures())  # the originals are untouched
    assert torch.equal(seen, x) == (name == "plain")


@pytest.mark.parametrize("name", ALL)
def test_a_view_is_one_change_for_all_images(name: str) -> None:
    x = pictures()
    together = views.view(name, x, seeded(1))
    alone = torch.cat([views.view(name, x[i : i + 1], seeded(1)) for i in range(len(x))])
    torch.testing.assert_close(together, alone)


def test_an_unknown_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown view sepia"):
        views.view("sepia", pictures(), seeded())


def test_turned_views_are_quarter_turns() -> None:
    x = pictures()
    turned = {name: views.view(name, x, seeded()) for name in NEW_CLASSES}
    assert list(turned) == ["turn-90", "turn-180", "turn-270"]
    torch.testing.assert_close(turned["turn-90"][..., 0, :], x[..., -1])  # the right edge is the upper one then
    torch.testing.assert_close(turned["turn-180"], x.flip(-1, -2))
    again = views.view("turn-270", turned["turn-90"], seeded())
    torch.testing.assert_close(again, x)


@pytest.mark.parametrize("seed", range(20))
def test_a_jigsaw_has_the_same_quarters_and_none_of_it_is_the_picture(seed: int) -> None:
    # Given a picture whose quarters have four brightnesses
    x = torch.zeros(1, 3, 32, 32)
    for i, (row, column) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
        x[..., row : row + 16, column : column + 16] = i / 4
    seen = views.jigsaw(x, seeded(seed))
    parts = [seen[0, 0, row, column].item() for row in (0, 16) for column in (0, 16)]
    # Then they stand in another order, the first one never where it was
    assert sorted(parts) == [0, 0.25, 0.5, 0.75]
    assert parts[0] != 0
    assert parts[1] == 0
    # and no pixel is lost from a picture that is not so plain
    whole = pictures()[:1]
    assert torch.equal(views.jigsaw(whole, seeded(seed)).flatten().sort().values, whole.flatten().sort().values)


def test_jigsaws_differ() -> None:
    assert (
        len({views.jigsaw(pictures()[3:4], seeded(seed))[0, 0].sum(0).sort().values[0].item() for seed in range(20)})
        > 5
    )


def test_new_classes_are_not_augmentations() -> None:
    assert not {*NEW_CLASSES, "jigsaw"} & set(VIEWS)


def test_grey_is_grey_and_invert_undoes_itself() -> None:
    x = pictures()
    grey = views.grey(x)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(views.invert(views.invert(x)), x)


@pytest.mark.parametrize("seed", range(3))
def test_augmentation_keeps_shape_and_range_and_differs_by_image(seed: int) -> None:
    same = pictures()[3:4].expand(60, -1, -1, -1).contiguous()
    seen = views.augment(same, seeded(seed), flip=torch.ones(60, dtype=torch.bool))
    assert seen.shape == same.shape
    assert seen.min() >= -1e-6
    assert seen.max() <= 1 + 1e-6
    assert len({image.sum().item() for image in seen}) > 50
    assert torch.equal(seen, views.augment(same, seeded(seed), flip=torch.ones(60, dtype=torch.bool)))


def test_only_what_may_be_mirrored_is() -> None:
    # Given a picture bright on its left half
    x = torch.zeros(200, 3, 32, 32)
    x[..., :16] = 1
    flip = torch.arange(200) < 100
    # When it is jittered without strength, then half of those that may be are bright on the right
    seen = views.jitter(x, seeded(), flip=flip, strength=0.0)
    mirrored = seen[..., :16].mean((1, 2, 3)) < 0.5
    assert 30 < int(mirrored[:100].sum()) < 70
    assert not mirrored[100:].any()
