"""The Grafana dashboards as code: `python -m observability.dashboards` writes them and the cluster's copy of the rules.

    grafana/dashboards/*.json                  read by Grafana, see grafana/provisioning
    ../k8s/components/monitoring/rules.yaml    the same rules for clusters with the Prometheus operator

`--check` fails if a file is not what this module would write.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_WIDTH, _HEIGHT = 24, 8  # Grafana's grid, and the height of a panel in it
_LINKS = {
    "type": "dashboards",
    "title": "Loomweight",
    "tags": ["loomweight"],
    "asDropdown": True,
    "includeVars": False,
    "keepTime": True,
    "targetBlank": False,
    "icon": "dashboard",
    "tooltip": "",
}
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """A question and the queries that answer it: PromQL by legend."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stack: bool = False
    description: str = ""


def _p(quantile: float, metric: str, by: str = "") -> str:
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({grouped}) (rate({metric}_bucket[$__rate_interval])))"


def _rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


_NO_PROBES = 'route!~"/livez|/readyz|/metrics"'
_HTTP = "loomweight_http_requests_total"
_STORE = "loomweight_store_operation_seconds"
_UNAVAILABLE = 'outcome="unavailable"'

OVERVIEW = [
    Panel("Requests a second", {"{{route}}": _rate(_HTTP, "route", _NO_PROBES)}, "reqps", stack=True),
    Panel(
        "Requests that the service could not answer",
        {
            "last 5 minutes": "loomweight:http_errors:ratio_rate5m",
            "last hour": "loomweight:http_errors:ratio_rate1h",
        },
        "percentunit",
    ),
    Panel(
        "Time to answer, 95 %",
        {
            "{{route}}": "histogram_quantile(0.95, sum by (le, route) (rate("
            f"loomweight_http_request_duration_seconds_bucket{{{_NO_PROBES}}}[$__rate_interval])))"
        },
        "s",
    ),
    Panel(
        "Jobs",
        {
            "{{queue}} waiting": "loomweight:jobs_queued:max",
            "{{queue}} running": "loomweight:jobs_running:max",
        },
    ),
    Panel("Longest wait", {"{{queue}}": "max by (queue) (loomweight_jobs_longest_wait_seconds)"}, "s"),
    Panel("Workers alive", {"workers": "max(loomweight_workers_alive)"}, kind="stat"),
    Panel(
        "From request to stored network",
        {f"{q:.0%} of jobs within": _p(q, "loomweight_worker_job_seconds") for q in (0.5, 0.95)},
        "s",
    ),
    Panel("Jobs ended a second", {"{{outcome}}": _rate("loomweight_worker_jobs_total", "outcome")}, "ops", stack=True),
    Panel(
        "Failures a second, by reason",
        {
            "{{reason}}": _rate("loomweight_worker_failures_total", "reason"),
            "lost or late: {{status}}": _rate("loomweight_jobs_reaped_total", "status"),
        },
        "ops",
    ),
    Panel(
        "Error budgets: how fast they burn (1 uses all of it in the month)",
        {
            "availability, 99.5 %": "loomweight:http_errors:ratio_rate1h / 0.005",
            "jobs, 99 %": "loomweight:job_errors:ratio_rate1h / 0.01",
            "speed, 95 % within a minute": "loomweight:job_slow:ratio_rate1h / 0.05",
        },
        width=16,
    ),
    Panel("Bundles served", {"{{bundle}} on {{device}}": "count by (bundle, device) (loomweight_worker_bundle == 1)"}),
]

_T = 'target=~"$target"'


def _spread(metric: str) -> dict[str, str]:
    return {
        f"{{{{target}}}} {name}": f"histogram_quantile({q}, sum by (le, target) (rate({metric}_bucket{{{_T}}}[1h])))"
        for name, q in (("worst tenth", 0.1), ("median", 0.5), ("best tenth", 0.9))
    }


QUALITY = [
    Panel(
        "Accuracy on held-out samples",
        _spread("loomweight_worker_holdout_accuracy"),
        "percentunit",
        width=12,
        description="Of the best network of each job, over an hour.",
    ),
    Panel(
        "Gain over the best baseline on the same samples",
        _spread("loomweight_worker_holdout_gain"),
        "percentunit",
        width=12,
        description="Above 0, generating was worth it. Buckets are coarse: read the sign, not the digits.",
    ),
    Panel(
        "Accuracy, all jobs",
        {"{{le}}": f"sum by (le) (increase(loomweight_worker_holdout_accuracy_bucket{{{_T}}}[$__rate_interval]))"},
        kind="heatmap",
        width=12,
    ),
    Panel(
        "Novelty of the samples, all jobs",
        {"{{le}}": f"sum by (le) (increase(loomweight_worker_novelty_bucket{{{_T}}}[$__rate_interval]))"},
        kind="heatmap",
        width=12,
        description="0: like the training tasks. 1: farther from all of them than any is from the others.",
    ),
    Panel(
        "Jobs unlike every training task",
        {
            "{{target}}": f'1 - sum by (target) (rate(loomweight_worker_novelty_bucket{{le="0.99",{_T}}}[1h]))'
            f" / sum by (target) (rate(loomweight_worker_novelty_count{{{_T}}}[1h]))"
        },
        "percentunit",
    ),
    Panel("Jobs by target", {"{{target}}": _rate("loomweight_worker_novelty_count", "target", _T)}, "ops", stack=True),
    Panel("Bundles served", {"{{bundle}}": "count by (bundle) (loomweight_worker_bundle == 1)"}),
]

