import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loomweight.bundle import MANIFEST, Bundle, identify, verify
from loomweight.errors import InvalidBundle


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object], *, identified: bool) -> None:
    """Change a manifest; `identified` gives it the id that its new content must have."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    if identified:
        manifest["id"] = identify(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_bundle_proves_itself_and_loads(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.id.startswith("tiny-")
    assert len(bundle.id) == len("tiny-") + 12
    assert [t.id for t in bundle.targets] == ["cnn-s", "head"]
    assert bundle.targets[0].parameters == 2_464
    assert bundle.targets[0].input_size == (3, 32, 32)
    loom, zoo = bundle.loom("cnn-s"), bundle.zoo("cnn-s")
    assert not any(p.requires_grad for p in loom.parameters())
    assert zoo.set_codes.shape == (12, 16)
    assert len(zoo.tensors["rows"]) == int(zoo.tensors["class_counts"].sum())
    assert bundle.encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_an_altered_file_is_refused(copy: Path) -> None:
    path = copy / "head" / "loom.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidBundle, match=r"head/loom\.safetensors does not match its hash"):
        Bundle.open(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "encoder.safetensors").unlink()
    with pytest.raises(InvalidBundle, match=r"lacks encoder\.safetensors"):
        Bundle.open(copy)


def test_an_altered_manifest_is_refused(copy: Path) -> None:
    rewrite(copy, lambda m: m["defaults"].update(steps=9), identified=False)
    with pytest.raises(InvalidBundle, match="was altered"):
        Bundle.open(copy)


def test_figures_measured_on_a_bundle_may_be_added_under_its_id(copy: Path) -> None:
    opened = Bundle.open(copy).id
    rewrite(copy, lambda m: m["targets"][0].update(expected={"accuracy": 0.5}), identified=False)
    rewrite(copy, lambda m: m["card"].update(note="measured"), identified=False)
    assert Bundle.open(copy).id == opened
    assert Bundle.open(copy).targets[0].expected == {"accuracy": 0.5}


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_an_unknown_format_is_refused(copy: Path, number: object) -> None:
    rewrite(copy, lambda m: m.update(format=number), identified=True)
    with pytest.raises(InvalidBundle, match=f"has format {number}, this version reads 1"):
        verify(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(InvalidBundle):
        verify(copy)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match=r"holds no readable bundle\.json"):
        Bundle.open(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused_though_its_hash_fits(copy: Path) -> None:
    (copy / "encoder.safetensors").write_bytes(b"not tensors")
    digest = hashlib.sha256(b"not tensors").hexdigest()
    rewrite(copy, lambda m: m["files"].update({"encoder.safetensors": digest}), identified=True)
    with pytest.raises(InvalidBundle, match="is no safetensors file"):
        Bundle.open(copy)
