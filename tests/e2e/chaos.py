"""What the service promises while its parts die: every accepted job ends once, truthfully, with its models or without.

    python -m tests.e2e.chaos --out docs/results/chaos.json

The real gateway, workers with a quick stand-in for the generator, a persistent Valkey and a real S3, as processes.
Clients post jobs (good, unreadable, and some that they cancel) with idempotency keys and try again when refused; all
the while workers (parents or children) are killed at random, Valkey restarts, and S3 is away. Then everything is
counted: records in Redis and in the store, events, cards, files, uploads, messages.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks import results
from model_store.models import ModelRepository
from model_store.store import NotFound, open_store
from service.jobs import service
from tests.servers import _ready, _start, _stop, free_ports
from tests.service.gateway import write_bundle
from tests.workers import uploads
from tests.workers.standin import TARGET
from workers import filing
from workers.messages import JobRecord
from workers.settings import Settings

ROOT = Path(__file__).parents[2]
BUCKET = "chaos"
LEASE_S = 3
EVERY_BAD, EVERY_CANCELED = 20, 15
TARGETS = [{"id": TARGET, "architecture": "a row a class", "parameters": 8, "max_classes": 10}]


@dataclass(frozen=True)
class Plan:
    """What happens, over about `seconds`."""

    jobs: int
    workers: int
    kills: int
    restarts: int
    away_s: float
    seconds: float
    seed: int


@dataclass
class Asked:
    """What clients know of a job: the answer to their POST, and what they did since."""

    id: str
    kind: str
    refused: int  # times until it was accepted


@dataclass
class Outcome:
    """What was found at the end; `broken` is empty if all promises held."""

    rows: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Chaos:
    """The service as processes. A context manager: leaving it leaves no process behind."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._count = folder, workers
        self._redis_port, self._port = free_ports(2)
        self._s3_ports = free_ports(5)
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()
        self.worker_starts = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start_s3()
            store = open_store(f"s3://{BUCKET}/x", **self._s3.settings)
            store.ensure_bucket()  # type: ignore[attr-defined]
            store.close()
            bundle = write_bundle(self._folder / "bundle", targets=TARGETS, default_target=TARGET)
            self._environment = {
                **os.environ,
                "OMP_WAIT_POLICY": "PASSIVE",
                "REMAP_SIGTERM": "SIGQUIT",
                "LOOMWEIGHT_REDIS_URL": f"redis://127.0.0.1:{self._redis_port}/0",
                "LOOMWEIGHT_STORE_URL": f"s3://{BUCKET}/x",
                "LOOMWEIGHT_S3_ENDPOINT_URL": self._s3.endpoint,
                "LOOMWEIGHT_S3_REGION": "us-east-1",
                "LOOMWEIGHT_S3_ACCESS_KEY": self._s3.access_key,
                "LOOMWEIGHT_S3_SECRET_KEY": self._s3.secret_key,
                "LOOMWEIGHT_BUNDLE_DIR": str(bundle),
                "LOOMWEIGHT_LEASE_S": str(LEASE_S),
                "LOOMWEIGHT_REAPER_INTERVAL_S": "1",
                "LOOMWEIGHT_STARVED_S": "20",
                "LOOMWEIGHT_THREADS": "1",
            }
            self.start_valkey()
            self._spawn("gateway", "-m", "cli.main", "serve", "--port", str(self._port))
            self._supervisor = threading.Thread(target=self._supervise)
            self._supervisor.start()
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if hasattr(self, "_supervisor"):
            self._supervisor.join()
        for process in self._parts.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _stop(self._s3_process)

    def start_s3(self) -> None:
        folder = self._folder / "s3"
        folder.mkdir(exist_ok=True)
        self._s3_process, self._s3 = _start(folder, self._s3_ports)
        if not _ready(self._s3_process, self._s3, 60):
            raise RuntimeError((folder / "log").read_text()[-2000:])

    def stop_s3(self) -> None:
        _stop(self._s3_process)

    def start_valkey(self) -> None:
        folder = self._folder / "redis"
        folder.mkdir(exist_ok=True)
        self._spawn("redis", "-m", "cli.valkey", str(folder), str(self._redis_port))

    def stop_valkey(self) -> None:
        process = self._parts.pop("redis")
        process.terminate()
        process.wait(30)

    def kill(self, rng: random.Random) -> str:
        """Kill a worker's parent or child; says which."""
        while True:
            running = {name: p for name, p in self._parts.items() if name.startswith("worker") and p.poll() is None}
            children = {name: _children(process.pid) for name, process in running.items()}
            settled = [name for name in running if children[name]]
            if settled:
                break
            time.sleep(0.1)
        name, what = rng.choice(settled), rng.choice(("parent", "child"))
        pid = running[name].pid if what == "parent" else rng.choice(children[name])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return what

    def settings(self) -> Settings:
        """The service's own, to look into Redis and the store."""
        fields = Settings.model_fields
        named = {name.removeprefix("LOOMWEIGHT_").lower(): value for name, value in self._environment.items()}
        return Settings(**{name: value for name, value in named.items() if name in fields})  # type: ignore[arg-type]

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in self._folder.glob("*.log"))

    def _supervise(self) -> None:
        """Start workers that are not there, as whatever runs the service does."""
        while not self._over.wait(0.2):
            for number in range(self._count):
                process = self._parts.get(f"worker-{number}")
                if process is None or process.poll() is not None:
                    self._spawn(f"worker-{number}", "-m", "tests.workers.worker_process")
                    self.worker_starts += 1

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._parts[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_ready(self) -> None:
        def ready() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/readyz", timeout=5).json().get("workers") == self._count
            return False

        if not eventually(ready, 120):
            raise RuntimeError(self.logs())


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def eventually(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def ask(url: str, number: int, rng: random.Random) -> Asked:
    """Post one job until it is accepted, and cancel it later if it is of that kind."""
    kind = "bad" if number % EVERY_BAD == 0 else "canceled" if number % EVERY_CANCELED == 0 else "good"
    data = uploads.zipped(uploads.folder(("cat", "dog"), each=2)) if kind != "bad" else b"PK\x03\x04 and no more"
    options = {"keep": 2, "steps": 30 if kind == "canceled" else rng.randint(1, 5), "seed": number}
    refused, end = 0, time.monotonic() + 300
    with httpx.Client(base_url=url, timeout=60) as client:
        while True:
            with suppress(httpx.TransportError):
                answer = client.post(
                    "/generate",
                    files={"dataset": ("d.zip", data)},
                    data={name: str(value) for name, value in options.items()},
                    headers={"Idempotency-Key": f"chaos-{number}"},
                )
                if answer.status_code == httpx.codes.ACCEPTED:
                    break
                assert answer.status_code in (409, 503), answer.text
            refused += 1
            assert time.monotonic() < end, "never accepted"
            time.sleep(rng.uniform(0.2, 1))
        job_id = answer.json()["id"]
        if kind == "canceled":
            time.sleep(rng.uniform(0, 3))
            while True:
                with suppress(httpx.TransportError):
                    if client.post(f"/jobs/{job_id}/cancel").status_code in (200, 202, 409):
                        break
                time.sleep(0.5)
    return Asked(job_id, kind, refused)


def disturb(chaos: Chaos, plan: Plan, tally: Counter[str], pool: ThreadPoolExecutor) -> None:
    """Kill and restart, spread over the plan's time."""
    rng, began = random.Random(plan.seed), time.monotonic()
    events: list[tuple[float, str]] = [(rng.uniform(0.02, 1) * plan.seconds, "kill") for _ in range(plan.kills)]
    events += [((i + 1) / (plan.restarts + 1) * plan.seconds, "valkey") for i in range(plan.restarts)]
    events.append((0.4 * plan.seconds, "s3"))
    for at, what in sorted(events):
        time.sleep(max(0.0, began + at - time.monotonic()))
        if what == "kill":
            tally[chaos.kill(rng)] += 1
        elif what == "valkey":
            chaos.stop_valkey()
            time.sleep(1)
            chaos.start_valkey()
            tally["valkey"] += 1
        else:
            away = pool.submit(_away, chaos, plan.away_s)  # kills go on meanwhile
    away.result()


def _away(chaos: Chaos, seconds: float) -> None:
    chaos.stop_s3()
    time.sleep(seconds)
    chaos.start_s3()


def run(folder: Path, plan: Plan, *, patience_s: float = 600) -> Outcome:
    """Do it all and look what became of it."""
    tally: Counter[str] = Counter()
    with Chaos(folder, plan.workers) as chaos, ThreadPoolExecutor(10) as pool:
        began = time.monotonic()
        disturbing = pool.submit(disturb, chaos, plan, tally, pool)
        pause = plan.seconds / plan.jobs
        asking = []
        for number in range(plan.jobs):
            time.sleep(max(0.0, began + 0.8 * pause * number - time.monotonic()))
            asking.append(pool.submit(ask, chaos.url, number, random.Random(number)))
        asked = [each.result() for each in asking]
        disturbing.result()
        with ExitStack() as stack:
            settings = chaos.settings()
            redis = stack.enter_context(settings.open_redis())
            jobs, store = settings.open_jobs(redis), settings.open_store()
            stack.callback(store.close)
            outcome = Outcome()
            seconds = time.monotonic() - began

            def open_ends() -> int:
                return sum(counts.queued + counts.running for counts in jobs.counts().values()) + len(jobs.unfiled())

            if not eventually(lambda: not open_ends(), patience_s):
                outcome.broken.append(f"{open_ends()} jobs wait for ever")
            settled = time.monotonic() - began
            records = {each.id: jobs.get(each.id) for each in asked}
            _count(outcome, asked, records)
            for job_id in records:
                ends = sum(service.ends(event) for event in jobs.events(job_id))
                if ends != 1:
                    outcome.broken.append(f"{job_id} ended {ends} times")
            _compare(outcome, records, ModelRepository(store))
            everything = {job.id for job in jobs.page(limit=2 * plan.jobs).jobs}
            if everything != set(records):
                outcome.broken.append(f"{len(everything - set(records))} jobs that nobody asked for")
            kept = sum(jobs.upload(job_id) is not None for job_id, job in records.items() if not filing.is_dead(job))
            if kept:
                outcome.broken.append(f"{kept} uploads of ended jobs stay in Redis")
            waits = eventually(lambda: not any(redis.llen(queue) for queue in jobs.counts()), 60)
            if not waits:
                outcome.broken.append("messages stay in the broker")
        outcome.rows |= {
            "killed": {"parents": tally["parent"], "children": tally["child"]},
            "valkey_restarts": tally["valkey"],
            "s3_away_s": plan.away_s,
            "worker_starts": chaos.worker_starts,
            "refused_posts": sum(each.refused for each in asked),
            "seconds_of_chaos": round(seconds, 1),
            "seconds_until_all_ended": round(settled, 1),
        }
        if outcome.broken:
            sys.stderr.write(chaos.logs())
    return outcome


def _count(outcome: Outcome, asked: list[Asked], records: dict[str, JobRecord]) -> None:
    """How jobs ended, each for a reason that its client or the chaos gave."""
    if len(records) != len(asked):
        outcome.broken.append(f"{len(asked)} requests led to {len(records)} jobs")
    ends: Counter[str] = Counter()
    for each in asked:
        record = records[each.id]
        reason = record.error.type.rpartition(":")[2] if record.error else ""
        ends[f"{record.status} {reason}".strip()] += 1
        true = {
            "good": record.status == "succeeded",
            "bad": reason == "corrupt-input",
            "canceled": record.status in ("succeeded", "canceled"),
        }[each.kind]
        if not true and not (reason == "worker-lost" and record.attempt == 3):
            outcome.broken.append(f"{each.id} was {each.kind} and is {record.status} ({reason}, {record.attempt})")
    outcome.rows |= {
        "jobs": len(records),
        "ended": dict(sorted(ends.items())),
        "attempts": dict(sorted(Counter(str(record.attempt) for record in records.values()).items())),
    }


def _compare(outcome: Outcome, records: dict[str, JobRecord], models: ModelRepository) -> None:
    """Records against models, and against what the store has of both."""
    promised = [model.id for record in records.values() if record.result for model in record.result.models]
    stored, cursor = [], None
    while True:
        page = models.list(after=cursor, limit=200)
        stored += page.models
        cursor = page.next_cursor
        if cursor is None:
            break
    ids = [card.id for card in stored]
    files = Counter(entry.key.split("/")[1] for entry in _all(models, "models/"))
    checks = {
        "models promised twice": len(promised) - len(set(promised)),
        "models listed twice": len(ids) - len(set(ids)),
        "records without their models": len(set(promised) - set(ids)),
        "models without a record": len(set(ids) - set(promised)),
        "files without a model": len(set(files) - set(ids)),
        "models without all their files": sum(files[model] != 3 for model in ids),
        "records that the store has otherwise": sum(not _filed(models, record) for record in records.values()),
    }
    for card in stored:
        for part in ("weights", "onnx"):
            try:
                models.read(card, part)  # type: ignore[arg-type]
            except NotFound:
                checks["models without all their files"] += 1
    kept = {entry.key.split("/")[1] for entry in _all(models, "inputs/")}
    dead = {job_id for job_id, record in records.items() if filing.is_dead(record)}
    checks["uploads of dead letters that are gone"] = len(dead - kept)
    outcome.rows["models"] = len(ids)
    # A POST that failed halfway leaves its upload to the sweep: no job knows of it.
    outcome.rows["uploads_left_to_the_sweep"] = len(kept - dead)
    checks["uploads left by ended jobs"] = len((kept - dead) & set(records))
    outcome.broken += [f"{count} {what}" for what, count in checks.items() if count]


def _filed(models: ModelRepository, record: JobRecord) -> bool:
    return filing.find(models.store, record.id) == record


def _all(models: ModelRepository, prefix: str) -> list[Any]:
    entries: list[Any] = []
    while page := models.store.list(prefix, after=entries[-1].key if entries else None):
        entries += page
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--restarts", type=int, default=2, help="of Valkey")
    parser.add_argument("--away", type=float, default=20, help="seconds without S3")
    parser.add_argument("--seconds", type=float, default=150, help="over which all this is spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    plan = Plan(given.jobs, given.workers, given.kills, given.restarts, given.away, given.seconds, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), plan)
    print(json.dumps(outcome.rows, indent=1))
    if given.out and not outcome.broken:
        results.write(given.out, "chaos", None, outcome.rows, **vars(plan), lease_s=LEASE_S)
    sys.exit("\n".join(outcome.broken) or None)


if __name__ == "__main__":
    main()
