"""Similarity over HTTP: a real gateway, a real worker process, a real Valkey between them."""

import json
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from torch import Generator

from cli.client import LoomweightClient, Refused
from cli.main import main
from loomweight.similarity.permute import shuffled
from model_store import keys
from service.settings import GatewaySettings
from tests.checkpoints import HOSTILE
from tests.loomweight.similarity.networks import resnet, tensors
from tests.service.gateway import Gateway, running, write_bundle
from tests.service.problems import problem
from tests.similarity_part import checkpoint, large, pack, write_part
from tests.workers.test_worker import until, worker
from workers.worker_settings import WorkerSettings


@dataclass(frozen=True)
class Served:
    gateway: Gateway
    pid: int
    log: Path

    @property
    def client(self) -> httpx.Client:
        return self.gateway.client

    def compare(self, a: bytes | str, b: bytes | str, **extra: Any) -> httpx.Response:
        sides = {"a": a, "b": b}
        files = {n: (f"{n}.safetensors", v) for n, v in sides.items() if isinstance(v, bytes)}
        data = {n: v for n, v in sides.items() if isinstance(v, str)}
        if not files:
            return self.client.post("/similarity", json=sides, **extra)
        return self.client.post("/similarity", files=files, data=data, **extra)

    def upload(self, data: bytes, **fields: Any) -> str:
        response = self.client.post("/models", files={"weights": data}, data=fields)
        assert response.status_code in (200, 201), response.text
        return str(response.json()["id"])

    def alive(self) -> bool:
        return [w.pid for w in self.gateway.services.workers.alive()] == [self.pid]


