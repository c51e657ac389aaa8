"""The manifests against the schemas of those who will read them, and against the rules we set ourselves."""

import importlib
import os
from typing import Any

import kubernetes_validate
import pytest

from observability.dashboards import DASHBOARDS
from tests.deploy import external_secrets, manifests
from tests.deploy.manifests import BUILDS, environment, mebibytes, named, pods, redis_needed, resources, tmp_needed
from workers.worker_settings import WorkerSettings

KUBERNETES = "1.32"
SERVED = tuple(build for build in BUILDS if build.startswith("overlays"))
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): "cloudcoil.models.keda.v1alpha1",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "cloudcoil.models.prometheus_operator.v1",
    ("monitoring.coreos.com/v1", "PodMonitor"): "cloudcoil.models.prometheus_operator.v1",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "cloudcoil.models.prometheus_operator.v1",
}

pytestmark = pytest.mark.skipif(
    manifests.kubectl() is None and "CI" not in os.environ, reason="kubectl is not installed"
)


@pytest.mark.parametrize("build", BUILDS)
def test_every_manifest_fits_its_schema(build: str) -> None:
    for resource in resources(build):
        version, kind = resource["apiVersion"], resource["kind"]
        if version == "external-secrets.io/v1":
            external_secrets.check(resource)
        elif module := CUSTOM.get((version, kind)):
            model = getattr(importlib.import_module(module), kind).model_validate(resource)
            assert unknown(resource, model.model_dump(by_alias=True, exclude_none=True)) == [], kind
        else:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_external_secrets_bring_every_key_that_pods_read() -> None:
    brought = {entry["secretKey"] for entry in named("overlays/aws", "ExternalSecret", "loomweight")["spec"]["data"]}
    containers = [c for _, template in pods("overlays/aws") for c in template["spec"]["containers"]]
    references = [e["valueFrom"]["secretKeyRef"] for c in containers for e in c.get("env", []) if "valueFrom" in e]
    assert brought == {reference["key"] for reference in references if reference["name"] == "loomweight"}


def unknown(given: Any, understood: Any, where: str = "") -> list[str]:
    """The fields that a model dropped: it did not know them."""
    if isinstance(given, dict) and isinstance(understood, dict):
        return [
            problem
            for key, value in given.items()
            if value is not None
            for problem in (
                unknown(value, understood[key], f"{where}.{key}") if key in understood else [f"{where}.{key}"]
            )
        ]
    if isinstance(given, list) and isinstance(understood, list):
        return [
            p for n, (a, b) in enumerate(zip(given, understood, strict=True)) for p in unknown(a, b, f"{where}[{n}]")
        ]
    return []


@pytest.mark.parametrize("build", BUILDS)
def test_pods_keep_to_the_restricted_profile_and_more(build: str) -> None:
    for owner, template in pods(build):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, owner
        assert spec["securityContext"]["runAsNonRoot"] is True, owner
        assert spec["securityContext"]["runAsUser"] > 0, owner
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), owner
        assert all("hostPath" not in volume for volume in spec.get("volumes", [])), owner
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, owner
            assert context["readOnlyRootFilesystem"] is True, owner
            assert context["capabilities"] == {"drop": ["ALL"]}, owner
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), owner
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), owner


@pytest.mark.parametrize("build", BUILDS)
def test_images_are_pinned(build: str) -> None:
    for owner, template in pods(build):
        for container in template["spec"]["containers"]:
            _, _, tag = container["image"].rpartition("/")[2].partition(":")
            assert tag, owner
            assert tag != "latest", owner


@pytest.mark.parametrize("build", SERVED)
def test_what_serves_is_probed(build: str) -> None:
    for owner, template in pods(build):
        if not owner.startswith("Job/"):
            for container in template["spec"]["containers"]:
                assert {"livenessProbe", "readinessProbe"} <= container.keys(), owner


