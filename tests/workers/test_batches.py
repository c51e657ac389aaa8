"""Jobs that wait together run together, and suffer nothing from each other."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from prometheus_client import REGISTRY
from redis import Redis

from tests.service.gateway import a_worker
from tests.workers import uploads
from tests.workers.standin import StandIn
from workers.generate import generate
from workers.messages import LARGE_QUEUE
from workers.runtime import Runtime

Submit = Callable[..., str]


def having(runtime: Runtime, **settings: float) -> Runtime:
    return replace(runtime, settings=runtime.settings.model_copy(update=settings))


def statuses(runtime: Runtime, job_ids: list[str]) -> list[str]:
    return [runtime.jobs.get(job_id).status for job_id in job_ids]


@pytest.mark.parametrize(
    ("device", "threads", "given", "lanes"),
    [("cpu", 1, None, 2), ("cpu", 2, None, 4), ("cpu", 32, None, 4), ("cpu", 2, 7, 7), ("cuda", 2, None, 16)],
)
def test_how_many_run_at_once(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, device: str, threads: int, given: int | None, lanes: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    settings = runtime.settings.model_copy(update={"batch_jobs": given})
    assert replace(runtime, device=device, settings=settings).lanes == lanes


def test_what_waits_behind_a_job_runs_with_it(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    ids = [submit(seed=seed) for seed in range(5)]

    assert generate(ids[1], runtime) == "succeeded"

    assert statuses(runtime, ids) == ["succeeded"] * 5
    assert [runtime.jobs.get(job_id).result.seed for job_id in ids] == list(range(5))  # type: ignore[union-attr]
    assert [generate(job_id, runtime) for job_id in ids] == ["skipped"] * 5
    assert len(generator.calls) == 5
    assert runtime.jobs.unfiled() == []


def test_a_batch_has_a_size_and_an_age(runtime: Runtime, submit: Submit) -> None:
    few = having(runtime, batch_jobs=3, batch_s=0)
    ids = [submit() for _ in range(5)]

    generate(ids[0], few)

    assert statuses(runtime, ids) == ["succeeded"] * 3 + ["queued"] * 2
    assert (REGISTRY.get_sample_value("loomweight_worker_batch_jobs_bucket", {"le": "4.0"}) or 0) >= 1


def test_what_comes_takes_the_places_of_what_is_done(
    runtime: Runtime, submit: Submit, generator: StandIn, redis: Redis
) -> None:
    ids, adding = [submit(seed=seed) for seed in range(5)], threading.Lock()

    def step(number: int) -> None:
        with adding:
            if len(ids) < 7:
                ids.append(submit(seed=len(ids)))

    generator.on_step = step
    redis.rpop("generate")  # as the broker does with the message that it delivers
    assert generate(ids[0], having(runtime, batch_jobs=2)) == "succeeded"

    assert statuses(runtime, ids) == ["succeeded"] * 7
    assert redis.llen("generate") == 0, "their messages went with them"


def test_other_workers_get_their_share(runtime: Runtime, submit: Submit) -> None:
    for name in ("w1", "w2", "w3"):
        runtime.registry.announce(a_worker(name), ttl=30)
    ids = [submit() for _ in range(7)]

    generate(ids[0], having(runtime, batch_jobs=16, batch_s=0))

    assert statuses(runtime, ids).count("succeeded") == 3


def test_one_bad_job_fails_alone(runtime: Runtime, submit: Submit) -> None:
    good = [submit(seed=1), submit(seed=2)]
    broken = submit(data=uploads.zipped({"a/x.png": b"\x89PNG\r\n\x1a\n and no more"}), kind="dataset")
    gone = submit(data=None)

    generate(good[0], runtime)

    assert statuses(runtime, [*good, broken, gone]) == ["succeeded", "succeeded", "failed", "failed"]


def test_a_cancel_concerns_one_of_them(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    ids = [submit(seed=seed) for seed in range(3)]

    def step(number: int) -> None:
        if number == 1:
            runtime.jobs.request_cancel(ids[1])
        time.sleep(0.15)

    generator.steps, generator.on_step = 6, step
    generate(ids[0], runtime)

    assert statuses(runtime, ids) == ["succeeded", "canceled", "succeeded"]


def test_leases_of_all_are_renewed(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    ids = [submit(seed=seed) for seed in range(3)]
    orphans: list[str] = []

    def step(number: int) -> None:
        time.sleep(0.5)
        orphans.extend(runtime.jobs.orphans())

    generator.steps, generator.on_step = 4, step  # 2 s and more; the lease holds 2 s
    generate(ids[0], runtime)

    assert statuses(runtime, ids) == ["succeeded"] * 3
    assert orphans == []


def test_a_job_that_lost_a_worker_runs_alone(runtime: Runtime, submit: Submit, redis: Redis) -> None:
    suspect, others = submit(), [submit() for _ in range(2)]
    runtime.jobs.claim(suspect, "gone", 30)
    redis.zadd(f"{runtime.settings.redis_prefix}running:generate", {suspect: 1})
    runtime.jobs.requeue(suspect)

    generate(others[0], runtime)
    assert statuses(runtime, [suspect, *others]) == ["queued", "succeeded", "succeeded"]

    other = submit()
    generate(suspect, runtime)
    assert statuses(runtime, [suspect, other]) == ["succeeded", "queued"]


def test_a_large_job_runs_alone(runtime: Runtime, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    other = submit()
    monkeypatch.setattr("tests.workers.conftest.GENERATE_QUEUE", LARGE_QUEUE)
    large = submit()

    generate(large, runtime)

    assert statuses(runtime, [large, other]) == ["succeeded", "queued"]


def test_no_thread_is_left_behind(runtime: Runtime, submit: Submit) -> None:
    ids = [submit() for _ in range(3)]
    generate(ids[0], runtime)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("lease", "job"))]
