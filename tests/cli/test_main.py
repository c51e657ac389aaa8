"""The command line, as a process where that matters."""

import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from io import BytesIO, StringIO
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from cli import up
from cli.client import LoomweightClient
from cli.generate import EmptyFolder, _report, pack_folder
from cli.main import default_bundle, main
from cli.up import Stack, StackError
from tests.valkey import free_port
from workers.messages import GenerateRequest

COMMAND = [sys.executable, "-m", "cli.main"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/2.JPG", "dog/1.webp", "dog/notes.txt", "dog/.hidden.png", ".git/x.png", "top.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
    return tmp_path / "pets"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Enough of a bundle for what happens before it is loaded."""
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "bundle.json").write_text("{}")
    return path


def test_help_is_instant_and_brings_no_torch() -> None:
    best = min(_seconds([*COMMAND, "--help"]) for _ in range(3))
    imports = "import sys, cli.main, cli.up, cli.client, cli.generate"
    script = f"{imports}; print('torch' in sys.modules, 'service' in sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert best < 1.0  # 0.05 on an idle core; the margin is for a busy machine
    assert modules.split() == ["False", "False"]


def _seconds(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, capture_output=True, check=True)
    return time.monotonic() - start


@pytest.mark.parametrize("command", ["serve", "worker", "up", "generate", "train", "bundle"])
def test_every_command_is_listed(command: str) -> None:
    assert command in CliRunner().invoke(main, ["--help"]).output


def test_only_images_in_class_folders_are_packed(folder: Path) -> None:
    with zipfile.ZipFile(BytesIO(pack_folder(folder))) as archive:
        assert archive.namelist() == ["cat/1.png", "cat/2.JPG", "dog/1.webp"]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmptyFolder, match="holds no images"):
        pack_folder(tmp_path)

    result = CliRunner().invoke(main, ["generate", str(tmp_path), "--server", "http://127.0.0.1:1"])

    assert result.exit_code == 1
    assert "holds no images" in result.output


def test_a_wrong_option_is_a_usage_error(folder: Path) -> None:
    assert CliRunner().invoke(main, ["generate", str(folder), "--method", "magic"]).exit_code == 2
    assert CliRunner().invoke(main, ["generate", "/nowhere"]).exit_code == 2


def test_options_are_those_of_the_service() -> None:
    offered = {option.name: option for option in main.commands["generate"].params}
    method = offered["method"].type
    assert isinstance(method, click.Choice)
    assert tuple(method.choices) == get_args(GenerateRequest.model_fields["method"].annotation)
    assert set(GenerateRequest.model_fields) <= set(offered)
    shown = CliRunner().invoke(main, ["generate", "--help"]).output
    assert "[default: conditional-mean]" in shown
    assert "[default: none, cross-validation ranks]" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("ranked_on", "accuracy", "said"),
    [
        ("cross-validation", 0.831, "accuracy  83.1% in cross-validation over the samples"),
        ("holdout", 0.5, "accuracy  50.0% on held-out samples"),
        ("conditioning", None, "accuracy  not measured: no samples were left out"),
    ],
)
def test_it_is_said_how_accuracy_was_measured(ranked_on: str, accuracy: float | None, said: str) -> None:
    result = {
        "models": [{"id": "m-1", "holdout_accuracy": accuracy}],
        "seed": 7,
        "bundle": "b",
        "classes": ["cat", "dog"],
        "ranked_on": ranked_on,
        "baselines": {},
        "novelty": {"warning": None},
    }
    console = Console(file=StringIO())
    _report({"result": result}, Path("m.safetensors"), None, console)
    assert said in console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_server_that_is_not_there_is_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LoomweightClient.__init__.__kwdefaults__, "patience", 0.0)

    result = CliRunner().invoke(main, ["generate", str(folder), "--server", f"http://127.0.0.1:{free_port()}"])

    assert result.exit_code == 3
    assert "no answer" in result.output


def test_a_port_in_use_is_one_clear_line(tmp_path: Path, bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ["up", "--port", str(port), "--data", str(tmp_path / "data"), "--bundle", str(bundle)]
        result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"loomweight: Port {port} on 127.0.0.1 cannot be used: Address already in use.\n"


def test_a_folder_that_is_no_bundle_is_one_clear_line(tmp_path: Path) -> None:
    arguments = ["up", "--data", str(tmp_path / "data"), "--bundle", str(tmp_path)]
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert result.stderr.startswith(f"loomweight: {tmp_path} holds no bundle")
    assert result.stderr.count("\n") == 1


def test_one_data_folder_serves_one_stack(tmp_path: Path, bundle: Path) -> None:
    first, second = (Stack(host="127.0.0.1", port=0, data=tmp_path / "data", bundle=bundle) for _ in range(2))
    with first, second:
        first._claim_data()
        with pytest.raises(StackError, match="in use by another"):
            second.start()


def test_a_worker_that_cannot_start_ends_the_stack(tmp_path: Path, bundle: Path) -> None:
    arguments = ["up", "--port", "0", "--data", str(tmp_path / "data"), "--bundle", str(bundle)]
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60)

    assert result.returncode == 1
    assert result.stderr == f"loomweight: The worker does not start; see {tmp_path / 'data' / 'logs' / 'worker.log'}.\n"
    assert "InvalidBundle" in (tmp_path / "data" / "logs" / "worker.log").read_text()


@pytest.mark.parametrize(
    ("device", "nodes", "cores", "workers"),
    [
        ("auto", (), 1, 1),
        ("auto", (), 2, 2),
        ("auto", (), 64, 4),
        ("auto", ("/dev/null",), 8, 1),
        ("cpu", ("/dev/null",), 8, 4),
        ("cuda:1", (), 8, 1),
    ],
)
def test_how_many_workers_a_machine_gets(
    monkeypatch: pytest.MonkeyPatch, device: str, nodes: tuple[str, ...], cores: int, workers: int
) -> None:
    monkeypatch.setenv("LOOMWEIGHT_DEVICE", device)
    monkeypatch.setattr(up, "_GPU_NODES", nodes)
    monkeypatch.setattr(up, "_cores", lambda: cores)
    assert up.default_workers() == workers


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000", 2), ("100000 100000", 1), ("max 100000", 8), (None, 8), ("9900000 100000", 8)],
)
def test_a_containers_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(up, "_QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert up._cores() == cores


def test_each_of_several_workers_has_its_part_and_its_port(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_cores", lambda: 5)
    monkeypatch.setenv("LOOMWEIGHT_METRICS_PORT", "9100")
    stack = Stack(host="127.0.0.1", port=0, data=tmp_path, bundle=bundle, workers=2)
    assert stack._share("worker") == {"LOOMWEIGHT_THREADS": "3"}
    assert stack._share("worker-2") == {"LOOMWEIGHT_THREADS": "3", "LOOMWEIGHT_METRICS_PORT": "9101"}
    monkeypatch.setenv("LOOMWEIGHT_THREADS", "1")
    assert stack._share("worker") == {}


def test_a_worker_too_many_is_done_without(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack(host="127.0.0.1", port=0, data=tmp_path, bundle=bundle, workers=2)
    (tmp_path / "logs").mkdir()
    with stack:
        for name, code in (("worker", "import time; time.sleep(60)"), ("worker-2", "")):
            stack._spawn(name, "-c", code)
        monkeypatch.setattr(stack, "_share", lambda _: {})
        spawn = stack._spawn
        monkeypatch.setattr(stack, "_spawn", lambda name, *_, **__: spawn(name, "-c", ""))
        end = time.monotonic() + 30
        while "worker-2" in stack._parts:
            stack.watch()
            assert time.monotonic() < end
            time.sleep(0.01)
        assert "The worker-2 ends again and again" in capsys.readouterr().err
        # The last one is missed
        os.killpg(stack._parts["worker"].pid, signal.SIGKILL)
        with pytest.raises(StackError, match="The worker ends again and again"):
            _watch_until(stack, end)


def _watch_until(stack: Stack, end: float) -> None:
    while time.monotonic() < end:
        stack.watch()
        time.sleep(0.01)


def test_verify_tells_a_damaged_bundle(bundle: Path) -> None:
    result = CliRunner().invoke(main, ["bundle", "verify", str(bundle)])

    assert result.exit_code == 1
    assert "format" in result.output


def test_the_configured_bundle_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOMWEIGHT_BUNDLE_DIR", str(tmp_path))
    assert default_bundle() == tmp_path

    monkeypatch.delenv("LOOMWEIGHT_BUNDLE_DIR")
    monkeypatch.chdir(tmp_path)
    assert default_bundle().parts[-2:] == ("bundles", "starter")


def test_train_hands_everything_to_the_trainer() -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run([*COMMAND, "train", "--help"], capture_output=True, text=True, env=environment, check=False)

    assert result.returncode == 0
    assert "--recipe" in result.stdout
    assert "usage: loomweight train" in result.stdout
