"""What is one key's own, no other key can read, list, cancel, delete, stream or find: for every endpoint there is.

A new route fails `test_every_route_has_a_rule_and_a_case` until it stands in `service/access/rules.py` and here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest
import torch

from service.access import rules
from service.app import create_app
from service.settings import GatewaySettings
from tests.service.gateway import samples_form, save_model
from tests.service.keyed import Keyed, keyed
from tests.service.problems import problem
from tests.similarity_part import pack

__all__ = ["keyed"]


@dataclass(frozen=True)
class World:
    """A job that waits, one that ended and a model, all of `mine`; `theirs` is somebody else's client."""

    mine: httpx.Client
    theirs: httpx.Client
    admin: httpx.Client
    waiting: str
    ended: str
    model: str

    def ids(self) -> set[str]:
        return {self.waiting, self.ended, self.model}


@pytest.fixture
def world(keyed: Keyed) -> World:
    mine, theirs, admin = keyed.made(), keyed.made(), keyed.made("admin")
    waiting, ended = (mine.post("/generate", **samples_form()).json()["id"] for _ in range(2))
    keyed.gateway.finish(ended)
    owner = keyed.issued[0].key.owner
    model, _ = save_model(keyed.gateway.services.models, "m-secret", owner=owner)
    return World(mine, theirs, admin, waiting, ended, model.id)


def hidden(method: str, path: str) -> Callable[[World], None]:
    """A path that names something: the owner and an administrator get it, everybody else gets what is not there."""

    def check(world: World) -> None:
        for job in (world.waiting, world.ended):
            there = path.format(job_id=job, model_id=world.model)
            nowhere = path.format(job_id="job-none", model_id="m-none")
            refused, missing = world.theirs.request(method, there), world.theirs.request(method, nowhere)
            assert refused.status_code == missing.status_code == 404
            if method != "HEAD":
                one, other = problem(refused, 404, "not-found"), problem(missing, 404, "not-found")
                assert one["detail"].replace(world.model, "") == other["detail"].replace("m-none", "")
        # A job that waits would be followed for ever.
        there = path.format(job_id=world.ended if "events" in path else world.waiting, model_id=world.model)
        for client in (world.admin, world.mine):
            assert client.request(method, there).status_code in (200, 202, 204, 409)
            if method in ("POST", "DELETE"):
                break

    return check


def listed(path: str) -> Callable[[World], None]:
    """A listing: each sees its own, an administrator all; filters and cursors change nothing about that."""

    def check(world: World) -> None:
        name = path.strip("/")
        own = {item["id"] for item in world.mine.get(path).json()[name]}
        assert own & world.ids()
        assert {item["id"] for item in world.admin.get(path).json()[name]} >= own
        filters = [{}, {"limit": "1"}, {"cursor": "99999999"}]
        filters += [{"status": "queued"}, {"status": "succeeded"}] if name == "jobs" else [{"target": "mlp"}]
        for params in filters:
            answer = world.theirs.get(path, params=params)
            if answer.status_code != 422:  # that cursor is none of this listing's
                assert answer.json() == {name: [], "next_cursor": None}

    return check


def idempotent(world: World) -> None:
    """The same idempotency key and payload lead each to a job of its own, and never to the other's."""
    key, form = {"Idempotency-Key": "k"}, samples_form(seed="7")
    ids = [client.post("/generate", **form, headers=key).json()["id"] for client in (world.mine, world.theirs)]
    assert len(set(ids)) == 2
    assert world.theirs.post("/generate", **form, headers=key).json()["id"] == ids[1]
    other = world.theirs.post("/generate", **samples_form(6), headers={"Idempotency-Key": "k2"})
    assert other.status_code == 202
    assert world.mine.post("/generate", **samples_form(), headers={"Idempotency-Key": "k2"}).status_code == 202