@pytest.fixture(scope="module")
def served(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    bundle = write_bundle(folder / "bundle")
    write_part(bundle)
    with Redis.from_url(valkey) as client:
        client.flushall()
    shared = {"redis_url": valkey, "store_url": str(folder / "store"), "bundle_dir": bundle}
    with (
        running(GatewaySettings(**shared, reaper_interval_s=3_600, max_wait_s=50, require_keys=False)) as gateway,
        worker(WorkerSettings(**shared), folder / "log", LOOMWEIGHT_BUNDLE_DIR=str(bundle)),
    ):
        gateway.client.timeout = httpx.Timeout(60)
        until(gateway.services.workers.alive, 60)
        yield Served(gateway, gateway.services.workers.alive()[0].pid, folder / "log")


def found(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_two_files(served: Served) -> None:
    body = found(served.compare(checkpoint(seed=1), checkpoint(seed=2)))
    assert set(body) == {
        "similarity", "same_task_probability", "method", "bundle", "part", "layers", "baselines", "warnings"
    }  # fmt: skip
    assert -1 <= body["similarity"] < 0.999
    assert 0 <= body["same_task_probability"] <= 1
    assert set(body["baselines"]) == {"cosine", "aligned_cosine", "statistics"}
    assert body["layers"][-1] == {"a": "head", "b": "head", "similarity": body["layers"][-1]["similarity"]}
    assert body["part"].startswith("lps-")


def test_it_is_symmetric(served: Served) -> None:
    a, b = checkpoint(seed=1), checkpoint(seed=2)
    one, two = found(served.compare(a, b)), found(served.compare(b, a))
    assert one["similarity"] == two["similarity"]
    assert one["same_task_probability"] == two["same_task_probability"]
    assert one["baselines"] == pytest.approx(two["baselines"])


@pytest.mark.parametrize("name", ["cnn-l", "residual-4-batch-relu"])
def test_a_model_with_itself_and_with_permuted_copies_is_1(served: Served, name: str) -> None:
    original = tensors(name, 3, 5)
    copy = pack(shuffled(original, Generator().manual_seed(1)))
    assert found(served.compare(pack(original), pack(original)))["similarity"] == pytest.approx(1, abs=1e-6)
    body = found(served.compare(pack(original), copy))
    assert body["similarity"] == pytest.approx(1, abs=1e-4)
    assert body["baselines"]["cosine"] < 0.999
    assert body["baselines"]["aligned_cosine"] == pytest.approx(1, abs=1e-4)


def test_ids_files_and_both(served: Served) -> None:
    a, b = checkpoint(seed=1), checkpoint(seed=2)
    first, second = served.upload(a), served.upload(b)
    scores = {found(served.compare(x, y))["similarity"] for x, y in ((a, b), (first, second), (a, second), (first, b))}
    assert len(scores) == 1


def test_other_architectures_are_compared_with_warnings(served: Served) -> None:
    body = found(served.compare(checkpoint(), pack(resnet())))
    assert "different architectures" in body["warnings"][0]
    assert set(body["baselines"].values()) == {None}
    loose = pack({"a.weight": torch.rand(4, 5), "b.weight": torch.rand(3, 9)})
    assert any("could not be connected" in w for w in found(served.compare(loose, loose))["warnings"])
    fresh = pack({"l.weight": torch.randn(50, 784, generator=Generator().manual_seed(1))})
    assert any("look untrained" in w for w in found(served.compare(fresh, fresh))["warnings"])


def test_a_job_where_it_is_wanted(served: Served) -> None:
    response = served.compare(checkpoint(seed=1), checkpoint(seed=2), headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert (job["kind"], job["request"]["a"]["model"]) == ("similarity", None)
    until(lambda: served.client.get(f"/jobs/{job['id']}").json()["status"] == "succeeded")
    result = served.client.get(f"/jobs/{job['id']}").json()["result"]
    assert result == found(served.compare(checkpoint(seed=1), checkpoint(seed=2)))
    assert served.gateway.store.list(keys.job_inputs(job["id"])) == []


def test_the_same_key_and_question_lead_to_the_same_job(served: Served) -> None:
    a, b, key = checkpoint(seed=1), checkpoint(seed=2), {"Idempotency-Key": "similar-1"}
    first = served.compare(a, b, headers=key | {"Prefer": "respond-async"})
    again = served.compare(a, b, headers=key | {"Prefer": "respond-async"})
    assert again.json()["id"] == first.json()["id"]
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    held = served.compare(a, b, headers=key)
    assert held.headers["idempotent-replayed"] == "true"
    assert found(held) == found(served.compare(a, b))
    problem(served.compare(b, a, headers=key), 422, "idempotency-key-reused")
    ids = {"ids": [served.upload(a), served.upload(b)]}
    problem(served.client.post("/similarity/matrix", json=ids, headers=key), 422, "idempotency-key-reused")


def test_large_checkpoints_lead_to_a_job(served: Served) -> None:
    a, b = large(0, layers=10), large(1, layers=10)
    assert len(a) + len(b) > 30_000_000
    response = served.compare(a, b)
    assert response.status_code == 202, response.text
    job = response.json()["id"]
    until(lambda: served.client.get(f"/jobs/{job}").json()["status"] != "queued", 60)
    until(lambda: served.client.get(f"/jobs/{job}").json()["status"] != "running", 60)
    assert -1 <= served.client.get(f"/jobs/{job}").json()["result"]["similarity"] <= 1


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(served: Served, name: str) -> None:
    data, slug, _ = HOSTILE[name]
    status = {"unsupported-media-type": 415, "too-large": 413, "invalid-checkpoint": 422}[slug]
    body = problem(served.compare(checkpoint(), data), status, slug)
    assert body["errors"][0]["pointer"] == "/b"
    problem(served.client.post("/models", files={"weights": ("x", data)}), status, slug)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"l.weight": torch.tensor([[1.0, float("nan")]])}, "'l.weight' holds NaN or infinity"),
        ({"l.weight": torch.tensor([[1.0, float("inf")]])}, "'l.weight' holds NaN or infinity"),
        ({"l.weight": torch.zeros(3, 4)}, "answers every input alike"),
        ({"l.weight": torch.full((3, 4), 1e30)}, "values beyond"),
        ({"l.bias": torch.zeros(3)}, "no layer"),
        ({"l.weight": torch.ones(3, 4, dtype=torch.int64)}, "no layer"),
        ({"l.weight": torch.ones(1, 300_000)}, "300,000|262,144"),
        ({f"{i}.weight": torch.ones(1, 1) for i in range(2_001)}, "2,001 layers"),
    ],
)
def test_values_that_cannot_be_compared(served: Served, made: dict[str, torch.Tensor], complaint: str) -> None:
    model_id = served.upload(pack(made))  # stored all the same: values are looked at where they are compared
    body = problem(served.compare(checkpoint(), pack(made)), 422, "invalid-checkpoint")
    assert body["detail"].startswith("Checkpoint b cannot be compared: ")
    assert re.search(complaint, body["detail"])
    assert body["errors"][0]["pointer"] == "/b"
    ids = [served.upload(checkpoint()), model_id]
    body = problem(served.client.post("/similarity/matrix", json={"ids": ids}), 422, "invalid-checkpoint")
    assert body["errors"][0]["pointer"] == "/ids/1"
    problem(served.client.get(f"/models/{model_id}/neighbours"), 422, "invalid-checkpoint")
    assert served.alive()


