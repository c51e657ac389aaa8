"""Jobs about similarity: two checkpoints, a matrix of stored models, the neighbours of one."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from loomweight.errors import InvalidBundle, InvalidCheckpoint
from loomweight.similarity import Embedding, Similarity, Sketch
from loomweight.similarity.scoring import METHOD
from model_store import keys
from model_store.records import ModelCard
from model_store.store import Corrupt, NotFound, StoreUnavailable
from workers import metrics
from workers.attempts import Attempt, Outcome, Refused, run
from workers.embeddings import Embeddings, tensors_of
from workers.lease import with_patience
from workers.messages import (
    Checkpoint,
    JobResult,
    LayerPair,
    MatrixRequest,
    MatrixResult,
    Neighbour,
    NeighboursRequest,
    NeighboursResult,
    SimilarityBaselines,
    SimilarityRequest,
    SimilarityResult,
)
from workers.runtime import Runtime

_log = logging.getLogger(__name__)
KIND = "similarity"
_PAGE = 200


def compare(job_id: str, runtime: Runtime) -> Outcome:
    """Run the job if it is to be run; never raises but for what ends the process."""
    return run(job_id, runtime, KIND, _produce)


def _produce(attempt: Attempt) -> JobResult:
    record, request = attempt.record, attempt.record.request
    try:
        part = attempt.runtime.similarity
    except InvalidBundle as error:
        raise Refused(
            "no-similarity-part",
            "The service cannot compare checkpoints",
            503,
            "This bundle has no similarity part. Ask the operator to install a bundle that has one.",
        ) from error
    waited = (record.started_at or record.created_at) - record.created_at
    metrics.SIMILARITY_SECONDS.labels(record.kind, "queue").observe(waited.total_seconds())
    if isinstance(request, SimilarityRequest):
        return _pair(attempt, part, request)
    if isinstance(request, MatrixRequest):
        return _matrix(attempt, part, request)
    assert isinstance(request, NeighboursRequest), "the task is sent for these kinds alone"
    return _neighbours(attempt, part, request)


def _pair(attempt: Attempt, part: Similarity, request: SimilarityRequest) -> SimilarityResult:
    tensors: list[dict[str, Tensor]] = []
    embedded: list[Embedding] = []
    for name, side in (("a", request.a), ("b", request.b)):
        attempt.check()
        with _refusing(f"Checkpoint {name}", f"/{name}"):
            if name == "b" and request.a.sha256 == request.b.sha256:
                tensors.append(tensors[0])
                embedded.append(embedded[0])
                continue
            with _timed(attempt, "read"):
                tensors.append(tensors_of(_bytes(attempt, name, side)))
            with _timed(attempt, "embed"):
                embedded.append(part.embed(tensors[-1]))
    attempt.check()
    with _timed(attempt, "compare"):
        found = part.compare_embedded(embedded[0], embedded[1], tensors[0], tensors[1], leave_out=("layerwise_cosine",))
    architectures = "same" if embedded[0].fingerprint == embedded[1].fingerprint else "different"
    metrics.SIMILARITY.labels(architectures).observe(found.similarity)
    return SimilarityResult(
        similarity=found.similarity,
        same_task_probability=found.same_task_probability,
        method=METHOD,
        bundle=attempt.runtime.generator.bundle.id,
        part=part.id,
        layers=tuple(LayerPair(a=pair.a, b=pair.b, similarity=pair.similarity) for pair in found.layers),
        baselines=SimilarityBaselines(**{name: found.baselines[name] for name in SimilarityBaselines.model_fields}),
        warnings=found.warnings,
    )


def _matrix(attempt: Attempt, part: Similarity, request: MatrixRequest) -> MatrixResult:
    embeddings, sketches = attempt.runtime.embeddings, []
    for step, model_id in enumerate(request.ids):
        attempt.check()
        attempt.lease.report("embed", step, len(request.ids))
        with _refusing(f"The model {model_id}", f"/ids/{step}"), _timed(attempt, "embed"):
            sketches.append(embeddings.of(_card(attempt, model_id)))
    warnings = [warning for i, s in zip(request.ids, sketches, strict=True) for warning in part.about(i, s)]
    if len({s.fingerprint for s in sketches}) > 1:
        warnings.insert(0, "The networks have different architectures: scores between these are lower.")
    return MatrixResult(
        ids=request.ids,
        matrix=tuple(tuple(row) for row in part.matrix(sketches).tolist()),
        method=METHOD,
        bundle=attempt.runtime.generator.bundle.id,
        part=part.id,
        warnings=tuple(warnings),
    )


def _neighbours(attempt: Attempt, part: Similarity, request: NeighboursRequest) -> NeighboursResult:
    runtime = attempt.runtime
    with _refusing(f"The model {request.model}", "/model_id"), _timed(attempt, "embed"):
        own = runtime.embeddings.of(_card(attempt, request.model))
    names, sketches, left = _stored(attempt, runtime.embeddings, request.model)
    with _timed(attempt, "compare"):
        found = [
            Neighbour(
                id=name,
                source="store",
                similarity=part.score(each.vector, own.vector),
                same_architecture=each.fingerprint == own.fingerprint,
            )
            for name, each in zip(names, sketches, strict=True)
        ]
        warnings = part.about(request.model, own)
        if left:
            warnings.append(f"{left} stored models were not embedded yet, or cannot be: ask again to search more.")
        zoo = runtime.zoo_index
        if zoo is None:
            warnings.append("This bundle has no embeddings of its zoo models: only stored ones were searched.")
        else:
            near = (zoo.vectors @ own.vector).clamp(-1, 1)
            for i in near.topk(min(request.k, len(near))).indices.tolist():
                same = zoo.fingerprints[i] == own.fingerprint
                score = part.score(zoo.vectors[i], own.vector)
                found.append(Neighbour(id=zoo.names[i], source="zoo", similarity=score, same_architecture=same))
    found.sort(key=lambda n: (-n.similarity, n.source, n.id))
    return NeighboursResult(
        model=request.model,
        neighbours=tuple(found[: request.k]),
        searched={"store": len(names), "zoo": len(zoo.names) if zoo else 0},
        method=METHOD,
        bundle=runtime.generator.bundle.id,
        part=part.id,
        warnings=tuple(warnings),
    )


def _stored(attempt: Attempt, embeddings: Embeddings, own: str) -> tuple[list[str], list[Sketch], int]:
    """The newest models' names and embeddings, of which not too many are made now; and how many are left without."""
    runtime = attempt.runtime
    names, sketches, left, makeable = [], [], 0, runtime.settings.neighbours_embedded
    for step, card in enumerate(_newest(attempt, runtime.settings.neighbours_searched)):
        attempt.check()
        if step % 50 == 0:
            attempt.lease.report("embed", step, step)
        if card.id == own:
            continue
        try:
            sketch = embeddings.known(card)
            if sketch is None and makeable:
                makeable -= 1
                with _timed(attempt, "embed"):
                    sketch = embeddings.make(card)
        except (InvalidCheckpoint, NotFound, Corrupt):
            sketch = None
        if sketch is None:
            left += 1
        else:
            names.append(card.id)
            sketches.append(sketch)
    return names, sketches, left


