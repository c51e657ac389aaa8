"""Jobs about similarity, in process: what the stages do with the store, and how they end."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from prometheus_client import REGISTRY

from loomweight.similarity import Similarity, index
from model_store import keys
from model_store.checkpoint import read_header
from model_store.records import Lineage, ModelCard
from tests.loomweight.similarity.networks import tensors
from tests.similarity_part import checkpoint, pack, write_part
from workers import similarity
from workers.messages import (
    SIMILARITY_QUEUE,
    Checkpoint,
    JobRecord,
    JobRequest,
    MatrixRequest,
    MatrixResult,
    NeighboursRequest,
    NeighboursResult,
    SimilarityRequest,
    SimilarityResult,
)
from workers.runtime import Runtime

Ask = Callable[..., JobRecord]
NAN = pack({"l.weight": torch.full((2, 3), float("nan"))})


@pytest.fixture
def part(runtime: Runtime) -> Similarity:
    write_part(runtime.settings.bundle_dir)
    return Similarity.load(runtime.settings.bundle_dir)


@pytest.fixture
def ask(runtime: Runtime) -> Ask:
    """Record a job, run it, return it."""

    def do(kind: str, request: JobRequest, expected: str = "succeeded", **uploads: bytes) -> JobRecord:
        job_id = f"job-{len(runtime.jobs.page().jobs)}"
        for name, data in uploads.items():
            runtime.models.store.put(keys.job_input(job_id, name), data, content_type="application/octet-stream")
        record = JobRecord.model_validate({"id": job_id, "kind": kind, "queue": SIMILARITY_QUEUE, "request": request})
        runtime.jobs.create(record)
        assert similarity.compare(job_id, runtime) == expected
        return runtime.jobs.get(job_id)

    return do


def side(data: bytes, model: str | None = None) -> Checkpoint:
    return Checkpoint(model=model, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def save(runtime: Runtime, model_id: str, data: bytes) -> str:
    card = ModelCard(
        id=model_id, target=None, classes=(), origin="uploaded", seed=None, bundle=None,
        sha256=hashlib.sha256(data).hexdigest(), size=len(data), tensors=(), measured=None, lineage=Lineage(),
        licence="MIT", created_at=datetime.now(UTC),
    )  # fmt: skip
    return runtime.models.save(card, data).id


def made(source: str) -> float:
    return REGISTRY.get_sample_value("loomweight_similarity_embeddings_total", {"source": source}) or 0


def test_a_pair(runtime: Runtime, part: Similarity, ask: Ask) -> None:
    a, b = checkpoint(seed=1), checkpoint(seed=2)
    job = ask("similarity", SimilarityRequest(a=side(a), b=side(b)), a=a, b=b)
    expected = part.compare(tensors("cnn-l", 3, 1), tensors("cnn-l", 3, 2))
    assert isinstance(job.result, SimilarityResult)
    assert job.result.similarity == pytest.approx(expected.similarity)
    assert job.result.part == part.id
    assert len(job.result.layers) == len(expected.layers)
    assert runtime.models.store.list(keys.job_inputs(job.id)) == []
    assert REGISTRY.get_sample_value("loomweight_similarity_score_count", {"architectures": "same"})


def test_uploads_that_are_gone_and_values_that_are_not_numbers(part: Similarity, ask: Ask) -> None:
    a = checkpoint(seed=1)
    gone = ask("similarity", SimilarityRequest(a=side(a), b=side(NAN)), "failed", a=a)
    assert gone.error
    assert (gone.error.status, gone.error.errors[0].pointer) == (410, "/b")
    bad = ask("similarity", SimilarityRequest(a=side(NAN), b=side(a)), "failed", a=NAN, b=a)
    assert bad.error
    assert (bad.error.status, bad.error.errors[0].pointer) == (422, "/a")
    assert bad.error.type.endswith(":invalid-checkpoint")


def test_a_file_that_is_not_what_the_gateway_saw(part: Similarity, ask: Ask) -> None:
    a = checkpoint(seed=1)
    job = ask("similarity", SimilarityRequest(a=side(a), b=side(b"x")), "failed", a=a, b=a[:-5])
    assert job.error
    assert "cut off" in job.error.detail


def test_no_part(ask: Ask) -> None:
    a = checkpoint(seed=1)
    job = ask("similarity", SimilarityRequest(a=side(a), b=side(a)), "failed", a=a, b=a)
    assert job.error
    assert job.error.status == 503
    assert "This bundle has no similarity part" in job.error.detail


def test_embeddings_are_made_once(runtime: Runtime, part: Similarity, ask: Ask) -> None:
    ids = tuple(save(runtime, f"m-{s}", checkpoint(seed=s)) for s in (1, 2))
    before = {s: made(s) for s in ("made", "memory", "store")}
    first = ask("similarity-matrix", MatrixRequest(ids=ids))
    ask("similarity-matrix", MatrixRequest(ids=ids))
    del runtime.__dict__["embeddings"]  # as after a restart
    again = ask("similarity-matrix", MatrixRequest(ids=ids))
    assert isinstance(first.result, MatrixResult)
    assert first.result == again.result
    assert {s: made(s) - before[s] for s in before} == {"made": 2, "memory": 2, "store": 2}
    write_part(runtime.settings.bundle_dir, seed=1)  # with another part they are other embeddings
    del runtime.__dict__["embeddings"], runtime.__dict__["similarity"]
    ask("similarity-matrix", MatrixRequest(ids=ids))
    assert made("made") - before["made"] == 4
    assert len(runtime.models.store.list(keys.embeddings("m-1"))) == 2


def test_a_damaged_embedding_is_made_again(runtime: Runtime, part: Similarity, ask: Ask) -> None:
    ids = tuple(save(runtime, f"m-{s}", checkpoint(seed=s)) for s in (1, 2))
    runtime.models.store.put(keys.embedding("m-1", part.id), b"nonsense", content_type="application/octet-stream")
    assert ask("similarity-matrix", MatrixRequest(ids=ids)).result
    assert index.unpack(runtime.models.store.get(keys.embedding("m-1", part.id)))


def test_neighbours_among_stored_and_zoo_models(runtime: Runtime, part: Similarity, ask: Ask) -> None:
    sketches = [part.embed(tensors("cnn-l", 3, s)).sketch for s in (1, 7)]
    index._write(runtime.settings.bundle_dir, part, ["cnn-l/0", "cnn-l/1"], sketches)
    save(runtime, "m-own", checkpoint(seed=1))
    save(runtime, "m-same", pack({f"net.{k}": v for k, v in tensors("cnn-l", 3, 1).items()}))
    save(runtime, "m-other", checkpoint(seed=3))
    save(runtime, "m-nan", NAN)
    result = ask("neighbours", NeighboursRequest(model="m-own", k=3)).result
    assert isinstance(result, NeighboursResult)
    assert [(n.id, n.source) for n in result.neighbours[:2]] == [("m-same", "store"), ("cnn-l/0", "zoo")]
    assert [n.similarity for n in result.neighbours[:2]] == pytest.approx([1, 1], abs=1e-3)
    assert result.searched == {"store": 2, "zoo": 2}
    assert "1 stored models" in result.warnings[-1]


def test_a_search_embeds_only_so_many(runtime: Runtime, part: Similarity, ask: Ask) -> None:
    object.__setattr__(runtime, "settings", runtime.settings.model_copy(update={"neighbours_embedded": 1}))
    for s in range(4):
        save(runtime, f"m-{s}", checkpoint(seed=s))
    searched = []
    for _ in range(3):
        result = ask("neighbours", NeighboursRequest(model="m-0", k=3)).result
        assert isinstance(result, NeighboursResult)
        searched.append(result.searched["store"])
    assert searched == [1, 2, 3]


def test_a_model_that_is_gone(part: Similarity, ask: Ask) -> None:
    job = ask("neighbours", NeighboursRequest(model="m-none", k=3), "failed")
    assert job.error
    assert job.error.status == 410


def test_what_nobody_foresaw_fails_the_job_alone(
    part: Similarity, ask: Ask, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(similarity, "tensors_of", broken)
    a = checkpoint()
    job = ask("similarity", SimilarityRequest(a=side(a), b=side(a)), "failed", a=a, b=a)
    assert job.error
    assert job.error.type.endswith(":internal")


def test_nothing_is_done_twice(runtime: Runtime, part: Similarity, ask: Ask) -> None:
    a = checkpoint()
    job = ask("similarity", SimilarityRequest(a=side(a), b=side(a)), a=a, b=a)
    assert similarity.compare(job.id, runtime) == "skipped"


def test_a_cancel_is_seen(runtime: Runtime, part: Similarity, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.lease.Lease.must_stop", lambda self: True)
    a = checkpoint()
    job = ask("similarity", SimilarityRequest(a=side(a), b=side(a)), "canceled", a=a, b=a)
    assert job.status == "canceled"


def test_the_header_is_read_by_the_one_parser(tmp_path: Path) -> None:
    from workers.embeddings import tensors_of

    path = tmp_path / "x"
    path.write_bytes(checkpoint())
    with path.open("rb") as file:
        described = read_header(file, path.stat().st_size)
    assert {t.name for t in described} == set(tensors_of(path.read_bytes()))
