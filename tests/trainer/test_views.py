import pytest
import torch
from torch import Tensor

from tests.loomweight.made import seeded
from trainer import views
from trainer.views import VIEWS


def pictures(count: int = 12) -> Tensor:
    """Noise, black, white, and saturated colours."""
    x = torch.rand(count, 3, 32, 32, generator=seeded())
    x[0], x[1], x[2] = 0, 1, x[2].round()
    return x


@pytest.mark.parametrize("name", VIEWS)
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


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_one_change_for_all_images(name: str) -> None:
    x = pictures()
    together = views.view(name, x, seeded(1))
    alone = torch.cat([views.view(name, x[i : i + 1], seeded(1)) for i in range(len(x))])
    torch.testing.assert_close(together, alone)


def test_an_unknown_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown view sepia"):
        views.view("sepia", pictures(), seeded())


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
