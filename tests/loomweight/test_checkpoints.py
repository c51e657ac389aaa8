import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from loomweight.checkpoints import condition_hash, to_safetensors

WRITE = """
import sys
import numpy as np
from loomweight.checkpoints import to_safetensors
tensors = {name: np.full((3, 2), i, np.float32) for i, name in enumerate(["b.weight", "a.weight", "a.bias"])}
metadata = {f"key-{i}": i for i in range(20)} | {"classes": ["čáp", "dog"], "origin": "diffusion"}
sys.stdout.buffer.write(to_safetensors(tensors, metadata))
"""


def written(hash_seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run([sys.executable, "-c", WRITE], env=environment, check=True, capture_output=True).stdout


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    first, second = written("1"), written("2")
    assert first == second
    # and what they write is what safetensors reads
    path = tmp_path / "weights.safetensors"
    path.write_bytes(first)
    tensors = load_file(path)
    assert {name: t.unique().tolist() for name, t in tensors.items()} == {
        "b.weight": [0.0],
        "a.weight": [1.0],
        "a.bias": [2.0],
    }
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["classes"] == '["\\u010d\\u00e1p", "dog"]'
    assert metadata["origin"] == "diffusion"
    assert metadata["key-7"] == "7"


def test_order_of_metadata_does_not_matter_and_content_does() -> None:
    tensors = {"w": np.ones((2, 2), np.float32)}
    data = to_safetensors(tensors, {"a": "1", "b": "2"})
    assert data == to_safetensors(tensors, {"b": "2", "a": "1"})
    assert data != to_safetensors(tensors, {"a": "1", "b": "3"})
    assert data != to_safetensors({"w": np.zeros((2, 2), np.float32)}, {"a": "1", "b": "2"})


@pytest.mark.parametrize("text", ["", "x", "four", "ünïcödé", '"quoted"'])
def test_the_header_stays_aligned(text: str) -> None:
    # Tensor data has to begin at a multiple of eight for readers that map it.
    data = to_safetensors({"w": np.ones(3, np.float32)}, {"note": text})
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert data[8 + length :] == np.ones(3, np.float32).tobytes()


def test_arrays_of_any_layout_are_stored_by_value(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    (tmp_path / "w").write_bytes(to_safetensors({"w": array}, {}))
    assert load_file(tmp_path / "w")["w"].tolist() == array.tolist()


def test_condition_hash_knows_images_labels_and_order() -> None:
    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    one = condition_hash(images, ["a", "b", "c"])
    assert one == condition_hash(images.copy(), ["a", "b", "c"])
    others = [
        condition_hash(images, ["a", "b", "d"]),
        condition_hash(images, ["ab", "c", ""]),
        condition_hash(images[::-1], ["a", "b", "c"]),
    ]
    assert len({one, *others}) == 4
