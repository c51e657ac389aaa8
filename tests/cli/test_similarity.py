"""`loomweight similarity`, in process."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from tests.loomweight.similarity.networks import resnet
from tests.similarity_part import checkpoint, pack, write_part


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_part(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for seed in (1, 2):
        (tmp_path / f"{seed}.safetensors").write_bytes(checkpoint(seed=seed))
    (tmp_path / "3.safetensors").write_bytes(pack(resnet()))
    return [str(tmp_path / f"{i}.safetensors") for i in (1, 2, 3)]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["similarity", *arguments])
    return result.exit_code, result.output


def test_two_files_with_details(bundle: Path, files: list[str]) -> None:
    code, output = run(*files[:2], "--bundle", str(bundle))
    assert code == 0, output
    assert "likely" in output
    assert "aligned_cosine" in output
    assert "head" in output


def test_a_matrix_as_json(bundle: Path, files: list[str]) -> None:
    code, output = run(*files, "--bundle", str(bundle), "--json")
    assert code == 0, output
    found = json.loads(output)
    matrix = torch.tensor(found["matrix"])
    assert found["ids"] == files
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(3))
    assert "different architectures" in found["warnings"][0]


def test_a_heatmap(bundle: Path, files: list[str], tmp_path: Path) -> None:
    code, output = run(*files, "--bundle", str(bundle), "--out", str(tmp_path / "new" / "map.png"))
    assert code == 0, output
    assert (tmp_path / "new" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_no_heatmap_without_matplotlib(bundle: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output = run(*files, "--bundle", str(bundle), "--out", "map.png")
    assert code == 1
    assert "pip install 'loomweight[trainer]'" in output


def test_refusals(bundle: Path, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(pack({"a.weight": torch.full((2, 2), float("nan"))}))
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04" + bytes(40))
    given = ["--bundle", str(bundle)]
    assert run(files[0])[0] == 2
    assert "NaN or infinity" in run(files[0], str(tmp_path / "bad.safetensors"), *given)[1]
    assert "pickled" in run(files[0], str(tmp_path / "model.pt"), *given)[1]
    assert "No such file" in run(files[0], str(tmp_path / "none"), *given)[1]
    assert "map.txt" in run(*files, *given, "--out", "map.txt")[1]
    code, output = run(*files, "--bundle", str(tmp_path))
    assert code == 1
    assert "no readable similarity part" in output
    assert run(*files[:2], "--server", "http://127.0.0.1:9")[0] == 3
    assert "is a file" in run(*files, "--server", "http://127.0.0.1:9")[1]