def test_requests_that_make_no_sense(served: Served) -> None:
    post, good = served.client.post, checkpoint()
    assert problem(served.compare("m-none", good), 404, "not-found")["errors"][0]["pointer"] == "/a"
    assert problem(served.compare("m-none", "m-none"), 404, "not-found")["errors"][0]["pointer"] == "/a"
    problem(post("/similarity", files={"a": good}), 422, "invalid-request")
    problem(post("/similarity", files={"a": good, "c": good}), 422, "invalid-request")
    problem(post("/similarity", files=[("a", good), ("a", good)]), 422, "invalid-request")
    problem(post("/similarity", files=[("a", good)] * 3), 422, "invalid-request")
    problem(post("/similarity", json={"a": "x"}), 422, "invalid-request")
    problem(post("/similarity", json={"a": "x", "b": "y" * 200_000}), 413, "too-large")
    problem(post("/similarity", content=b"{", headers={"content-type": "application/json"}), 400, "malformed-request")
    problem(post("/similarity", content=b"x"), 415, "unsupported-media-type")
    broken = {"content-type": "multipart/form-data; boundary=x"}
    problem(post("/similarity", content=b"nonsense", headers=broken), 400, "malformed-request")
    problem(post("/similarity/matrix", json={"ids": ["x"]}), 422, "invalid-request")
    problem(post("/similarity/matrix", json={"ids": ["x", "y"]}), 404, "not-found")
    problem(post("/similarity/matrix", json={"ids": ["x"] * 101}), 413, "too-large")
    problem(served.client.get("/models/m-none/neighbours"), 404, "not-found")
    model_id = served.upload(good)
    problem(served.client.get(f"/models/{model_id}/neighbours", params={"k": 0}), 422, "invalid-request")


def test_a_bundle_without_the_part(served: Served, tmp_path: Path, valkey: str) -> None:
    part = served.gateway.services.settings.bundle_dir
    shared = {"redis_url": valkey, "redis_prefix": "bare:", "store_url": str(tmp_path / "store")}
    bundle = write_bundle(tmp_path / "bundle")
    assert part != bundle
    database = valkey.removesuffix("/0") + "/1"  # queues of its own
    shared["redis_url"] = database
    with (
        running(GatewaySettings(**shared, bundle_dir=bundle, reaper_interval_s=3_600, require_keys=False)) as gateway,
        worker(
            WorkerSettings(**shared),
            tmp_path / "log",
            LOOMWEIGHT_BUNDLE_DIR=str(bundle),
            LOOMWEIGHT_REDIS_PREFIX="bare:",
        ),
    ):
        gateway.client.timeout = httpx.Timeout(60)
        until(gateway.services.workers.alive, 60)
        bare = Served(gateway, 0, tmp_path / "log")
        body = problem(bare.compare(checkpoint(), checkpoint()), 503, "no-similarity-part")
        assert "This bundle has no similarity part" in body["detail"]


# Stored models ----------------------------------------------------------------------------------------------------


def test_an_uploaded_model_is_stored_with_its_card(served: Served) -> None:
    data = checkpoint(seed=11)
    form = {"classes": ["cat", "dog", "eel"], "licence": "MIT"}
    response = served.client.post("/models", files={"weights": data}, data=form)
    assert response.status_code == 201
    card = response.json()
    assert response.headers["location"] == f"/models/{card['id']}"
    assert (card["origin"], card["size"], card["target"], card["licence"]) == ("uploaded", len(data), None, "MIT")
    assert card["classes"] == ["cat", "dog", "eel"]
    assert {t["name"]: tuple(t["shape"]) for t in card["tensors"]}["head.weight"][0] == 3
    assert served.client.get(f"/models/{card['id']}").json() == card
    assert served.client.get(f"/models/{card['id']}/weights").content == data
    again = served.client.post("/models", files={"weights": data})
    assert again.status_code == 200
    assert again.json() == card


def test_uploads_that_make_no_sense(served: Served) -> None:
    post, good = served.client.post, {"weights": checkpoint()}
    problem(post("/models", files={"other": checkpoint()}), 422, "invalid-request")
    problem(post("/models", files=[("weights", checkpoint())] * 2), 422, "invalid-request")
    problem(post("/models", files=good, data={"classes": ["a", "a"]}), 422, "invalid-request")
    problem(post("/models", files=good, data={"classes": ["a", "\n"]}), 422, "invalid-request")
    problem(post("/models", files=good, data={"licence": "x" * 201}), 422, "invalid-request")
    problem(post("/models", json={}), 415, "unsupported-media-type")
    body = problem(post("/models", files={"weights": pickle.dumps({})}), 415, "unsupported-media-type")
    assert "save_file" in body["detail"]
    assert "weights_only=True" in body["detail"]


