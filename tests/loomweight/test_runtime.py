from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from loomweight import runtime
from loomweight.bundle import Bundle
from loomweight.denoiser_onnx import denoiser_onnx
from loomweight.generator import GenerateOptions, Generator
from loomweight.runtime import MixedRuntime, OnnxRuntime, TorchRuntime, open_runtime
from tests.loomweight.made import seeded
from tests.loomweight.pictures import letters
from tests.loomweight.test_denoiser import denoiser, inputs


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.mark.parametrize("latents", [0, 3])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (5, 7)])
def test_a_denoiser_graph_answers_as_torch_does(latents: int, batch: int, classes: int) -> None:
    # Given a denoiser whose output layer says something, and one graph for every batch and class count
    model, given = denoiser(latents), inputs(latents, classes, batch)
    keep = (torch.arange(batch) % 2).float()
    session = ort.InferenceSession(denoiser_onnx(model), providers=["CPUExecutionProvider"])
    # When it is given what torch is given
    named = dict(zip(("z", "t", "classwise", "overall", "keep"), (*given, keep), strict=True))
    (clean,) = session.run(["clean"], {name: value.numpy() for name, value in named.items()})
    # Then it says the same, with and without the condition
    expected = model(*given, keep).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(clean, expected, atol=1e-4)


def test_both_backends_encode_alike(bundle: Bundle) -> None:
    images = torch.rand(300, 3, 32, 32, generator=seeded())  # more than one batch
    ours, theirs = OnnxRuntime(bundle).encode(images), TorchRuntime(bundle).encode(images)
    assert ours.shape == (300, 64)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["cnn-s", "head"])
def test_both_backends_denoise_alike(bundle: Bundle, target: str) -> None:
    config = bundle.loom(target).config.denoiser
    g = seeded()
    z = torch.randn(4, config.latents + 3, config.dim, generator=g)
    classwise = torch.randn(1, 3, config.classwise, generator=g).expand(4, -1, -1)
    overall = torch.randn(1, config.overall, generator=g).expand(4, -1)
    arguments = (target, z, torch.rand(4, generator=g), classwise, overall, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    ours, theirs = OnnxRuntime(bundle).denoise(*arguments), TorchRuntime(bundle).denoise(*arguments)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["cnn-s", "head"])
def test_both_backends_generate_the_same_weights(tiny_bundle: Path, target: str) -> None:
    options = GenerateOptions(target, seed=3, method="diffusion", candidates=3, guidance=2.0)
    networks = []
    for backend in ("torch", "onnxruntime"):
        woven = Generator.load(tiny_bundle, backend=backend).weave(*letters("ABC", 8), options)
        networks.append([(n.origin, n.trunk, n.rows) for n in woven.networks()])
    for (origin, trunk, rows), (other_origin, other_trunk, other_rows) in zip(*networks, strict=True):
        assert origin == other_origin
        torch.testing.assert_close(other_trunk, trunk, atol=1e-4, rtol=0)
        torch.testing.assert_close(other_rows, rows, atol=1e-4, rtol=1e-4)


def test_a_gpu_that_is_not_there_is_not_claimed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an ONNX Runtime that lists the GPU, as its wheel for GPUs does on any machine, and then does without it
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    opened = ort.InferenceSession
    asked: list[object] = []

    def open_on_cpu(graph: bytes, options: ort.SessionOptions, providers: list[object]) -> ort.InferenceSession:
        asked.append(providers[0])
        return opened(graph, options, ["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", open_on_cpu)
    # When a runtime on it is asked for, then the GPU was tried and what is said is what the sessions say
    assert OnnxRuntime(bundle, "cuda:0").device == torch.device("cpu")
    assert asked == [("CUDAExecutionProvider", {"device_id": 0})] * 3


def test_a_session_takes_the_threads_it_is_given(bundle: Bundle) -> None:
    made = OnnxRuntime(bundle, threads=2)
    assert made.encoder.get_session_options().intra_op_num_threads == 2
    assert OnnxRuntime(bundle).encoder.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_auto_follows_the_benchmark(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds() -> list[type]:
        made = open_runtime(bundle)
        return [type(made.encoding), type(made.denoising)] if isinstance(made, MixedRuntime) else [type(made)]

    for encode, denoise, expected in (
        ("torch", "torch", [TorchRuntime]),
        ("onnxruntime", "onnxruntime", [OnnxRuntime]),
        ("onnxruntime", "torch", [OnnxRuntime, TorchRuntime]),
        ("torch", "onnxruntime", [TorchRuntime, OnnxRuntime]),
    ):
        monkeypatch.setattr(runtime, "AUTO", {"encode": encode, "denoise": denoise})
        assert kinds() == expected


def test_a_mixed_runtime_answers(bundle: Bundle) -> None:
    mixed, plain = MixedRuntime(OnnxRuntime(bundle), TorchRuntime(bundle)), TorchRuntime(bundle)
    images = torch.rand(3, 3, 32, 32, generator=seeded())
    torch.testing.assert_close(mixed.encode(images), plain.encode(images), atol=1e-4, rtol=0)
    config = bundle.loom("head").config.denoiser
    z, condition = torch.ones(1, 2, config.dim), (torch.ones(1, 2, config.classwise), torch.ones(1, config.overall))
    arguments = ("head", z, torch.ones(1), *condition, torch.ones(1))
    assert torch.equal(mixed.denoise(*arguments), plain.denoise(*arguments))


def test_an_unknown_backend_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="unknown backend 'tensorrt'; there are auto, torch and onnxruntime"):
        open_runtime(bundle, backend="tensorrt")
