"""The task against a real Valkey and a real local store; only the generator is a driver."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
from prometheus_client import REGISTRY
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from loomweight.errors import InvalidRequest
from loomweight.generator import GenerateOptions
from model_store.models import new_model_id
from model_store.store import StoreUnavailable
from tests.workers import uploads
from tests.workers.standin import TARGET, StandIn
from workers.generate import generate
from workers.messages import JobRecord
from workers.runtime import Runtime

Submit = Callable[..., str]


def ended(runtime: Runtime, job_id: str) -> JobRecord:
    return runtime.jobs.get(job_id)


def inputs_of(runtime: Runtime, job_id: str) -> list[str]:
    return [entry.key for entry in runtime.models.store.list(f"inputs/{job_id}/")]


# the good path --------------------------------------------------------------------------------------------------------


def test_a_job_becomes_stored_models(runtime: Runtime, submit: Submit) -> None:
    job_id = submit(keep=2, candidates=4, seed=11)

    assert generate(job_id, runtime) == "succeeded"

    record = ended(runtime, job_id)
    assert record.status == "succeeded"
    assert record.result is not None
    assert record.result.classes == ("cat", "dog")
    assert record.result.seed == 11
    assert [model.rank for model in record.result.models] == [0, 1]
    assert list(record.result.timings_ms) == [
        "queue", "decode_inputs", "encode", "sample", "decode_weights", "rank", "store",
    ]  # fmt: skip
    assert inputs_of(runtime, job_id) == []


def test_card_and_metadata_tell_where_a_model_comes_from(runtime: Runtime, submit: Submit) -> None:
    job_id = submit(seed=3)

    generate(job_id, runtime)

    card = runtime.models.card(new_model_id(job_id, 0))
    weights = runtime.models.read(card, "weights")
    metadata = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])["__metadata__"]
    assert card.target == TARGET
    assert card.classes == ("cat", "dog")
    assert card.lineage.job_id == job_id
    assert card.measured is not None
    assert card.measured.holdout_accuracy == 0.75
    assert (card.measured.ranked_on, card.measured.n_holdout) == ("cross-validation", 4)
    assert ended(runtime, job_id).result.ranked_on == "cross-validation"  # type: ignore[union-attr]
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in card.tensors] == [("head.weight", "F32", (2, 4))]
    assert runtime.models.read(card, "onnx").startswith(b"onnx:")
    assert metadata["seed"] == "3"
    assert metadata["classes"] == '["cat", "dog"]'
    assert metadata["licence"] == card.licence == "CC0-1.0"
    assert metadata["condition_sha256"] == card.lineage.condition_sha256
    assert set(metadata) == {
        "generator", "bundle", "target", "origin", "seed", "condition_sha256", "classes", "licence",
    }  # fmt: skip


def test_fewer_models_than_asked_for_are_all_stored(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    generator.most = 2
    job_id = submit(keep=4, candidates=8)

    assert generate(job_id, runtime) == "succeeded"
    assert [model.rank for model in ended(runtime, job_id).result.models] == [0, 1]  # type: ignore[union-attr]


def test_what_a_request_leaves_open_is_the_generator_s(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    generate(submit(seed=3), runtime)
    assert generator.calls == [GenerateOptions(TARGET, seed=3)]
    assert generator.calls[0].holdout is None


def test_a_dataset_file_is_read_as_one(runtime: Runtime, submit: Submit) -> None:
    job_id = submit(data=uploads.zipped(uploads.folder(("bee", "ant"))), kind="dataset")

    assert generate(job_id, runtime) == "succeeded"
    assert ended(runtime, job_id).result.classes == ("ant", "bee")  # type: ignore[union-attr]


def test_progress_is_told_now_and_then(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    job_id = submit()
    generator.steps, generator.on_step = 8, lambda step: time.sleep(0.06)

    generate(job_id, runtime)

    events = [json.loads(event.data) for event in runtime.jobs.events(job_id) if event.name == "progress"]
    steps = [event["step"] for event in events if event["stage"] == "sample"]
    assert {event["steps"] for event in events if event["stage"] == "sample"} == {8}
    assert len(steps) >= 3
    assert steps == sorted(set(steps))


def test_without_a_seed_one_is_drawn_and_returned(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    first, second = submit(), submit()

    generate(first, runtime)
    generate(second, runtime)

    seeds = [ended(runtime, job_id).result.seed for job_id in (first, second)]  # type: ignore[union-attr]
    assert seeds[0] != seeds[1]
    assert sorted(call.seed for call in generator.calls) == sorted(seeds), "the second may run with the first"


# deliveries more than once --------------------------------------------------------------------------------------------


def test_a_second_delivery_does_nothing(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    job_id = submit()

    assert [generate(job_id, runtime) for _ in range(3)] == ["succeeded", "skipped", "skipped"]
    assert len(generator.calls) == 1


def test_an_unknown_or_canceled_job_is_skipped(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    job_id = submit()
    runtime.jobs.request_cancel(job_id)

    assert generate(job_id, runtime) == "skipped"
    assert generate("never-existed", runtime) == "skipped"
    assert generator.calls == []


def test_a_job_with_a_living_worker_is_skipped(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    runtime.jobs.claim(job_id, "another", 30)

    assert generate(job_id, runtime) == "skipped"
    assert ended(runtime, job_id).status == "running"


def test_a_job_run_twice_stores_the_same_models(runtime: Runtime, submit: Submit, redis: Redis) -> None:
    # Given a worker that stored the models and died before it could say so
    job_id = submit()
    with mock.patch.object(runtime.jobs, "finish", side_effect=RedisConnectionError("gone")):
        assert generate(job_id, runtime) == "abandoned"
    first = runtime.models.card(new_model_id(job_id, 0))
    assert ended(runtime, job_id).status == "running"

    # When its lease has run out and the job comes again
    time.sleep(runtime.settings.lease_s + 0.1)
    assert generate(job_id, runtime) == "succeeded"

    # Then nothing is there twice
    assert runtime.models.card(first.id) == first
    assert len(runtime.models.list().models) == 1


def test_bytes_of_an_earlier_attempt_that_differ_are_replaced(
    runtime: Runtime, submit: Submit, generator: StandIn
) -> None:
    job_id = submit()
    with mock.patch.object(runtime.jobs, "finish", side_effect=RedisConnectionError("gone")):
        generate(job_id, runtime)
    first = runtime.models.card(new_model_id(job_id, 0))

    time.sleep(runtime.settings.lease_s + 0.1)
    generator.bundle.manifest["card"]["licence"] = (
        "another"  # stands for whatever makes other bytes: a device, a bundle
    )
    assert generate(job_id, runtime) == "succeeded"

    assert runtime.models.card(first.id).sha256 != first.sha256


def test_an_attempt_that_lost_its_job_stores_nothing(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    # Given that another worker takes over while this one computes
    job_id = submit()

    def steal(step: int) -> None:
        if step == 1:
            _steal(runtime, job_id)

    generator.on_step = steal

    assert generate(job_id, runtime) == "lost"
    assert not runtime.models.exists(new_model_id(job_id, 0))
    assert ended(runtime, job_id).status == "running"
    assert inputs_of(runtime, job_id) != []


def _steal(runtime: Runtime, job_id: str) -> None:
    redis: Redis = runtime.jobs._redis
    redis.zadd(f"{runtime.settings.redis_prefix}running:generate", {job_id: 1})  # as if the lease had run out
    assert runtime.jobs.claim(job_id, "another", 30) == 2


def test_the_lease_is_renewed_while_the_job_runs(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    job_id = submit()
    rivals: list[int | None] = []

    def slow(step: int) -> None:
        time.sleep(0.8)
        rivals.append(runtime.jobs.claim(job_id, "another", 30))

    generator.on_step = slow  # 3.2 s in all, the lease holds 2 s

    assert generate(job_id, runtime) == "succeeded"
    assert rivals == [None] * 4


# cancel ---------------------------------------------------------------------------------------------------------------


def test_a_cancel_stops_between_steps(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    job_id = submit()
    steps: list[int] = []

    def step(number: int) -> None:
        steps.append(number)
        if number == 1:
            runtime.jobs.request_cancel(job_id)
        time.sleep(0.15)

    generator.steps, generator.on_step = 50, step

    assert generate(job_id, runtime) == "canceled"
    assert ended(runtime, job_id).status == "canceled"
    assert len(steps) < 10
    assert not runtime.models.exists(new_model_id(job_id, 0))
    assert inputs_of(runtime, job_id) == []


def test_a_cancel_takes_effect_within_a_step_and_a_tenth_of_a_second(
    runtime: Runtime, submit: Submit, generator: StandIn
) -> None:
    job_id, step_s = submit(), 0.3
    asked: list[float] = []

    def step(number: int) -> None:
        if number == 1:
            runtime.jobs.request_cancel(job_id)
            asked.append(time.monotonic())
        time.sleep(step_s)

    stopped: list[float] = []
    finish = runtime.jobs.finish_canceled

    def stop(*arguments: object) -> None:
        stopped.append(time.monotonic())
        finish(*arguments)  # type: ignore[arg-type]

    generator.steps, generator.on_step = 50, step
    with mock.patch.object(runtime.jobs, "finish_canceled", stop):
        assert generate(job_id, runtime) == "canceled"
    assert stopped[0] - asked[0] < step_s + 0.1


def test_a_job_over_its_time_is_stopped_and_fails(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    limited = replace(runtime, settings=runtime.settings.model_copy(update={"job_limit_s": 1}))
    generator.steps, generator.on_step = 50, lambda step: time.sleep(0.2)
    job_id = submit()

    assert generate(job_id, limited) == "failed"

    error = ended(runtime, job_id).error
    assert error
    assert (error.status, error.type.rpartition(":")[2]) == (504, "deadline")
    assert [letter["id"] for letter in runtime.jobs.dead_letters()] == [job_id]


# failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "status", "slug"),
    [
        (uploads.zipped(uploads.folder(("cat",))), "dataset", 422, "invalid-samples"),
        (uploads.zipped({"a/x.png": b"GIF89a", "b/y.png": b"GIF89a"}), "dataset", 415, "unsupported-media-type"),
        (uploads.zipped({"a/x.png": uploads.declared_png(9**6, 9**6)}), "dataset", 413, "too-large"),
        (uploads.zipped(uploads.folder())[:-30], "dataset", 422, "corrupt-input"),
        (None, "samples", 422, "invalid-request"),
    ],
)
def test_bad_inputs_fail_with_a_problem(
    runtime: Runtime, submit: Submit, data: bytes | None, kind: str, status: int, slug: str
) -> None:
    job_id = submit(data=data, kind=kind)

    assert generate(job_id, runtime) == "failed"

    record = ended(runtime, job_id)
    assert record.error is not None
    assert record.error.status == status
    assert record.error.type.endswith(slug)
    assert record.error.detail
    assert inputs_of(runtime, job_id) == []


def test_what_the_generator_refuses_fails_with_its_words(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    generator.error = InvalidRequest("no target is called 'mlp-xxl'; see GET /targets")
    job_id = submit(target="mlp-xxl")

    assert generate(job_id, runtime) == "failed"

    error = ended(runtime, job_id).error
    assert error is not None
    assert (error.status, error.detail) == (422, "no target is called 'mlp-xxl'; see GET /targets")


def test_a_bug_fails_without_telling_its_secrets_and_the_worker_goes_on(
    runtime: Runtime, submit: Submit, generator: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    generator.error = ZeroDivisionError("internal detail")
    job_id = submit()

    assert generate(job_id, runtime) == "failed"
    generator.error = None
    assert generate(submit(), runtime) == "succeeded"

    error = ended(runtime, job_id).error
    assert error is not None
    assert error.status == 500
    assert "internal detail" not in error.model_dump_json()
    assert "ZeroDivisionError: internal detail" in caplog.text


def test_inputs_that_are_gone_fail_as_gone(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    runtime.models.store.delete(inputs_of(runtime, job_id)[0])

    assert generate(job_id, runtime) == "failed"
    assert ended(runtime, job_id).error.status == 410  # type: ignore[union-attr]


def test_a_short_outage_of_the_store_is_waited_out(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    real = runtime.models.store.get
    answers = iter([StoreUnavailable("away"), StoreUnavailable("away")])

    def get(key: str) -> bytes:
        for error in answers:
            raise error
        return real(key)

    with mock.patch.object(runtime.models.store, "get", get):
        assert generate(job_id, runtime) == "succeeded"


def test_a_long_outage_of_the_store_leaves_the_job_to_others(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    with mock.patch.object(runtime.models, "save", side_effect=StoreUnavailable("away")):
        assert generate(job_id, runtime) == "abandoned"

    assert ended(runtime, job_id).status == "running"
    assert inputs_of(runtime, job_id) != []
    time.sleep(runtime.settings.lease_s + 0.1)
    assert runtime.jobs.orphans() == [job_id]
    assert generate(job_id, runtime) == "succeeded"


def test_redis_away_from_the_start_leaves_the_job_queued(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    with mock.patch.object(runtime.jobs, "claim", side_effect=RedisConnectionError("away")):
        assert generate(job_id, runtime) == "abandoned"

    assert ended(runtime, job_id).status == "queued"


def test_progress_that_cannot_be_written_does_not_matter(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    generator.on_step = lambda step: time.sleep(0.06)
    with mock.patch.object(runtime.jobs, "progress", side_effect=RedisConnectionError("away")):
        assert generate(submit(), runtime) == "succeeded"


def test_inputs_that_cannot_be_deleted_do_not_matter(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    with mock.patch.object(runtime.models.store, "delete", side_effect=StoreUnavailable("away")):
        assert generate(job_id, runtime) == "succeeded"


def test_models_exist_before_the_job_says_so(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    seen: list[bool] = []
    finish = runtime.jobs.finish

    def look(*arguments: object) -> None:
        seen.append(runtime.models.exists(new_model_id(job_id, 0)))
        finish(*arguments)  # type: ignore[arg-type]

    with mock.patch.object(runtime.jobs, "finish", look):
        generate(job_id, runtime)

    assert seen == [True]


def test_outcomes_and_stages_are_counted(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    def count(outcome: str) -> float:
        return REGISTRY.get_sample_value("loomweight_worker_jobs_total", {"kind": "generate", "outcome": outcome}) or 0

    before = {outcome: count(outcome) for outcome in ("succeeded", "failed", "skipped")}
    job_id = submit()

    generate(job_id, runtime)
    generate(job_id, runtime)
    generate(submit(data=None), runtime)

    assert {outcome: count(outcome) - value for outcome, value in before.items()} == {
        "succeeded": 1, "failed": 1, "skipped": 1,
    }  # fmt: skip
    assert (REGISTRY.get_sample_value("loomweight_worker_stage_seconds_count", {"stage": "sample"}) or 0) >= 1


def test_no_lease_thread_is_left_behind(runtime: Runtime, submit: Submit) -> None:
    generate(submit(), runtime)

    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("lease-")]
