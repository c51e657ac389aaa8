"""Rules, alerts, dashboards and runbooks, as far as they can be judged without running them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from observability.dashboards import DASHBOARDS, files

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "observability" / "prometheus"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_generated_files_are_what_the_generator_writes() -> None:
    stale = [str(path) for path, text in files().items() if path.read_text() != text]
    assert stale == [], "run `python -m observability.dashboards`"


def test_the_clusters_rules_are_the_same() -> None:
    resource = yaml.safe_load((ROOT / "k8s" / "components" / "monitoring" / "rules.yaml").read_text())
    rules = [
        g for path in sorted((PROMETHEUS / "rules").glob("*.yml")) for g in yaml.safe_load(path.read_text())["groups"]
    ]
    assert resource["spec"]["groups"] == rules


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: f"{alert['alert']}-{alert['labels'].get('window', '')}")
def test_an_alert_has_a_severity_a_runbook_and_a_unit_test(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert (ROOT / alert["annotations"]["runbook"]).is_file()
    tested = [
        expected["exp_labels"].get("window")
        for path in (PROMETHEUS / "tests").glob("*.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert["alert"]
        for expected in case["exp_alerts"]
    ]
    assert alert["labels"].get("window") in tested


def test_no_runbook_is_left_over() -> None:
    named = {Path(alert["annotations"]["runbook"]).name for alert in alerts()} | {"README.md"}
    assert {path.name for path in (ROOT / "docs" / "runbooks").iterdir()} == named


def test_queries_use_metrics_that_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "service" / "metrics.py", ROOT / "workers" / "metrics.py"))
    texts = [query for _, panels in DASHBOARDS.values() for panel in panels for query in panel.queries.values()]
    texts += [path.read_text() for path in (PROMETHEUS / "rules").glob("*.yml")]
    for name in set(re.findall(r"\bloomweight_[a-z_]+", "\n".join(texts))):
        assert f'"{re.sub(r"_(total|bucket|count|sum)$", "", name)}"' in code or f'"{name}"' in code, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_configuration_and_rules() -> None:
    for command in (["config", "prometheus.yml"], ["rules", "rules/alerts.yml", "rules/recording.yml"]):
        subprocess.run(["promtool", "check", *command], cwd=PROMETHEUS, check=True, capture_output=True)