def _newest(attempt: Attempt, most: int) -> Iterator[ModelCard]:
    after = None
    while most > 0:
        owner = attempt.record.owner
        listing = partial(attempt.runtime.models.list, after=after, limit=min(_PAGE, most), owner=owner)
        page = with_patience(listing, attempt.runtime.settings.outage_s, StoreUnavailable)
        yield from page.models
        most -= len(page.models)
        after = page.next_cursor
        if after is None:
            return


def _card(attempt: Attempt, model_id: str) -> ModelCard:
    card = partial(attempt.runtime.models.card, model_id)
    return with_patience(card, attempt.runtime.settings.outage_s, StoreUnavailable)


def _bytes(attempt: Attempt, name: str, side: Checkpoint) -> bytes:
    if side.model is not None:
        return attempt.runtime.embeddings.read(_card(attempt, side.model))
    get = partial(attempt.runtime.models.store.get, keys.job_input(attempt.record.id, name))
    return with_patience(get, attempt.runtime.settings.outage_s, StoreUnavailable)


@contextmanager
def _refusing(what: str, pointer: str) -> Iterator[None]:
    """Turn what is wrong with one checkpoint into the job's problem."""
    try:
        yield
    except InvalidCheckpoint as error:
        title = "The checkpoint cannot be compared"
        detail = f"{what} cannot be compared: {str(error).rstrip('.')}."
        raise Refused("invalid-checkpoint", title, 422, detail, pointer=pointer) from error
    except NotFound as error:
        detail = f"{what} is no longer stored. Send the request again."
        raise Refused("inputs-gone", "The checkpoint is gone", 410, detail, pointer=pointer) from error


@contextmanager
def _timed(attempt: Attempt, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    metrics.SIMILARITY_SECONDS.labels(attempt.record.kind, stage).observe(time.perf_counter() - start)