WORKERS = [
    Panel("Workers busy", {"busy": "sum(loomweight_worker_busy)", "alive": "max(loomweight_workers_alive)"}),
    Panel(
        "Where a job's time goes",
        {
            "{{stage}}": "sum by (stage) (rate(loomweight_worker_stage_seconds_sum[$__rate_interval]))"
            " / sum by (stage) (rate(loomweight_worker_stage_seconds_count[$__rate_interval]))"
        },
        "s",
        stack=True,
    ),
    Panel("Stages, 95 %", {"{{stage}}": _p(0.95, "loomweight_worker_stage_seconds", "stage")}, "s"),
    Panel(
        "Candidates a second",
        {"{{target}}": _rate("loomweight_worker_batch_candidates_sum", "target")},
        "ops",
    ),
    Panel(
        "Candidates sampled together",
        {
            "median": _p(0.5, "loomweight_worker_batch_candidates"),
            "95 %": _p(0.95, "loomweight_worker_batch_candidates"),
        },
    ),
    Panel(
        "Jobs run together",
        {"mean": "rate(loomweight_worker_batch_jobs_sum[5m]) / rate(loomweight_worker_batch_jobs_count[5m])"},
        description="1: each alone. More means that jobs wait.",
    ),
    Panel("Jobs that lost their worker", {"{{status}}": _rate("loomweight_jobs_reaped_total", "status")}, "ops"),
    Panel("Memory", {"{{instance}}": 'process_resident_memory_bytes{job="worker"}'}, "bytes"),
    Panel("Processor", {"{{instance}}": 'rate(process_cpu_seconds_total{job="worker"}[$__rate_interval])'}, "cores"),
    Panel("Up since", {"{{instance}}": 'time() - process_start_time_seconds{job="worker"}'}, "s", kind="stat"),
    Panel(
        "GPU memory",
        {
            "{{instance}}": 'loomweight_worker_gpu_memory_bytes{state="used"}'
            ' / ignoring (state) loomweight_worker_gpu_memory_bytes{state="total"}'
        },
        "percentunit",
        width=12,
        description="Empty where no worker has a GPU.",
    ),
    Panel(
        "GPU utilisation",
        {"{{instance}}": "loomweight_worker_gpu_utilisation_ratio"},
        "percentunit",
        width=12,
        description="Empty where no worker has a GPU.",
    ),
]

STORE = [
    Panel("Store calls, 95 %", {"{{job}} {{operation}}": _p(0.95, _STORE, "job, operation")}, "s", width=12),
    Panel(
        "Store calls a second",
        {"{{job}} {{operation}}": _rate(f"{_STORE}_count", "job, operation")},
        "ops",
        width=12,
        stack=True,
    ),
    Panel(
        "Store calls that failed",
        {
            "{{job}}": f"({_rate(f'{_STORE}_count', 'job', _UNAVAILABLE)}"
            f" or sum by (job) (rate({_STORE}_count[$__rate_interval])) * 0)"
            f" / sum by (job) (rate({_STORE}_count[$__rate_interval]))"
        },
        "percentunit",
    ),
    Panel("Uploads, 95 %", {"size": _p(0.95, "loomweight_upload_bytes")}, "bytes"),
    Panel("Redis answers", {"{{instance}}": "loomweight_broker_up"}, kind="stat"),
    Panel("Redis answers within", {"{{instance}}": "loomweight_broker_answer_seconds"}, "s"),
    Panel(
        "Redis memory",
        {"used": "max(loomweight_broker_memory_bytes)", "limit": "min(loomweight_broker_memory_limit_bytes)"},
        "bytes",
    ),
    Panel("Connections to Redis", {"clients": "max(loomweight_broker_clients)"}),
    Panel("Redis writes to disk", {"{{instance}}": "loomweight_broker_persists"}, kind="stat"),
    Panel(
        "Queue against its limit",
        {"{{queue}}": "loomweight:jobs_queued:max / on () group_left () max(loomweight_jobs_queued_limit)"},
        "percentunit",
        width=16,
    ),
]

