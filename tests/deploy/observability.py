"""Holds metrics, rules and dashboards together, on the real thing: `make observability-check`.

Starts the service, a real Prometheus with the files of `observability/prometheus`, and a short load; then every rule
must be healthy and every query of every dashboard return data. Queries of GPUs are exempt where there is none, and the
result names them.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from observability.dashboards import DASHBOARDS, Panel
from tests.deploy import smoke
from tests.deploy.stack import DeployedStack, answers, wait_for
from tests.servers import free_ports

ROOT = Path(__file__).parents[2]
GPU = "loomweight_worker_gpu_"


class Prometheus:
    """The real server, with the repository's files; only the addresses of its targets differ from a deployment's."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        files = ROOT / "observability" / "prometheus"
        config = yaml.safe_load((files / "prometheus.yml").read_text())
        config["rule_files"] = [str(files / pattern) for pattern in config["rule_files"]]
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": [targets.get(job["job_name"], f"127.0.0.1:{port}")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def has_data(self, query: str) -> bool:
        values = [float(series["value"][1]) for series in self.get("query", query=query)["result"]]
        return any(not math.isnan(value) for value in values)


def load(url: str, seconds: float) -> int:
    """Do what clients do, their mistakes included, until the time is over; returns how many jobs ended well."""
    end, jobs, last = time.monotonic() + seconds, 0, ""
    json_body = {"Content-Type": "application/json"}
    targets = [target["id"] for target in json.loads(smoke.ask(f"{url}/targets"))["targets"]]
    while time.monotonic() < end or jobs < len(targets):
        job = smoke.generate(url, target=targets[jobs % len(targets)], candidates=random.choice([2, 4, 8]))
        before, last = last, job["result"]["models"][0]["id"]
        smoke.download(url, last)
        jobs += 1
        if before:
            smoke.ask(f"{url}/similarity", json.dumps({"a": before, "b": last}).encode(), json_body)
            smoke.ask(f"{url}/similarity/matrix", json.dumps({"ids": [before, last]}).encode(), json_body)
            smoke.ask(f"{url}/models/{last}/neighbours")
        broken = json.dumps({"samples": [{"label": label, "image": "AAAA"} for label in "aabb"]}).encode()
        for body in (broken, b"{}"):
            try:
                smoke.ask(f"{url}/generate", body, {**json_body, "Prefer": "wait=10"})
            except urllib.error.HTTPError as error:
                error.close()
    return jobs


def filled_in(query: str) -> str:
    """A query as Grafana would send it."""
    return query.replace("$__rate_interval", "1m").replace("$target", ".*")


def check(prometheus: Prometheus) -> dict[str, Any]:
    """Evaluate everything; what is wrong ends up under `problems`."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    problems = [f"rule {rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
    problems += [
        f"target {target['labels']['job']}: {target['lastError']}"
        for target in prometheus.get("targets")["activeTargets"]
        if target["health"] != "up"
    ]
    evaluated, exempt = 0, []
    for uid, (_, panels) in DASHBOARDS.items():
        for panel in panels:
            for query in panel.queries.values():
                evaluated += 1
                if prometheus.has_data(filled_in(query)):
                    continue
                name = f"{uid}: {panel.title}: {query}"
                (exempt if GPU in query else problems).append(name)
    return {
        "rules": sum(rule["type"] == "recording" for rule in rules),
        "alerts": sum(rule["type"] == "alerting" for rule in rules),
        "firing": sorted({alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]}),
        "queries": evaluated,
        "queries_without_data_for_want_of_a_gpu": exempt,
        "problems": problems,
    }


def plot(prometheus: Prometheus, uid: str, out: Path, seconds: float) -> None:
    """Draw a dashboard's panels from their own queries; not by Grafana, which is why it looks plain."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = [panel for panel in DASHBOARDS[uid][1] if panel.kind == "timeseries"]
    figure, axes = pyplot.subplots(math.ceil(len(panels) / 3), 3, figsize=(15, 3 * math.ceil(len(panels) / 3)))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):  # the grid may have places left over
        _draw(axis, panel, prometheus, seconds)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=70)


def _draw(axis: Any, panel: Panel, prometheus: Prometheus, seconds: float) -> None:
    now = time.time()
    for legend, query in panel.queries.items():
        span = {"start": str(now - seconds), "end": str(now), "step": "5"}
        for series in prometheus.get("query_range", query=filled_in(query), **span)["result"]:
            label = legend
            for name, value in series["metric"].items():
                label = label.replace("{{" + name + "}}", value)
            points = [(float(at) - now, float(value)) for at, value in series["values"]]
            axis.plot(*zip(*points, strict=True), label=label[:40])
    axis.set_title(f"{panel.title} [{panel.unit}]"[:60], fontsize=9)
    axis.tick_params(labelsize=7)
    if axis.lines:
        axis.legend(fontsize=6)


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "starter")
    parser.add_argument("--seconds", type=float, default=120, help="of load")
    parser.add_argument("--out", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--plots", type=Path, help="a folder for pictures of the dashboards")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loomweight-")))
        service = stack.enter_context(DeployedStack(folder, arguments.bundle))
        targets = {"gateway": service.url.removeprefix("http://"), "worker": f"127.0.0.1:{service.metrics_port}"}
        prometheus = Prometheus(folder, targets)
        stack.callback(prometheus.stop)
        wait_for(lambda: answers(f"{prometheus.url}/-/ready"))
        jobs = load(service.url, arguments.seconds)
        time.sleep(20)  # a scrape and an evaluation after the last job
        result = {"jobs": jobs, **check(prometheus)}
        if arguments.plots:
            for uid in DASHBOARDS:
                plot(prometheus, uid, arguments.plots / f"{uid}.png", arguments.seconds + 30)
    print(json.dumps(result, indent=1))
    if arguments.out:
        command = f"python -m tests.deploy.observability --seconds {arguments.seconds:g} --out {arguments.out}"
        arguments.out.write_text(json.dumps({"table": "observability", "command": command, **result}, indent=1) + "\n")
    return int(bool(result["problems"]))


if __name__ == "__main__":
    sys.exit(main())
