import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.models.files import Span, parse_range
from service.settings import GatewaySettings
from tests.service.conftest import Start
from tests.service.gateway import Gateway, running, save_model
from tests.service.problems import problem


def test_a_card(gateway: Gateway) -> None:
    card, _ = save_model(gateway.services.models)
    body = gateway.client.get("/models/m-1").json()
    links = body.pop("links")
    assert body == card.model_dump(mode="json")
    assert links == {"card": "/models/m-1", "weights": "/models/m-1/weights", "onnx": "/models/m-1/onnx"}


@pytest.mark.parametrize("model_id", ["m-9", "...", "%2e%2e%2fsecret", "x" * 300, "%00"])
def test_unknown_models(gateway: Gateway, model_id: str) -> None:
    for path in ("", "/weights", "/onnx"):
        problem(gateway.client.get(f"/models/{model_id}{path}"), 404, "not-found")
    problem(gateway.client.delete(f"/models/{model_id}"), 404, "not-found")


def test_pages(gateway: Gateway) -> None:
    names = [save_model(gateway.services.models, f"m-{n}", target="mlp" if n % 2 else "cnn-s")[0].id for n in range(5)]
    first = gateway.client.get("/models", params={"limit": 3}).json()
    second = gateway.client.get("/models", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert sorted(model["id"] for page in (first, second) for model in page["models"]) == names
    assert second["next_cursor"] is None
    of_target = gateway.client.get("/models", params={"target": "mlp"}).json()["models"]
    assert {model["id"] for model in of_target} == {"m-1", "m-3"}
    assert gateway.client.get("/models", params={"target": "no/such"}).json()["models"] == []
    for params in ({"cursor": "x"}, {"limit": "0"}):
        problem(gateway.client.get("/models", params=params), 422, "invalid-request")


def test_weights_whole(gateway: Gateway) -> None:
    card, weights = save_model(gateway.services.models)
    response = gateway.client.get("/models/m-1/weights")
    assert response.status_code == 200
    assert response.content == weights
    assert response.headers["etag"] == f'"{card.sha256}"' == f'"{hashlib.sha256(weights).hexdigest()}"'
    assert response.headers["accept-ranges"] == "bytes"
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["content-disposition"] == 'attachment; filename="m-1.safetensors"'
    assert response.headers["content-length"] == str(len(weights))
    assert response.headers["x-content-type-options"] == "nosniff"

    head = gateway.client.head("/models/m-1/weights")
    assert head.status_code == 200
    assert head.content == b""
    for name in ("etag", "content-length", "content-type", "accept-ranges", "content-disposition", "cache-control"):
        assert head.headers[name] == response.headers[name]


def test_onnx(gateway: Gateway) -> None:
    card, _ = save_model(gateway.services.models)
    assert card.onnx
    response = gateway.client.get("/models/m-1/onnx")
    assert response.content == b"onnx bytes"
    assert response.headers["etag"] == f'"{card.onnx.sha256}"'
    assert response.headers["content-disposition"] == 'attachment; filename="m-1.onnx"'
    save_model(gateway.services.models, "m-2", onnx=None)
    assert "ONNX" in problem(gateway.client.get("/models/m-2/onnx"), 404, "not-found")["detail"]


def test_what_the_client_has_is_not_sent(gateway: Gateway) -> None:
    etag = f'"{save_model(gateway.services.models)[0].sha256}"'
    for given in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        for method in ("GET", "HEAD"):
            headers = {"If-None-Match": given, "Range": "bytes=0-3"}
            response = gateway.client.request(method, "/models/m-1/weights", headers=headers)
            assert response.status_code == 304
            assert response.content == b""
            assert response.headers["etag"] == etag
    assert gateway.client.get("/models/m-1/weights", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-7", slice(0, 8)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=5-999999999", slice(5, None)),
        ("bytes=-999999999", slice(0, None)),
    ],
)
def test_ranges(gateway: Gateway, header: str, expected: slice) -> None:
    _, weights = save_model(gateway.services.models)
    response = gateway.client.get("/models/m-1/weights", headers={"Range": header})
    assert response.status_code == 206
    assert response.content == weights[expected]
    start = range(len(weights))[expected][0]
    assert response.headers["content-range"] == f"bytes {start}-{start + len(response.content) - 1}/{len(weights)}"
    assert response.headers["content-length"] == str(len(response.content))


@pytest.mark.parametrize("header", ["bytes=0-1,4-5", "bytes=x-y", "bytes=-", "items=0-1", "bytes=7-3", ""])
def test_ranges_that_are_not_understood_are_ignored(gateway: Gateway, header: str) -> None:
    _, weights = save_model(gateway.services.models)
    response = gateway.client.get("/models/m-1/weights", headers={"Range": header})
    assert response.status_code == 200
    assert response.content == weights


def test_ranges_beyond_the_end(gateway: Gateway) -> None:
    _, weights = save_model(gateway.services.models)
    for header in ("bytes=999999999-", "bytes=-0"):
        response = gateway.client.get("/models/m-1/weights", headers={"Range": header})
        problem(response, 416, "range-not-satisfiable")
        assert response.headers["content-range"] == f"bytes */{len(weights)}"


def test_if_range(gateway: Gateway) -> None:
    card, _ = save_model(gateway.services.models)
    for etag, status in ((f'"{card.sha256}"', 206), ('"other"', 200)):
        headers = {"Range": "bytes=0-7", "If-Range": etag}
        assert gateway.client.get("/models/m-1/weights", headers=headers).status_code == status


def test_an_empty_file_has_no_range() -> None:
    assert parse_range("bytes=0-1", 2) == Span(0, 2)
    assert parse_range("", 0) is None


def test_delete(gateway: Gateway) -> None:
    save_model(gateway.services.models)
    response = gateway.client.delete("/models/m-1")
    assert response.status_code == 204
    assert response.content == b""
    problem(gateway.client.get("/models/m-1"), 404, "not-found")
    problem(gateway.client.delete("/models/m-1"), 404, "not-found")


def test_files_that_vanish_or_rot(gateway: Gateway) -> None:
    card, _ = save_model(gateway.services.models)
    root = Path(gateway.services.settings.store_url)
    weights = root / f"models/{card.id}/weights.safetensors"
    weights.unlink()
    problem(gateway.client.get("/models/m-1/weights"), 404, "not-found")
    (root / f"models/{card.id}/card.json").write_bytes(b"{}")
    problem(gateway.client.get("/models/m-1"), 500, "internal-error")


def test_a_store_with_urls_is_pointed_to(redis_url: str, start: Start, s3_bucket: dict[str, Any]) -> None:
    with running(
        GatewaySettings(redis_url=redis_url, reaper_interval_s=3_600, require_keys=False, **s3_bucket)
    ) as gateway:
        card, weights = save_model(gateway.services.models)
        response = gateway.client.get("/models/m-1/weights")
        assert response.status_code == 307
        assert response.headers["cache-control"] == "no-store"
        there = httpx.get(response.headers["location"], headers={"Range": "bytes=0-7"})
        assert there.status_code == 206
        assert there.content == weights[:8]
        assert gateway.client.head("/models/m-1/weights").status_code == 200
        etag = {"If-None-Match": f'"{card.sha256}"'}
        assert gateway.client.get("/models/m-1/weights", headers=etag).status_code == 304
