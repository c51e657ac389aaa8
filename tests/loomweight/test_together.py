import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from loomweight.errors import Canceled, InvalidRequest
from loomweight.generator import GenerateOptions, GenerationResult, Generator
from loomweight.together import Together

STARTER = Path(__file__).parents[2] / "bundles" / "starter"


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.load(STARTER)


class Counting:
    """A runtime that notes the sizes of its batches; `refuse` says which to fail."""

    def __init__(self, generator: Generator, refuse: Callable[[int], bool] = lambda size: False) -> None:
        self._inner, self._refuse = generator.runtime, refuse
        self.encoded: list[int] = []
        self.denoised: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        self.encoded.append(len(images))
        if self._refuse(len(images)):
            raise RuntimeError("no")
        return self._inner.encode(images)

    def denoise(self, target: str, z: Tensor, *rest: Tensor) -> Tensor:
        self.denoised.append(len(z))
        return self._inner.denoise(target, z, *rest)


Request = tuple[np.ndarray, list[str], GenerateOptions]


def request(seed: int, classes: int = 3, shots: int = 3, **options: Any) -> Request:
    images = np.random.default_rng(seed).random((classes * shots, 3, 32, 32), dtype=np.float32)
    return images, [f"class {i % classes}" for i in range(len(images))], GenerateOptions("cnn-l", seed=seed, **options)


def run(
    generator: Generator, requests: list[Request], wait_s: float = 5, **hooks: dict[int, Any]
) -> list[GenerationResult | Exception]:
    together = Together(generator, wait_s=wait_s)
    seats = [together.seat() for _ in requests]

    def one(number: int) -> GenerationResult | Exception:
        try:
            return seats[number].generate(*requests[number], **{name: each[number] for name, each in hooks.items()})
        except Exception as error:  # noqa: BLE001 - it is looked at
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, range(len(requests))))


def counting(generator: Generator, **options: Any) -> tuple[Generator, Counting]:
    counted = copy(generator)
    runtime = Counting(generator, **options)
    counted.runtime = runtime
    return counted, runtime


@pytest.mark.parametrize("wait_s", [0, 5])
@pytest.mark.parametrize("method", ["conditional-mean", "diffusion"])
def test_weights_are_those_that_a_request_gets_alone(generator: Generator, method: str, wait_s: float) -> None:
    requests = [request(seed, method=method, steps=4, candidates=3, keep=2) for seed in range(5)]
    together = run(generator, requests, wait_s)
    for given, result in zip(requests, together, strict=True):
        alone = generator.generate(*given)
        assert isinstance(result, GenerationResult)
        assert [model.origin for model in result.models] == [model.origin for model in alone.models]
        for one, other in zip(alone.models, result.models, strict=True):
            for name, tensor in one.tensors.items():
                np.testing.assert_allclose(other.tensors[name], tensor, atol=1e-5, rtol=0)


def test_who_waits_for_nobody_gets_the_same_bytes_in_any_company(generator: Generator) -> None:
    requests = [request(seed, method="diffusion", steps=3, candidates=3) for seed in range(4)]
    for given, result in zip(requests, run(generator, requests, 0), strict=True):
        [alone] = run(generator, [given], 0)
        assert isinstance(alone, GenerationResult)
        assert isinstance(result, GenerationResult)
        for name, tensor in alone.models[0].tensors.items():
            assert tensor.tobytes() == result.models[0].tensors[name].tobytes()


def test_networks_run_once_for_all(generator: Generator) -> None:
    counted, runtime = counting(generator)
    run(counted, [request(seed, method="diffusion", steps=4, candidates=2) for seed in range(4)])
    assert runtime.encoded == [4 * 9]
    assert len(runtime.denoised) == 1 + 4


def test_requests_of_other_shapes_run_beside_each_other(generator: Generator) -> None:
    counted, runtime = counting(generator)
    results = run(counted, [request(1), request(2, classes=4), request(3, shots=1), request(4, method="retrieve")])
    assert all(isinstance(result, GenerationResult) for result in results), results
    assert len(runtime.encoded) == 1


def test_one_that_fails_or_stops_leaves_the_others_alone(generator: Generator) -> None:
    stop = threading.Event()

    def stopping(stage: str, step: int, steps: int) -> None:
        if stage == "sample" and step == 2:
            stop.set()

    def ignoring(stage: str, step: int, steps: int) -> None: ...

    requests = [request(seed, method="diffusion", steps=6, candidates=2) for seed in range(3)]
    requests.append(request(3, classes=1))
    results = run(
        generator,
        requests,
        progress={0: ignoring, 1: stopping, 2: ignoring, 3: ignoring},
        canceled={0: lambda: False, 1: stop.is_set, 2: lambda: False, 3: lambda: False},
    )
    assert [type(result) for result in results] == [GenerationResult, Canceled, GenerationResult, InvalidRequest]


def test_a_batch_that_fails_is_run_one_by_one(generator: Generator) -> None:
    counted, runtime = counting(generator, refuse=lambda size: size not in (9, 12))
    results = run(counted, [request(1), request(2, classes=4), request(3, classes=5)])
    assert [type(result) for result in results] == [GenerationResult, GenerationResult, RuntimeError]
    assert sorted(runtime.encoded) == [9, 12, 15, 36]


def test_nobody_waits_for_ever(generator: Generator) -> None:
    # Given a seat that nobody takes
    together = Together(generator, wait_s=0.1)
    together.seat()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(together.seat().generate, *request(1)).result(60)
