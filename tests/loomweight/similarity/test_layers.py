import pytest
import torch

from loomweight.errors import InvalidCheckpoint
from loomweight.similarity import layers
from loomweight.similarity.layers import INPUT, MEAN, read
from tests.loomweight.similarity.networks import mlp, net, resnet, tensors


def names(given: dict[str, torch.Tensor]) -> list[str]:
    return [layer.name.removesuffix(".weight") for layer in read(given).layers]


def test_layers_come_in_the_order_of_a_residual_network() -> None:
    given = resnet()
    reading = read(given)
    blocks = [f"layer{s}.{b}.conv{c}" for s in (1, 2) for b in (0, 1) for c in (1, 2)]
    assert names(given) == ["conv1", *blocks[:6], "layer2.0.downsample.0", *blocks[6:], "fc"]
    assert reading.unread == ()
    assert reading.guessed == 0
    # the shortcut reads what the block read, and is added to what the block made
    by_name = {layer.name: layer for layer in reading.layers}
    place = names(given).index("layer2.0.downsample.0")
    link = by_name["layer2.0.downsample.0.weight"].link
    assert (link.source, link.joins) == (place - 3, True)


def test_numbers_in_names_count_as_numbers() -> None:
    assert names(mlp((6, 5, 4, 3, 5, 6, 4, 3))) == [f"layers.{i}" for i in range(0, 14, 2)]


def test_a_shared_prefix_changes_nothing() -> None:
    given = {f"model.net.{k}": v for k, v in resnet().items()}
    assert names(given) == [f"model.net.{n}" for n in names(resnet())]


def test_flattened_maps_are_linked_to_their_convolution() -> None:
    links = [layer.link for layer in read(tensors("cnn-l")).layers]
    assert [x.source for x in links] == [INPUT, 0, 1, 2, 3]
    assert links[3].spread == 4


def test_folded_running_statistics_compute_what_the_network_computes() -> None:
    # Given a convolution behind which a batch norm with settled statistics stands
    made = net("plain-4-batch-relu")
    layer = read(made.state_dict()).layers[0]
    x = torch.rand(2, 3, 8, 8)
    # When both are applied, then they agree
    expected = made.get_submodule("norm1")(made.get_submodule("conv1")(x))
    found = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_norms_without_statistics_stay_with_their_layer() -> None:
    given = tensors("plain-4-group-gelu")
    norm = read(given).layers[1].norm
    assert norm is not None
    assert torch.equal(norm.scale, given["norm2.weight"])


def test_numbered_norms_belong_to_the_numbered_layer_before_them() -> None:
    given = {"f.0.weight": torch.rand(4, 3, 3, 3), "f.3.weight": torch.rand(4, 4, 3, 3)}
    given |= {f"f.1.{p}": torch.rand(4) for p in ("weight", "bias")}
    reading = read(given)
    assert [layer.norm is not None for layer in reading.layers] == [True, False]


def test_an_embedding_is_turned() -> None:
    given = {"tok.weight": torch.rand(50, 6), "up.weight": torch.rand(9, 6), "up.bias": torch.rand(9)}
    first, second = read(given).layers
    assert (first.kind, tuple(first.weight.shape)) == ("embedding", (6, 50, 1, 1))
    assert second.link.source == 0


def test_depthwise_grouped_and_unconnected_layers() -> None:
    given = {
        "a.weight": torch.rand(6, 3, 3, 3),
        "b.weight": torch.rand(6, 1, 3, 3),
        "c.weight": torch.rand(9, 2, 3, 3),
        "d.weight": torch.rand(5, 7),
    }
    links = [layer.link for layer in read(given).layers]
    assert links[1].groups == 6
    assert links[2].groups == 3
    assert links[3].source == MEAN


def test_a_three_dimensional_kernel_is_read_as_on_still_pictures() -> None:
    weight = torch.rand(4, 3, 5, 3, 3)
    assert torch.equal(read({"c.weight": weight}).layers[0].weight, weight.sum(2))


def test_half_precision_and_doubles_are_read() -> None:
    given = mlp((6, 5, 4))
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert read({k: v.to(kind) for k, v in given.items()}).layers[0].weight.dtype == torch.float32


def test_fingerprints_tell_architectures_not_weights() -> None:
    assert read(tensors("cnn-l", seed=1)).fingerprint == read(tensors("cnn-l", seed=2)).fingerprint
    assert read(tensors("cnn-l")).fingerprint != read(tensors("cnn-s")).fingerprint


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "no tensors"),
        ({"a.weight": torch.full((2, 2), torch.nan)}, "'a.weight' holds NaN or infinity"),
        ({"a.weight": torch.full((2, 2), torch.inf)}, "'a.weight' holds NaN or infinity"),
        ({"a.weight": torch.zeros(3)}, "no layer"),
        ({"a.weight": torch.zeros(0, 3)}, "no layer"),
        ({"a.weight": torch.zeros(3, 3, dtype=torch.int64)}, "no layer"),
        ({f"{i}": torch.zeros(1) for i in range(layers.MAX_TENSORS + 1)}, "20,001 tensors"),
        ({"a.weight": torch.zeros(1).expand(layers.MAX_VALUES + 1)}, "60,000,001 values"),
    ],
)
def test_what_cannot_be_read_is_refused_in_plain_words(given: dict[str, torch.Tensor], complaint: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=complaint):
        read(given)