def nobodys(path: str) -> Callable[[World], None]:
    """An answer that is the same for everybody, and names nothing of anybody's."""

    def check(world: World) -> None:
        answers = [client.get(path).text for client in (world.theirs, world.admin)]
        for text in answers:
            assert not any(name in text for name in world.ids())

    return check


def refused(method: str, path: str) -> Callable[[World], None]:
    """What a usual key may not do at all."""

    def check(world: World) -> None:
        problem(world.theirs.request(method, path), 403, "forbidden")

    return check


def hidden_model(path: str) -> Callable[[World], None]:
    """A question about a model: a job for its owner, nothing there for everybody else."""

    def check(world: World) -> None:
        late = {"Prefer": "respond-async"}
        problem(world.theirs.get(path.format(model_id=world.model), headers=late), 404, "not-found")
        mine = world.mine.get(path.format(model_id=world.model), headers=late)
        assert mine.status_code == 202
        problem(world.theirs.get(mine.headers["Location"]), 404, "not-found")

    return check


def compared(path: str, body: Callable[[str], dict[str, object]]) -> Callable[[World], None]:
    """A comparison of models: nobody compares with what is another's."""

    def check(world: World) -> None:
        late = {"Prefer": "respond-async"}
        problem(world.theirs.post(path, json=body(world.model), headers=late), 404, "not-found")
        mine = world.mine.post(path, json=body(world.model), headers=late)
        assert mine.status_code == 202
        problem(world.theirs.get(mine.headers["Location"]), 404, "not-found")

    return check


def uploaded(world: World) -> None:
    """The same file of two owners makes two models, and neither learns of the other's."""
    ids = []
    for client in (world.mine, world.theirs):
        for status in (201, 200):
            answer = client.post("/models", files={"weights": ("w.safetensors", pack({"a": torch.ones(2, 2)}))})
            assert answer.status_code == status
        ids.append(answer.json()["id"])
    assert ids[0] != ids[1]
    problem(world.theirs.get(f"/models/{ids[0]}"), 404, "not-found")


CASES: dict[tuple[str, str], Callable[[World], None]] = {
    ("POST", "/generate"): idempotent,
    ("GET", "/jobs"): listed("/jobs"),
    ("GET", "/jobs/{job_id}"): hidden("GET", "/jobs/{job_id}"),
    ("GET", "/jobs/{job_id}/events"): hidden("GET", "/jobs/{job_id}/events"),
    ("POST", "/jobs/{job_id}/cancel"): hidden("POST", "/jobs/{job_id}/cancel"),
    ("GET", "/models"): listed("/models"),
    ("GET", "/models/{model_id}"): hidden("GET", "/models/{model_id}"),
    ("DELETE", "/models/{model_id}"): hidden("DELETE", "/models/{model_id}"),
    ("GET", "/models/{model_id}/weights"): hidden("GET", "/models/{model_id}/weights"),
    ("HEAD", "/models/{model_id}/weights"): hidden("HEAD", "/models/{model_id}/weights"),
    ("GET", "/models/{model_id}/onnx"): hidden("GET", "/models/{model_id}/onnx"),
    ("HEAD", "/models/{model_id}/onnx"): hidden("HEAD", "/models/{model_id}/onnx"),
    ("GET", "/models/{model_id}/neighbours"): hidden_model("/models/{model_id}/neighbours"),
    ("POST", "/models"): uploaded,
    ("POST", "/similarity"): compared("/similarity", lambda model: {"a": model, "b": model}),
    ("POST", "/similarity/matrix"): compared("/similarity/matrix", lambda model: {"ids": [model, model]}),
    ("GET", "/targets"): nobodys("/targets"),
    ("GET", "/bundles"): nobodys("/bundles"),
    ("GET", "/metrics"): refused("GET", "/metrics"),
    ("GET", "/livez"): nobodys("/livez"),
    ("GET", "/readyz"): nobodys("/readyz"),
    ("GET", "/"): nobodys("/"),
    ("GET", "/console.css"): nobodys("/console.css"),
    ("GET", "/console.js"): nobodys("/console.js"),
    ("GET", "/docs"): nobodys("/docs"),
    ("GET", "/openapi.json"): nobodys("/openapi.json"),
    ("PUT", "/session"): refused("PUT", "/session"),  # without the console's Origin
    ("DELETE", "/session"): lambda world: None,  # it answers with an empty cookie
}


