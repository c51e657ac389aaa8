"""Requests that run at once: on one core each, and on a GPU in one pass of encoder and denoiser for all of them.

Each runs the whole path in a thread of its own, exactly as it would alone: own seed, own progress, own cancel, own
errors. What they share is the runtime. Whoever comes to the encoder or to a denoising step waits there until all others
have come, too, or `wait_s` has passed; then one of them runs the calls of all as one batch. In between, at most `cores`
of the threads compute, each on one core: small networks gain far more from that than from sharing their loops.

With a `wait_s` of 0 nobody waits for anybody: on a CPU a batch of networks this small costs as much as its parts, and
cores that wait are lost (docs/decisions/0010).
"""

import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loomweight.generator import Array, GenerateOptions, GenerationResult, Generator

ROWS = 1024
"""Latents that go through a denoiser at once: bounds its memory."""


@dataclass(eq=False)
class _Call:
    """One thread's call of a network; those with the same key can be one batch."""

    key: tuple[object, ...]
    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    taken: bool = False
    output: Tensor | None = None
    error: Exception | None = None

    def answer(self, *inputs: Tensor) -> None:
        """Run alone."""
        try:
            self.output = self.run(*inputs)
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread that called
            self.error = error


class Together:
    """A place for requests on one generator. Take a seat for each before any begins, or when one comes later."""

    def __init__(self, generator: Generator, *, wait_s: float, cores: int | None = None) -> None:
        self._threads = torch.get_num_threads()
        self._cores = threading.Semaphore(cores or self._threads)
        self._wait_s = wait_s
        self._runtime = generator.runtime
        self._meeting = threading.Condition()
        self._running = 0
        self._waiting: list[_Call] = []
        self._busy = False
        self._generator = copy(generator)
        self._generator.runtime = self

    def seat(self) -> "Seat":
        """Where one request runs; the others expect it until it is left, used or not."""
        with self._meeting:
            self._running += 1
        return Seat(self)

    # The runtime that the requests see ------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) -> features (n, dim)."""
        return self._meet(_Call(("encode",), self._runtime.encode, (images,)))

    def denoise(self, target: str, z: Tensor, t: Tensor, classwise: Tensor, overall: Tensor, keep: Tensor) -> Tensor:
        """One call of a target's denoiser."""

        def run(*inputs: Tensor) -> Tensor:
            return self._runtime.denoise(target, *inputs)

        return self._meet(_Call((target, *z.shape[1:]), run, (z, t, classwise, overall, keep)))

    # ------------------------------------------------------------------------------------------------------------------

    def generate(
        self, images: Array, labels: Sequence[str], options: GenerateOptions, **hooks: Any
    ) -> GenerationResult:
        """What a seat does; see `Generator.generate`."""
        torch.set_num_threads(1)  # of this thread
        with self._cores:
            return self._generator.generate(images, labels, options, **hooks)

    def leave(self) -> None:
        """Expect one request less."""
        with self._meeting:
            self._running -= 1
            self._meeting.notify_all()

    def _meet(self, call: _Call) -> Tensor:
        if not self._wait_s:
            return call.run(*call.inputs)
        self._cores.release()
        try:
            if batch := self._gather(call):
                try:
                    self._run(batch)
                finally:
                    with self._meeting:
                        self._busy = False
                        self._meeting.notify_all()
            with self._meeting:
                self._meeting.wait_for(lambda: call.output is not None or call.error is not None)
        finally:
            self._cores.acquire()
        if call.error is not None:
            raise call.error
        assert call.output is not None
        return call.output

    def _gather(self, call: _Call) -> list[_Call]:
        """Wait for the others; returns the calls that this thread is to run, none if another thread runs this one."""
        end = time.monotonic() + self._wait_s
        with self._meeting:
            self._waiting.append(call)
            self._meeting.notify_all()
            while not call.taken:
                late = end - time.monotonic()
                if not self._busy and (len(self._waiting) >= self._running or late <= 0):
                    batch, self._waiting, self._busy = self._waiting, [], True
                    for each in batch:
                        each.taken = True
                    return batch
                self._meeting.wait(late if late > 0 else None)
        return []

    def _run(self, batch: list[_Call]) -> None:
        torch.set_num_threads(self._threads)  # the others wait
        groups: dict[tuple[object, ...], list[_Call]] = {}
        for call in batch:
            groups.setdefault(call.key, []).append(call)
        for group in groups.values():
            most = max(1, ROWS // max(len(call.inputs[0]) for call in group))
            for first in range(0, len(group), most):
                _run_as_one(group[first : first + most])
        torch.set_num_threads(1)


class Seat:
    """One request's place; generates at most once."""

    def __init__(self, together: Together) -> None:
        self._together: Together | None = together

    def generate(
        self, images: Array, labels: Sequence[str], options: GenerateOptions, **hooks: Any
    ) -> GenerationResult:
        """As `Generator.generate`, in a thread of its own."""
        assert self._together is not None, "the seat was left"
        try:
            return self._together.generate(images, labels, options, **hooks)
        finally:
            self.leave()

    def leave(self) -> None:
        """Let the others no longer wait for this one."""
        if self._together is not None:
            self._together.leave()
            self._together = None


def _run_as_one(calls: list[_Call]) -> None:
    if len(calls) > 1:
        sizes = [len(call.inputs[0]) for call in calls]
        try:
            joined = [torch.cat(parts) for parts in zip(*(call.inputs for call in calls), strict=True)]
            outputs = torch.split(calls[0].run(*joined), sizes)
        except Exception:  # noqa: BLE001 - one of them is to blame: alone, the others do not suffer from it
            outputs = ()
        for call, output in zip(calls, outputs, strict=False):  # none, if the batch failed
            call.output = output
    for call in calls:
        if call.output is None:
            call.answer(*call.inputs)