_SECONDS = "loomweight_similarity_seconds"

SIMILARITY = [
    Panel(
        "Scores of pairs",
        {"{{le}}": "sum by (le) (increase(loomweight_similarity_score_bucket[$__rate_interval]))"},
        kind="heatmap",
        width=12,
        description="1: the same task. Around 0: nothing in common. A pile at 1 may be one file sent twice.",
    ),
    Panel(
        "Scores by whether architectures are the same",
        {"{{architectures}}": _p(0.5, "loomweight_similarity_score", "architectures")},
        width=12,
        description="Medians. Different architectures score lower.",
    ),
    Panel(
        "Pairs compared a second", {"pairs": "sum(rate(loomweight_similarity_score_count[$__rate_interval]))"}, "ops"
    ),
    Panel("Stages, 95 %", {"{{kind}} {{stage}}": _p(0.95, _SECONDS, "kind, stage")}, "s"),
    Panel(
        "Embeddings needed, by where they came from",
        {"{{source}}": _rate("loomweight_similarity_embeddings_total", "source")},
        "ops",
        stack=True,
        description="`made` is work: searches are fast once stored models have been embedded.",
    ),
    Panel(
        "Jobs by outcome",
        {"{{outcome}}": _rate("loomweight_worker_jobs_total", "outcome", 'kind="similarity"')},
        "ops",
        width=12,
        stack=True,
    ),
    Panel(
        "Waiting and running",
        {
            "waiting": 'max(loomweight_jobs_queued{queue="similarity"})',
            "running": 'max(loomweight_jobs_running{queue="similarity"})',
        },
        width=12,
    ),
]

DASHBOARDS = {
    "overview": ("Loomweight: overview", OVERVIEW),
    "quality": ("Loomweight: generation quality", QUALITY),
    "workers": ("Loomweight: workers and GPUs", WORKERS),
    "store": ("Loomweight: store and broker", STORE),
    "similarity": ("Loomweight: similarity", SIMILARITY),
}


def dashboard(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    ]
    if any("$target" in query for panel in panels for query in panel.queries.values()):
        variables.append(
            {
                "name": "target",
                "label": "Target",
                "type": "query",
                "datasource": _DATASOURCE,
                "query": "label_values(loomweight_worker_novelty_count, target)",
                "refresh": 2,
                "includeAll": True,
                "multi": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
        )
    return {
        "uid": f"loomweight-{uid}",
        "title": title,
        "tags": ["loomweight"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [_LINKS],
        "templating": {"list": variables},
        "panels": list(_placed(panels)),
    }


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + _HEIGHT
        yield {
            "id": number,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.description,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": _DATASOURCE,
                    "expr": query,
                    "legendFormat": legend,
                    "format": "heatmap" if panel.kind == "heatmap" else "time_series",
                }
                for place, (legend, query) in enumerate(panel.queries.items())
            ],
            "fieldConfig": {"defaults": {"unit": panel.unit, **_custom(panel)}, "overrides": []},
            "options": _options(panel),
        }
        x += panel.width


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind != "timeseries":
        return {}
    stacking = {"mode": "normal" if panel.stack else "none", "group": "A"}
    return {"custom": {"fillOpacity": 30 if panel.stack else 0, "showPoints": "never", "stacking": stacking}}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "heatmap":
        return {"calculate": False, "color": {"mode": "scheme", "scheme": "Blues"}, "yAxis": {"unit": panel.unit}}
    return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}


def rules_resource(rules: Path) -> str:
    """The rule files as one PrometheusRule; YAML is indented, not parsed, so that comments stay."""
    lines = [
        "# Written by `python -m observability.dashboards` from observability/prometheus/rules.",
        "apiVersion: monitoring.coreos.com/v1",
        "kind: PrometheusRule",
        "metadata:",
        "  name: loomweight",
        "spec:",
        "  groups:",
    ]
    for path in sorted(rules.glob("*.yml")):
        _, _, groups = path.read_text().partition("groups:\n")
        lines += [f"  {line}".rstrip() for line in groups.splitlines()]
    return "\n".join(lines) + "\n"


def files() -> dict[Path, str]:
    """Every generated file and its content."""
    made = {
        HERE / "grafana" / "dashboards" / f"{uid}.json": json.dumps(dashboard(uid, title, panels), indent=1) + "\n"
        for uid, (title, panels) in DASHBOARDS.items()
    }
    made[HERE.parent / "k8s" / "components" / "monitoring" / "rules.yaml"] = rules_resource(
        HERE / "prometheus" / "rules"
    )
    return made


def main() -> int:
    """Write the files, or say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if parser.parse_args().check:
        for path in stale:
            print(f"{path.relative_to(HERE.parent)} is stale: run `python -m observability.dashboards`")
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