def test_a_matrix(served: Served) -> None:
    ids = [served.upload(checkpoint(seed=s)) for s in (1, 2, 3)]
    body = found(served.client.post("/similarity/matrix", json={"ids": ids}))
    matrix = body["matrix"]
    assert body["ids"] == ids
    assert all(matrix[i][i] == 1 for i in range(3))
    assert all(matrix[i][j] == matrix[j][i] for i in range(3) for j in range(3))
    pair = found(served.compare(ids[0], ids[1]))
    assert matrix[0][1] == pytest.approx(pair["similarity"], abs=1e-6)


def test_embeddings_are_kept_beside_the_model_and_go_with_it(served: Served) -> None:
    ids = [served.upload(checkpoint(seed=s)) for s in (21, 22)]
    body = found(served.client.post("/similarity/matrix", json={"ids": ids}))
    kept = keys.embedding(ids[0], body["part"])
    assert served.gateway.store.head(kept).size < 100_000
    served.client.delete(f"/models/{ids[0]}")
    assert served.gateway.store.list(f"models/{ids[0]}/") == []


def test_neighbours(served: Served) -> None:
    original = tensors("cnn-l", 3, 31)
    own, copy = (served.upload(pack(t)) for t in (original, shuffled(original, Generator().manual_seed(1))))
    served.upload(pack({"l.weight": torch.full((2, 3), float("nan"))}))
    body = found(served.client.get(f"/models/{own}/neighbours", params={"k": 2}))
    first, second = body["neighbours"]
    assert (first["id"], first["source"], first["same_architecture"]) == (copy, "store", True)
    assert first["similarity"] == pytest.approx(1, abs=1e-4)
    assert second["similarity"] <= first["similarity"]
    assert own not in (first["id"], second["id"])
    assert body["searched"]["store"] >= 2
    assert any("no embeddings of its zoo" in w for w in body["warnings"])
    assert any("cannot be" in w for w in body["warnings"])


# Anything -----------------------------------------------------------------------------------------------------------

sizes = st.integers(0, 6)
shapes = st.lists(sizes, max_size=5).map(tuple)
kinds = st.sampled_from([
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.uint16, torch.bool,
    torch.complex64, torch.float8_e4m3fn,
])  # fmt: skip
names = st.builds(
    lambda m, n, p: f"{m}{n}.{p}",
    st.sampled_from(["conv", "bn", "", "block."]),
    st.integers(0, 3),
    st.sampled_from(["weight", "bias", "running_mean", "running_var", "in_proj_weight", "embed.weight", "x"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.tuples(shapes, kinds), min_size=1, max_size=8), st.integers(0, 1000))
def test_any_mix_of_tensors_is_scored_or_refused(
    served: Served, given_tensors: dict[str, tuple[tuple[int, ...], torch.dtype]], seed: int
) -> None:
    made = Generator().manual_seed(seed)
    mix = {k: (3 * torch.randn(s, generator=made)).to(t) for k, (s, t) in given_tensors.items()}
    response = served.compare(pack(mix), pack(mix))
    if response.status_code == 200:
        assert response.json()["similarity"] == pytest.approx(1, abs=1e-5)
    else:
        problem(response, 422, "invalid-checkpoint")
    assert found(served.compare(checkpoint(), checkpoint(seed=1)))["method"] == "chain"


def test_the_worker_lived_through_all_of_it(served: Served) -> None:
    assert served.alive()
    assert "Traceback" not in served.log.read_text()
    status = Path(f"/proc/{served.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 1_500_000
    assert os.getpid() != served.pid
    assert json.loads(served.client.get("/openapi.json").text)["paths"]["/similarity"]


def test_the_client_and_the_command(served: Served, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths, start=1):
        path.write_bytes(checkpoint(seed=seed))
    with LoomweightClient(served.gateway.url, timeout=60) as client:
        ids = [client.upload(path, classes=["a", "b", "c"], licence="MIT")["id"] for path in paths]
        assert client.similarity(paths[0], ids[1])["similarity"] == client.similarity(*ids)["similarity"]
        assert client.neighbours(ids[0], k=1)["neighbours"]
        with pytest.raises(Refused, match="There is no model"):
            client.similarity(ids[0], "m-none")
    for names in ([str(p) for p in paths], [*ids, ids[0]]):
        result = CliRunner().invoke(main, ["similarity", *names, "--server", served.gateway.url, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["matrix"][0][0] == 1
