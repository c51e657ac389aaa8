import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from loomweight.architectures import ArchitectureSpec
from loomweight.features import ImageEncoder, ImageEncoderConfig, preprocess
from loomweight.onnx_export import encoder_onnx, to_onnx
from tests.loomweight.made import SPECS, seeded, weights

SIZES = [(32, 32), (28, 28), (64, 48), (17, 90), (200, 160), (1, 1)]
NAMES = ("Čáp", "a,b", "日本", "x")


def encoder() -> ImageEncoder:
    """With batch norms that do something."""
    torch.manual_seed(0)
    made = ImageEncoder(ImageEncoderConfig(width=3))  # 24 features, as tests.loomweight.made.HEAD has
    for name, value in made.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean") or name == "mean":
            value.normal_(0, 0.2)
    return made.eval().requires_grad_(False)


def exported(spec: ArchitectureSpec) -> bytes:
    arrays = {k: v.numpy() for k, v in weights(spec, len(NAMES)).items()}
    return to_onnx(spec, arrays, NAMES, encoder())


def answers(data: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    (logits,) = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(["logits"], {"images": images})
    return np.asarray(logits)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", SIZES)
def test_the_file_answers_as_torch_does(spec: ArchitectureSpec, size: tuple[int, int]) -> None:
    # Given images of a size nobody trained on, as bytes
    images = torch.randint(0, 256, (3, *size, 3), generator=seeded(1), dtype=torch.uint8)
    # When the exported file reads them, and torch takes the road that generation takes
    canonical = preprocess(images.permute(0, 3, 1, 2).float() / 255)
    x = spec.adapt(canonical) if spec.trunk else encoder()(canonical)
    expected = spec.forward(weights(spec, len(NAMES)), x)
    # Then they agree
    np.testing.assert_allclose(answers(exported(spec), images.numpy()), expected.numpy(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_the_file_says_what_it_is(spec: ArchitectureSpec) -> None:
    data = exported(spec)
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(NAMES)
    assert metadata["architecture"] == spec.name
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["n", "h", "w", 3])
    assert (returned.name, returned.type, returned.shape) == ("logits", "tensor(float)", ["n", len(NAMES)])
    assert answers(data, np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, len(NAMES))


def test_the_same_network_gives_the_same_bytes() -> None:
    assert exported(SPECS[0]) == exported(SPECS[0])


def test_a_head_needs_its_encoder() -> None:
    head = SPECS[2]
    with pytest.raises(ValueError, match="give the encoder"):
        to_onnx(head, {k: v.numpy() for k, v in weights(head, 2).items()}, ("a", "b"))


def test_the_encoder_alone_gives_its_features() -> None:
    x = torch.rand(5, 3, 32, 32, generator=seeded())
    session = ort.InferenceSession(encoder_onnx(encoder()), providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"images": x.numpy()})
    np.testing.assert_allclose(features, encoder()(x).numpy(), atol=1e-4)
