import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loomweight.errors import InvalidBundle, InvalidCheckpoint
from loomweight.similarity import Calibration, Familiar, Similarity, chain, layers, read, scoring
from loomweight.similarity.network import ChainConfig, ChainNetwork
from loomweight.similarity.permute import shuffled
from loomweight.similarity.spectrum import structure
from tests.loomweight.similarity.networks import NAMES, resnet, tensors

CALIBRATION = Calibration(same=(10.0, -3.0), different=(5.0, -1.0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    network = ChainNetwork(ChainConfig(), Generator().manual_seed(0))
    known = [read(tensors(n, seed=s)) for n in NAMES for s in (1, 2)]
    network.settle(known)
    anchors = network.eval()(known).models.detach()
    scoring.write(folder, network, CALIBRATION, Familiar(0.0, 0.5), anchors, {"made": "for tests"})
    return folder


@pytest.fixture(scope="module")
def part(bundle: Path) -> Similarity:
    return Similarity.load(bundle)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_itself_and_its_permuted_copy(part: Similarity, name: str) -> None:
    original = tensors(name, 3, 5)
    for other in (original, shuffled(original, Generator().manual_seed(1))):
        found = part.compare(original, other)
        assert found.similarity == pytest.approx(1, abs=1e-5)
        assert [p.similarity for p in found.layers] == pytest.approx([1.0] * len(found.layers), abs=1e-4)
        assert found.baselines["aligned_cosine"] == pytest.approx(1, abs=1e-5)
        assert found.same_task_probability == pytest.approx(1 / (1 + torch.tensor(-7.0).exp().item()), abs=1e-4)


def test_comparing_is_symmetric(part: Similarity) -> None:
    a, b = tensors("cnn-l", 4, 1), tensors("cnn-l", 4, 2)
    one, two = part.compare(a, b), part.compare(b, a)
    assert one.similarity == two.similarity
    assert one.same_task_probability == two.same_task_probability
    assert one.baselines == pytest.approx(two.baselines)
    assert [(p.a, p.b, p.similarity) for p in one.layers] == [(p.b, p.a, p.similarity) for p in two.layers]


def test_different_architectures_are_compared_with_a_warning(part: Similarity) -> None:
    found = part.compare(tensors("cnn-l"), tensors("residual-4-batch-relu"))
    assert -1 <= found.similarity <= 1
    assert found.baselines == dict.fromkeys(("cosine", "aligned_cosine", "layerwise_cosine", "statistics"))
    assert any("different architectures" in w for w in found.warnings)
    assert found.same_task_probability == CALIBRATION.probability(found.similarity, same_architecture=False)
    assert (found.layers[0].a, found.layers[0].b) == ("conv1", "conv0")
    assert (found.layers[-1].a, found.layers[-1].b) == ("head", "head")


def test_untrained_and_unfamiliar_weights_are_called_so(part: Similarity) -> None:
    fresh = {"l.weight": torch.randn(50, 784, generator=Generator().manual_seed(1))}
    assert any("look untrained" in w for w in part.compare(fresh, fresh).warnings)
    strange = {"l.weight": torch.ones(3, 784) * torch.linspace(-1, 3, 784) ** 3 + torch.eye(3, 784)}
    assert any("unlike every model" in w for w in part.compare(strange, strange).warnings)


def test_unconnected_layers_are_mentioned(part: Similarity) -> None:
    loose = {"a.weight": torch.rand(4, 5), "b.weight": torch.rand(3, 9)}
    assert any("1 of 2 layers of a could not be connected" in w for w in part.compare(loose, loose).warnings)


def test_the_matrix_is_symmetric_with_ones(part: Similarity) -> None:
    found = part.matrix([part.embed(tensors(n)) for n in NAMES])
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.ones(len(NAMES), dtype=found.dtype))
    assert found.abs().max() <= 1


def test_structure_grows_with_rank_one_parts() -> None:
    noise = torch.randn(40, 60, generator=Generator().manual_seed(0))
    trained = noise + 1.5 * torch.outer(torch.randn(40), torch.randn(60))
    assert structure(read({"a.weight": noise})) < 0.05
    assert structure(read({"a.weight": trained})) > 0.5


@pytest.mark.parametrize("file", ["network.safetensors", "similarity.json"])
def test_an_altered_part_is_refused(bundle: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / scoring.FOLDER
    folder.mkdir()
    for source in (bundle / scoring.FOLDER).iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    Similarity.load(tmp_path)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(
        data.replace(b'"slope', b'"slop').replace(b"10.0", b"11.0", 1) if file.endswith("json") else data[:-4] + b"abcd"
    )
    with pytest.raises(InvalidBundle, match="altered"):
        Similarity.load(tmp_path)


def test_a_missing_part_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="no readable similarity part"):
        Similarity.load(tmp_path)
    folder = tmp_path / scoring.FOLDER
    folder.mkdir()
    (folder / "network.safetensors").write_bytes(b"")
    (folder / "similarity.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InvalidBundle, match="format 99"):
        Similarity.load(tmp_path)


sizes = st.integers(1, 9)
shapes = st.one_of(
    st.tuples(sizes), st.tuples(sizes, sizes), st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes, sizes),
    st.tuples(sizes, sizes, sizes, sizes, sizes), st.tuples(), st.tuples(st.just(0), sizes),
)  # fmt: skip
parts_of_names = st.sampled_from(
    ["weight", "bias", "running_mean", "running_var", "in_proj_weight", "embed.weight", "x"]
)
names = st.builds(
    lambda m, n, p: f"{m}{n}.{p}", st.sampled_from(["conv", "bn", "", "block."]), st.integers(0, 3), parts_of_names
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(names, shapes, max_size=8),
    st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.float16, torch.int64]),
)
def test_any_mix_of_tensors_is_scored_or_refused(
    part: Similarity, given_shapes: dict[str, tuple[int, ...]], seed: int, kind: torch.dtype
) -> None:
    generator = Generator().manual_seed(seed)
    made: dict[str, Tensor] = {k: torch.randn(s, generator=generator).to(kind) for k, s in given_shapes.items()}
    try:
        found = part.compare(made, made)
    except InvalidCheckpoint:
        return
    assert found.similarity == pytest.approx(1, abs=1e-5) or not part.embed(made).vector.any()
    assert 0 <= found.same_task_probability <= 1