@pytest.mark.parametrize("build", SERVED)
def test_nothing_may_talk_unless_a_policy_says_so(build: str) -> None:
    denied = named(build, "NetworkPolicy", "default-deny")["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("build", SERVED)
def test_a_worker_that_must_go_can_end_the_longest_job(build: str) -> None:
    config = next(
        r["data"] for r in resources(build) if r["kind"] == "ConfigMap" and "LOOMWEIGHT_STORE_URL" in r["data"]
    )
    spec = named(build, "Deployment", "worker")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    given = environment(container, config)
    settings = WorkerSettings(
        **{name.removeprefix("LOOMWEIGHT_").lower(): value for name, value in given.items() if name in KNOWN}
    )
    assert settings.job_limit_s + settings.batch_s < settings.soft_shutdown_s < spec["terminationGracePeriodSeconds"]
    assert spec["terminationGracePeriodSeconds"] < settings.visibility_timeout_s
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > settings.startup_s


KNOWN = {f"LOOMWEIGHT_{name.upper()}" for name in WorkerSettings.model_fields} - {"LOOMWEIGHT_REDIS_URL"}


@pytest.mark.parametrize("build", BUILDS)
def test_every_setting_is_one_that_exists(build: str) -> None:
    from service.settings import GatewaySettings

    known = KNOWN | {f"LOOMWEIGHT_{name.upper()}" for name in GatewaySettings.model_fields}
    for resource in resources(build):
        names = set(resource.get("data") or {}) if resource["kind"] in ("ConfigMap", "Secret") else set()
        for container in resource.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            names |= environment(container).keys()
        assert {name for name in names if name.startswith("LOOMWEIGHT_")} <= known


@pytest.mark.parametrize("build", ["overlays/gpu", "overlays/aws"])
def test_workers_that_scale_to_zero_leave_the_gateway_ready(build: str) -> None:
    assert named(build, "ScaledObject", "worker")["spec"]["minReplicaCount"] == 0
    [gateway] = named(build, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    assert environment(gateway)["LOOMWEIGHT_READY_WITHOUT_WORKERS"] == "true"
    assert "replicas" not in named(build, "Deployment", "worker")["spec"], "it is the autoscaler's"


@pytest.mark.parametrize("build", SERVED)
def test_the_gateway_asks_for_keys_that_are_secrets(build: str) -> None:
    [gateway] = named(build, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    assert environment(gateway)["LOOMWEIGHT_REQUIRE_KEYS"] == "true"
    entries = {entry["name"]: entry for entry in gateway["env"]}
    for name in ("BOOTSTRAP_KEY", "METRICS_KEY", "CALLBACK_SECRET"):
        assert "secretKeyRef" in entries[f"LOOMWEIGHT_{name}"]["valueFrom"], name
    [worker] = named(build, "Deployment", "worker")["spec"]["template"]["spec"]["containers"]
    assert not {name for name in environment(worker) if "KEY" in name or "CALLBACK" in name}


@pytest.mark.parametrize("build", SERVED)
def test_uploads_fit_into_the_gateways_tmp(build: str) -> None:
    config = {k: v for r in resources(build) if r["kind"] == "ConfigMap" for k, v in r["data"].items()}
    pod = named(build, "Deployment", "gateway")["spec"]["template"]["spec"]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "tmp"]
    needed = tmp_needed(environment(pod["containers"][0], config))
    assert needed < mebibytes(volume["emptyDir"]["sizeLimit"])


def test_redis_forgets_nothing() -> None:
    configs = [r["data"]["redis.conf"] for r in resources("overlays/gpu") if "redis.conf" in (r.get("data") or {})]
    assert len(configs) == 1
    lines = configs[0].splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction"} <= set(lines)
    config = next(r["data"] for r in resources("overlays/gpu") if "LOOMWEIGHT_STORE_URL" in (r.get("data") or {}))
    [most] = [line.split()[1] for line in lines if line.startswith("maxmemory ")]
    assert redis_needed(config) < mebibytes(most)


@pytest.mark.parametrize("build", ["overlays/gpu", "overlays/aws"])
def test_clusters_get_every_dashboard(build: str) -> None:
    maps = [r for r in resources(build) if "grafana_dashboard" in r["metadata"].get("labels", {})]
    assert {name for r in maps for name in r["data"]} == {f"{uid}.json" for uid in DASHBOARDS}


def test_the_zoo_is_built_by_as_many_pods_as_it_has_shards() -> None:
    spec = named("training", "Job", "train-zoo")["spec"]
    [config] = [r["data"] for r in resources("training") if r["kind"] == "ConfigMap"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == int(config["SHARDS"])
    assert '--shard "$JOB_COMPLETION_INDEX/$SHARDS"' in spec["template"]["spec"]["containers"][0]["args"][0]


def test_as_many_pods_train_together_as_meet() -> None:
    job = named("training", "Job", "train-finish")["spec"]
    [config] = [r["data"] for r in resources("training") if r["kind"] == "ConfigMap"]
    assert job["completions"] == job["parallelism"] == int(config["NODES"])
    pod = job["template"]["spec"]
    service = named("training", "Service", pod["subdomain"])["spec"]
    assert service["selector"].items() <= job["template"]["metadata"]["labels"].items()
    assert service["publishNotReadyAddresses"], "they meet before they are ready"
    assert f"train-finish-0.{pod['subdomain']}:" in pod["containers"][0]["args"][0]
