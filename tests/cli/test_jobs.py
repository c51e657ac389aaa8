import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from cli.main import main
from model_store.keys import job_input
from model_store.local import LocalStore
from model_store.models import ModelRepository
from tests.jobs.samples import ERROR, a_job
from workers import filing
from workers.jobs import Jobs
from workers.messages import InputRef, JobError

BUG = JobError.of("internal", "The job failed", 500, "Something broke.")
Run = Callable[..., str]


@pytest.fixture
def run(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LOOMWEIGHT_REDIS_URL", redis_url)
    monkeypatch.setenv("LOOMWEIGHT_STORE_URL", str(tmp_path / "store"))

    def do(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["jobs", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    return do


@pytest.fixture
def jobs(redis: Redis) -> Jobs:
    return Jobs(redis)


def failed(jobs: Jobs, store: Path, error: JobError) -> str:
    job = a_job()
    inputs = InputRef(kind="samples", key=job_input(job.id, "samples"), size=3, sha256="0" * 64, content_type="a/b")
    LocalStore(store).put(inputs.key, b"abc", content_type="a/b")
    jobs.create(job.model_copy(update={"inputs": inputs}))
    token = jobs.claim(job.id, "w", 30)
    assert token
    jobs.fail(job.id, token, error)
    return job.id


def test_jobs_are_listed_shown_and_canceled(run: Run, jobs: Jobs, tmp_path: Path) -> None:
    waiting, running = jobs.create(a_job()).id, jobs.create(a_job()).id
    assert jobs.claim(running, "w", 30)
    refused = failed(jobs, tmp_path / "store", ERROR)

    assert [line.split()[:2] for line in run("list").splitlines()] == [
        [refused, "failed"], [running, "running"], [waiting, "queued"],
    ]  # fmt: skip
    assert run("list", "--status", "failed").strip().endswith("samples[3] cannot be decoded.")
    assert json.loads(run("show", waiting))["request"]["target"] == "mlp"
    assert run("cancel", waiting, running).splitlines() == [f"{waiting}: canceled", f"{running}: asked to stop"]
    assert run("show", "nobody", code=1) == "Error: There is no job nobody.\n"


@pytest.mark.parametrize("filed", [False, True])
def test_a_small_upload_is_there_for_the_replay(
    run: Run, jobs: Jobs, redis: Redis, tmp_path: Path, filed: bool
) -> None:
    store, job = LocalStore(tmp_path / "store"), a_job()
    inputs = InputRef(
        kind="samples", key=job_input(job.id, "samples"), size=3, sha256="0" * 64, content_type="a/b", inline=True
    )
    jobs.create(job.model_copy(update={"inputs": inputs}), b"abc")
    token = jobs.claim(job.id, "w", 30)
    assert token
    jobs.fail(job.id, token, BUG)
    if filed:  # then the store has it, whatever becomes of Redis
        filing.file(jobs, ModelRepository(store), job.id)
        redis.flushall()
    replayed = run("replay", job.id).strip().rpartition(" ")[2]
    again = jobs.get(replayed).inputs
    assert again
    assert filing.upload(jobs, store, replayed, again) == b"abc"


def test_dead_letters_are_listed_and_replayed(run: Run, jobs: Jobs, redis: Redis, tmp_path: Path) -> None:
    first, second = (failed(jobs, tmp_path / "store", BUG) for _ in range(2))
    refused = failed(jobs, tmp_path / "store", ERROR)

    listed = run("list", "--dead").splitlines()
    assert [line.split()[0] for line in listed] == [second, first]
    assert listed[0].endswith("Something broke.")

    [line] = run("replay", first).splitlines()
    replayed = line.rpartition(" ")[2]
    assert jobs.get(replayed).status == "queued"
    assert json.loads(redis.lrange("generate", 0, -1)[0])["headers"]["id"] == replayed
    assert [line.split()[0] for line in run("list", "--dead").splitlines()] == [second]
    assert len(run("replay", "--all").splitlines()) == 1
    assert run("list", "--dead") == ""
    assert "is not a dead letter" in run("replay", refused, code=1)
    run("replay", code=2)