def test_large_checkpoints_are_compared_within_the_limit(part: Similarity) -> None:
    generator = Generator().manual_seed(0)

    def large() -> dict[str, Tensor]:
        found = {"conv0.weight": torch.randn(256, 3, 3, 3, generator=generator)}
        for i in range(1, 20):  # 45 MB of 256 x 256 convolutions
            found[f"conv{i}.weight"] = torch.randn(256, 256, 3, 3, generator=generator) / 48
        return {**found, "head.weight": torch.randn(10, 256, generator=generator)}

    a, b = large(), large()
    start = time.process_time()
    part.compare(a, b)
    assert time.process_time() - start < 12  # the bar is 3 s of wall time on 2 free cores; this machine may be busy


def test_residual_networks_by_name_are_embedded(part: Similarity) -> None:
    embedding = part.embed(resnet())
    assert embedding.guessed == 0
    assert embedding.names[-1] == "fc"


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"a.weight": torch.zeros(3, 4)}, "answers every input alike"),
        ({"a.weight": torch.full((3, 4), 1e13)}, "beyond 1e\\+12"),
        ({"a.weight": torch.ones(1, layers.MAX_WIDTH + 1)}, "inputs or outputs"),
        ({f"{i}.weight": torch.ones(1, 1) for i in range(layers.MAX_LAYERS + 1)}, "layers; at most"),
        (
            {"a.weight": torch.rand(3, 4), **{f"{i}.weight": torch.ones(3) for i in range(layers.MAX_LAYERS + 1)}},
            "normalisations; at most",
        ),
    ],
)
def test_what_would_cost_too_much_or_says_nothing_is_refused(
    part: Similarity, made: dict[str, Tensor], complaint: str
) -> None:
    with pytest.raises(InvalidCheckpoint, match=complaint):
        part.embed(made)


@pytest.mark.parametrize("scale", [1e11, 1e-38])
def test_values_at_the_edge_of_floats_are_compared(part: Similarity, scale: float) -> None:
    generator = Generator().manual_seed(0)
    made = {f"{i}.weight": scale * torch.randn(32, 32, generator=generator) for i in range(6)}
    other = {k: v * (1 + 0.1 * torch.randn(v.shape, generator=generator)) for k, v in made.items()}
    assert part.compare(made, made).similarity == pytest.approx(1, abs=1e-5)
    assert -1 <= part.compare(made, other).similarity <= 1


def test_matching_that_would_take_too_long_is_left_out(part: Similarity) -> None:
    generator = Generator().manual_seed(0)
    made = {"a.weight": torch.randn(3_000, 10, generator=generator), "b.weight": torch.rand(4, 3_000)}
    assert part.compare(made, made).baselines["aligned_cosine"] is None


def test_answers_of_wide_layers_stay_within_memory() -> None:
    wide = read({"a.weight": torch.ones(60_000, 3, 1, 1), "b.weight": torch.ones(2, 60_000)})
    side = chain.affordable(wide, 64, 16)
    assert side == 2
    assert chain.affordable(read(tensors("cnn-l")), 64, 16) == 16
