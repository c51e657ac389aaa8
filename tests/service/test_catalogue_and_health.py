import hashlib
import json
from pathlib import Path

from tests.service.conftest import Start
from tests.service.gateway import MANIFEST, Gateway, a_worker, save_model, write_bundle
from tests.service.problems import problem
from tests.valkey import free_port


def test_targets(gateway: Gateway) -> None:
    body = gateway.client.get("/targets").json()
    assert body["default"] == "cnn-s"
    mlp, cnn = body["targets"]
    assert mlp == MANIFEST["targets"][0]
    assert (cnn["min_classes"], cnn["expected"]) == (2, None)


def test_bundles(gateway: Gateway) -> None:
    [bundle] = gateway.client.get("/bundles").json()["bundles"]
    text = (gateway.services.settings.bundle_dir / "bundle.json").read_bytes()
    assert bundle == {
        "id": MANIFEST["id"],
        "sha256": hashlib.sha256(text).hexdigest(),
        "version": 1,
        "targets": ["mlp", "cnn-s"],
        "default_target": "cnn-s",
        "defaults": MANIFEST["defaults"],
        "card": MANIFEST["card"],
        "files": MANIFEST["files"],
    }


def test_a_new_bundle_is_seen_and_a_broken_one_reported(gateway: Gateway) -> None:
    folder = gateway.services.settings.bundle_dir
    write_bundle(folder, id="starter-2", default_target=None)
    assert gateway.client.get("/bundles").json()["bundles"][0]["id"] == "starter-2"
    assert gateway.client.get("/targets").json()["default"] == "mlp"
    for broken in ("{", "{}", json.dumps(MANIFEST | {"targets": []})):
        (folder / "bundle.json").write_text(broken)
        problem(gateway.client.get("/targets"), 503, "unavailable")
    problem(gateway.post(), 503, "unavailable")


def test_live(gateway: Gateway) -> None:
    assert gateway.client.get("/livez").json() == {"status": "alive"}


def test_ready_means_that_a_worker_consumes(gateway: Gateway) -> None:
    assert problem(gateway.client.get("/readyz"), 503, "unavailable")["detail"] == "Missing: worker."
    gateway.services.workers.announce(a_worker(), ttl=30)
    assert gateway.client.get("/readyz").json() == {"status": "ready", "bundle": MANIFEST["id"], "workers": 1}
    gateway.services.workers.leave("worker-1")
    problem(gateway.client.get("/readyz"), 503, "unavailable")


def test_readiness_names_everything_that_is_missing(start: Start, tmp_path: Path) -> None:
    gateway = start(redis_url=f"redis://127.0.0.1:{free_port()}/0", bundle_dir=tmp_path / "none")
    body = problem(gateway.client.get("/readyz"), 503, "unavailable")
    assert body["detail"] == "Missing: broker, bundle, worker."
    assert gateway.client.get("/livez").status_code == 200


def test_where_workers_scale_to_zero_a_gateway_is_ready_without_one(start: Start) -> None:
    gateway = start(ready_without_workers=True)
    assert gateway.client.get("/readyz").json() == {"status": "ready", "bundle": MANIFEST["id"], "workers": 0}


def metrics(gateway: Gateway) -> dict[str, float]:
    lines = [line for line in gateway.client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_count_by_route_template(gateway: Gateway) -> None:
    save_model(gateway.services.models)
    for path in ("/models/m-1", "/models/m-1", "/models/m-2", "/nowhere/1", "/nowhere/2"):
        gateway.client.get(path)
    seen = metrics(gateway)
    name = "loomweight_http_requests_total"
    assert seen[name + '{method="GET",route="/models/{model_id}",status="200"}'] == 2
    assert seen[name + '{method="GET",route="/models/{model_id}",status="404"}'] == 1
    assert seen[name + '{method="GET",route="unmatched",status="404"}'] == 2
    assert seen['loomweight_http_request_duration_seconds_count{method="GET",route="/models/{model_id}"}'] == 3
    assert seen["process_resident_memory_bytes"] > 0


def test_queues_are_read_when_asked(start: Start) -> None:
    gateway = start(inline_bytes=0)
    ids = [gateway.post().json()["id"] for _ in range(3)]
    gateway.jobs.claim(ids[0], "w", 30)
    gateway.services.workers.announce(a_worker(), ttl=30)
    seen = metrics(gateway)
    assert seen['loomweight_jobs_queued{queue="generate"}'] == 2
    assert seen['loomweight_jobs_running{queue="generate"}'] == 1
    assert seen['loomweight_jobs_queued{queue="large"}'] == 0
    assert seen["loomweight_workers_alive"] == 1
    assert 0 < seen['loomweight_jobs_longest_wait_seconds{queue="generate"}'] < 60
    assert seen['loomweight_jobs_longest_wait_seconds{queue="large"}'] == 0
    assert seen["loomweight_jobs_queued_limit"] == 1_000
    assert seen["loomweight_broker_up"] == 1
    assert 0 < seen["loomweight_broker_memory_bytes"] < seen["loomweight_broker_memory_limit_bytes"]
    assert seen["loomweight_broker_persists"] == 0, "the tests' broker writes no append-only file"
    assert seen['loomweight_store_operation_seconds_count{operation="put",outcome="ok"}'] == 3
    assert seen['loomweight_jobs_created_total{kind="generate",method="conditional-mean",target="cnn-s"}'] == 3
    assert seen["loomweight_upload_bytes_count"] == 3


def test_metrics_without_a_broker(start: Start) -> None:
    seen = metrics(start(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    assert seen["loomweight_broker_up"] == 0
    assert not any(name.startswith("loomweight_jobs_queued") for name in seen)
