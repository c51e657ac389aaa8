"""What the store knows of ended jobs, and what is left of them."""

from collections.abc import Callable
from unittest import mock

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from model_store.models import new_model_id
from model_store.store import NotFound, StoreUnavailable
from tests.workers.standin import StandIn
from workers import filing
from workers.generate import generate
from workers.jobs import UnknownJob
from workers.messages import JobError
from workers.runtime import Runtime

Submit = Callable[..., str]


def test_an_ended_job_is_filed_as_redis_has_it(runtime: Runtime, submit: Submit) -> None:
    job_id = submit(keep=2)

    generate(job_id, runtime)

    assert filing.find(runtime.models.store, job_id) == runtime.jobs.get(job_id)
    assert runtime.jobs.unfiled() == []


def test_a_record_outlives_redis(runtime: Runtime, submit: Submit, redis: Redis) -> None:
    job_id = submit()
    generate(job_id, runtime)

    redis.flushall()

    record = filing.find(runtime.models.store, job_id)
    assert record.result
    assert runtime.models.exists(record.result.models[0].id)


def test_filing_that_fails_is_due(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    with mock.patch.object(runtime.models.store, "delete", side_effect=StoreUnavailable("away")):
        assert generate(job_id, runtime) == "succeeded"
    assert runtime.jobs.unfiled() == [job_id]
    assert runtime.jobs.unfiled(ended_s=10) == []

    filing.file(runtime.jobs, runtime.models, job_id)
    assert runtime.jobs.unfiled() == []


def test_only_ended_jobs_are_filed(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    filing.file(runtime.jobs, runtime.models, job_id)
    filing.file(runtime.jobs, runtime.models, "never-existed")
    for unknown in (job_id, "never-existed", "../etc"):
        with pytest.raises(UnknownJob):
            filing.find(runtime.models.store, unknown)


def test_a_job_that_does_not_succeed_keeps_no_models(runtime: Runtime, submit: Submit, redis: Redis) -> None:
    # Given a worker that stored the models and died before it could say so
    job_id = submit(keep=2)
    with mock.patch.object(runtime.jobs, "finish", side_effect=RedisConnectionError("gone")):
        generate(job_id, runtime)
    assert runtime.models.exists(new_model_id(job_id, 1))

    # When the job is canceled before another worker takes it
    redis.zadd(f"{runtime.settings.redis_prefix}running:generate", {job_id: 1})  # as if the lease had run out
    assert runtime.jobs.request_cancel(job_id) == "canceled"
    filing.file(runtime.jobs, runtime.models, job_id)

    # Then nothing of it is left but its record
    assert not any(runtime.models.exists(new_model_id(job_id, rank)) for rank in range(2))
    assert runtime.models.store.list("inputs/") == []
    assert filing.find(runtime.models.store, job_id).status == "canceled"


def test_an_attempt_that_saves_too_late_takes_its_models_away(runtime: Runtime, submit: Submit, redis: Redis) -> None:
    job_id = submit()
    finish = runtime.jobs.finish

    def late(*arguments: object) -> None:
        redis.zadd(f"{runtime.settings.redis_prefix}running:generate", {job_id: 1})
        runtime.jobs.request_cancel(job_id)
        finish(*arguments)  # type: ignore[arg-type]

    with mock.patch.object(runtime.jobs, "finish", late):
        assert generate(job_id, runtime) == "lost"

    assert runtime.jobs.get(job_id).status == "canceled"
    assert not runtime.models.exists(new_model_id(job_id, 0))


def test_a_dead_letter_is_replayed_as_one_new_job(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    # Given a job that failed through no fault of its own
    generator.error = RuntimeError("a bug")
    job_id = submit(seed=5, keep=2)
    assert generate(job_id, runtime) == "failed"
    [letter] = runtime.jobs.dead_letters()
    assert (letter["id"], letter["reason"]) == (job_id, "urn:loomweight:problem:internal")

    # When it is replayed, twice
    fresh = filing.replay(runtime.jobs, runtime.models.store, job_id)
    assert filing.replay(runtime.jobs, runtime.models.store, job_id).id == fresh.id

    # Then it is another job, with the same request and an upload of its own
    assert runtime.jobs.dead_letters() == []
    assert runtime.jobs.get(job_id).status == "failed"
    assert fresh.request == runtime.jobs.get(job_id).request
    generator.error = None
    assert generate(fresh.id, runtime) == "succeeded"
    assert [entry.key.split("/")[1] for entry in runtime.models.store.list("inputs/")] == [job_id]


def test_only_dead_letters_with_their_upload_are_replayed(runtime: Runtime, submit: Submit, generator: StandIn) -> None:
    succeeded, refused = submit(), submit(data=b"not an archive", kind="dataset")
    for job_id in (succeeded, refused):
        generate(job_id, runtime)
        with pytest.raises(filing.NotDead):
            filing.replay(runtime.jobs, runtime.models.store, job_id)
    generator.error = RuntimeError("a bug")
    dead = submit()
    generate(dead, runtime)
    runtime.models.store.delete(runtime.jobs.get(dead).inputs.key)  # type: ignore[union-attr]
    with pytest.raises(NotFound):
        filing.replay(runtime.jobs, runtime.models.store, dead)
    assert len(runtime.jobs.dead_letters()) == 1


def test_a_request_at_fault_is_no_dead_letter(runtime: Runtime, submit: Submit) -> None:
    job_id = submit()
    token = runtime.jobs.claim(job_id, "w", 30)
    assert token
    runtime.jobs.fail(job_id, token, JobError.of("invalid-request", "No", 422, "no"))
    assert runtime.jobs.dead_letters() == []