def routes() -> set[tuple[str, str]]:
    app = create_app(GatewaySettings(redis_url="redis://127.0.0.1:1/0", require_keys=True))
    found = set()
    for method, path in ((m, p) for p, operations in app.openapi()["paths"].items() for m in operations):
        found.add((method.upper(), path))
    stack = list(app.routes)
    while stack:
        route = stack.pop()
        included = getattr(route, "original_router", route)
        stack += getattr(included, "routes", [])
        assert not getattr(included, "prefix", ""), "paths are written out in full"
        found |= {(method, route.path) for method in getattr(route, "methods", None) or ()}
    return found


def test_every_route_has_a_rule_and_a_case() -> None:
    there = routes()
    assert {("PUT", "/session"), ("GET", "/"), ("POST", "/generate"), ("HEAD", "/models/{model_id}/onnx")} <= there
    ruled = rules.OPEN | set(rules.SCOPED)
    assert there <= ruled, "service/access/rules.py says nothing of these"
    assert {route for route in there if route[0] != "HEAD" or "weights" in route[1] or "onnx" in route[1]} <= set(CASES)


@pytest.mark.parametrize("route", CASES, ids=lambda route: " ".join(route))
def test_nothing_of_anothers(route: tuple[str, str], world: World) -> None:
    CASES[route](world)


def test_what_belongs_to_nobody_is_for_administrators(keyed: Keyed) -> None:
    save_model(keyed.gateway.services.models, "m-old")
    problem(keyed.made().get("/models/m-old"), 404, "not-found")
    assert keyed.made("admin").get("/models/m-old").status_code == 200


def test_keys_of_one_owner_share(keyed: Keyed) -> None:
    one, other = keyed.made(owner="team"), keyed.made(owner="team")
    job = one.post("/generate", **samples_form()).json()["id"]
    assert [found["id"] for found in other.get("/jobs").json()["jobs"]] == [job]
    assert other.post(f"/jobs/{job}/cancel").status_code == 200


def test_an_owners_pages(keyed: Keyed) -> None:
    mine, theirs = keyed.made(), keyed.made()
    ids = []
    for _ in range(5):
        ids.insert(0, mine.post("/generate", **samples_form()).json()["id"])
        theirs.post("/generate", **samples_form())
    keyed.gateway.finish(ids[1])
    seen, params = [], {"limit": "2"}
    while True:
        page = mine.get("/jobs", params=params).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert seen == ids
    assert [job["id"] for job in mine.get("/jobs?status=succeeded").json()["jobs"]] == [ids[1]]
    assert len(mine.get("/jobs?status=queued&limit=4").json()["jobs"]) == 4


def test_models_of_an_owner(keyed: Keyed) -> None:
    one, other = keyed.made(), keyed.made()
    models = keyed.gateway.services.models
    for n, issued in enumerate(keyed.issued * 2):
        save_model(models, f"m-{n}", owner=issued.key.owner, target="mlp" if n < 2 else "cnn-s")
    assert {card["id"] for card in one.get("/models").json()["models"]} == {"m-0", "m-2"}
    assert {card["id"] for card in other.get("/models?target=mlp").json()["models"]} == {"m-1"}
    assert one.delete("/models/m-0").status_code == 204
    assert [card["id"] for card in one.get("/models").json()["models"]] == ["m-2"]
    assert keyed.gateway.store.list("recent/owner/" + keyed.issued[0].key.owner + "/target/mlp/") == []
