import shutil
from pathlib import Path

import pytest
import torch

from loomweight.bundle import Bundle
from loomweight.similarity import Similarity, ZooIndex, index
from tests.loomweight.similarity.networks import tensors
from tests.similarity_part import write_part
from trainer import cli


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    write_part(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_zoo_models_are_embedded_and_the_bundle_stays_itself(bundle: Path, tiny_bundle: Path) -> None:
    before, part = Bundle.open(tiny_bundle), Similarity.load(bundle)
    assert ZooIndex.load(bundle, part) is None
    assert cli.main(["lps-zoo", "--recipe", "tiny", "--out", str(bundle)]) == 0
    found = ZooIndex.load(bundle, part)
    assert found is not None
    models = dict(index.zoo_models(before))
    assert list(found.names) == list(models)
    assert Bundle.open(bundle).id == before.id
    assert Similarity.load(bundle).id == part.id
    for i in (0, len(models) - 1):
        sketch = part.embed(models[found.names[i]]).sketch
        assert part.score(found.vectors[i], sketch.vector) > 0.999
        assert found.fingerprints[i] == sketch.fingerprint


def test_an_index_of_another_part_or_a_damaged_one_is_not_there(bundle: Path) -> None:
    index.build(bundle, most=1)
    write_part(bundle, seed=1)
    assert ZooIndex.load(bundle, Similarity.load(bundle)) is None
    (bundle / "similarity" / index.INDEX).write_bytes(b"nonsense")
    assert ZooIndex.load(bundle, Similarity.load(bundle)) is None


def test_sketches_survive_as_bytes(bundle: Path) -> None:
    sketch = Similarity.load(bundle).embed(tensors("cnn-l")).sketch
    again = index.unpack(index.pack(sketch))
    assert torch.equal(again.vector, sketch.vector)
    assert {k: v for k, v in vars(again).items() if k != "vector"} == {
        k: v for k, v in vars(sketch).items() if k != "vector"
    }
    for data in (b"", b"nonsense" * 9, index.pack(sketch)[:-1]):
        with pytest.raises(ValueError):
            index.unpack(data)
