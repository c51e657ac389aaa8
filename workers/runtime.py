"""What a worker process holds between jobs: the bundle, loaded once and after the fork, and its connections."""

import logging
import os
import socket
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Self

import numpy as np
import torch
from redis import RedisError

from loomweight.errors import InvalidBundle
from loomweight.generator import GenerateOptions, Generator
from loomweight.similarity import Similarity, ZooIndex
from model_store.measured import MeasuredStore
from model_store.models import ModelRepository
from workers import metrics
from workers.embeddings import Embeddings
from workers.jobs import Jobs
from workers.messages import WorkerInfo
from workers.registry import Registry
from workers.worker_settings import WorkerSettings

_log = logging.getLogger(__name__)
_WARM_UP_IMAGES = 8  # of each class
_BATCH_JOBS, _BATCH_WAIT_S = 16, 0.05  # on a GPU
_MOST_CORES = 2  # Threads of one process take turns in all that Python does: more cores want more workers.


@dataclass(frozen=True)
class Runtime:
    """Everything a task needs, so that none reaches for a global."""

    settings: WorkerSettings
    worker_id: str
    device: str
    generator: Generator
    jobs: Jobs
    models: ModelRepository
    registry: Registry

    @cached_property
    def lanes(self) -> int:
        """How many jobs run at once."""
        # Twice as many as can compute: the others read and store.
        on_cpu = 2 * min(_MOST_CORES, torch.get_num_threads())
        return self.settings.batch_jobs or (on_cpu if self.device == "cpu" else _BATCH_JOBS)

    @cached_property
    def batch_wait_s(self) -> float:
        """How long they wait for each other, to go through the networks as one."""
        given = self.settings.batch_wait_s
        return (0 if self.device == "cpu" else _BATCH_WAIT_S) if given is None else given

    @cached_property
    def similarity(self) -> Similarity:
        """The bundle's similarity part, loaded once. Raises `InvalidBundle` where it has none."""
        return Similarity.load(self.settings.bundle_dir)

    @cached_property
    def embeddings(self) -> Embeddings:
        """Those of stored models, by that part. Raises `InvalidBundle`, too."""
        return Embeddings(self.models, self.similarity, self.settings.outage_s)

    @cached_property
    def zoo_index(self) -> ZooIndex | None:
        """The embedded zoo models of the bundle, None where they did not come with this similarity part."""
        return ZooIndex.load(self.settings.bundle_dir, self.similarity)


def load(settings: WorkerSettings) -> Runtime:
    """Load the bundle, run it once, open the connections. Raises what any of these raises."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"  # asked only here: CUDA does not survive a fork
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    threads = torch.get_num_threads()
    alone = device == "cpu" and settings.batch_jobs != 1  # each job on one core, in all it does
    generator = Generator.load(
        settings.bundle_dir, device=device, backend=settings.backend, threads=1 if alone else threads
    )
    torch.set_num_threads(threads)
    _warm_up(generator)
    metrics.BUNDLE.labels(bundle=generator.bundle.id, device=device).set(1)
    metrics.watch_device(device)
    redis = settings.open_redis()
    jobs, registry = settings.open_jobs(redis), settings.open_registry(redis)
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    store = MeasuredStore(settings.open_store(), metrics.observe_store)
    runtime = Runtime(settings, worker_id, device, generator, jobs, ModelRepository(store), registry)
    try:
        warm_up_similarity(runtime.similarity)
    except InvalidBundle as error:
        _log.warning("similarity jobs will be refused: %s", error)
    return runtime


def warm_up_similarity(part: Similarity) -> None:
    """Compare once: the first comparison pays for lazy set-up."""
    made = torch.Generator().manual_seed(0)
    small = {
        "a.weight": torch.randn(8, 3, 3, 3, generator=made),
        "b.weight": torch.randn(8, 8, 3, 3, generator=made),
        "c.weight": torch.randn(4, 8, generator=made),
    }
    part.compare(small, small)


def _warm_up(generator: Generator) -> None:
    """Generate once: the first run pays for lazy set-up, and a bundle that cannot generate is better found now."""
    target = generator.targets()[0]
    classes = max(2, target.min_classes)
    labels = [f"class {i % classes}" for i in range(_WARM_UP_IMAGES * classes)]
    images = np.random.default_rng(0).random((len(labels), 3, 32, 32), dtype=np.float32)
    generator.generate(images, labels, GenerateOptions(target=target.id, candidates=1, seed=0))


class Presence:
    """Keeps the worker in the registry from a thread, from `__enter__` to `__exit__`."""

    def __init__(self, runtime: Runtime) -> None:
        settings = runtime.settings
        self._registry = runtime.registry
        self._ttl = settings.worker_ttl_s
        self._info = WorkerInfo(
            id=runtime.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            bundle=runtime.generator.bundle.id,
            targets=tuple(target.id for target in runtime.generator.targets()),
            device=runtime.device,
            started_at=datetime.now(UTC),
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        try:
            self._registry.leave(self._info.id)
        except RedisError as error:
            _log.warning("the worker will be forgotten rather than signed off: %s", error)

    def _repeat(self) -> None:
        while True:
            try:
                self._registry.announce(self._info.model_copy(update={"heartbeat": datetime.now(UTC)}), self._ttl)
            except RedisError as error:
                _log.warning("the worker cannot announce itself: %s", error)
            if self._done.wait(self._ttl / 3):
                return
