"""The Kubernetes manifests: their schemas, the policy they follow, and the settings in them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from api.routes import health
from api.settings import ApiSettings
from core.config import Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
KUBERNETES_VERSIONS = ("1.30", "1.37")  # the first with `preStop.sleep`, and the newest
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*")
WORKLOADS = ("Deployment", "StatefulSet")
IS_SECRET = re.compile(r"PASSWORD|SECRET|KEY|TOKEN|AUTH|REDIS_URL")
# Settings of uvicorn, of the AWS SDK, and of valkey-cli.
FOREIGN_VARIABLES = {
    "FORWARDED_ALLOW_IPS",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "REDISCLI_AUTH",
}

Manifest = dict[str, Any]

_text = {"type": "string"}
# What KEDA 2.15 and newer know of the fields that the manifests use; metadata has only strings.
KEDA = {
    "ScaledObject": {
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": {"required": ["name"], "additionalProperties": _text},
            "minReplicaCount": {"type": "integer", "minimum": 0},
            "maxReplicaCount": {"type": "integer", "minimum": 1},
            "pollingInterval": {"type": "integer"},
            "cooldownPeriod": {"type": "integer"},
            "advanced": {
                "additionalProperties": False,
                "properties": {
                    "horizontalPodAutoscalerConfig": {"required": ["behavior"]},
                    "scalingModifiers": {
                        "required": ["formula", "target"],
                        "additionalProperties": _text,
                    },
                },
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"const": "metrics-api"},
                        "name": _text,
                        "metricType": {"enum": ["AverageValue", "Value"]},
                        "authenticationRef": {"required": ["name"], "additionalProperties": _text},
                        "metadata": {
                            "required": ["url", "valueLocation", "targetValue"],
                            "additionalProperties": False,
                            "properties": {
                                "url": _text,
                                "format": {"enum": ["json", "xml", "yaml", "prometheus"]},
                                "valueLocation": _text,
                                "targetValue": {"type": "string", "pattern": r"^\d+$"},
                                "activationTargetValue": {"type": "string", "pattern": r"^\d+$"},
                                "authMode": {"enum": ["apiKey", "basic", "tls", "bearer"]},
                            },
                        },
                    },
                },
            },
        },
    },
    "TriggerAuthentication": {
        "required": ["secretTargetRef"],
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "items": {
                    "required": ["parameter", "name", "key"],
                    "additionalProperties": _text,
                }
            }
        },
    },
}


def _of_kind(manifests: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def _containers(manifests: tuple[Manifest, ...]) -> Iterator[tuple[Manifest, Manifest]]:
    for workload in _of_kind(manifests, *WORKLOADS):
        pod = workload["spec"]["template"]["spec"]
        for container in pod["containers"] + pod.get("initContainers", []):
            yield pod, container


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    pairs = selector.get("matchLabels", {}).items()
    return pairs <= labels.items() and all(
        rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_object_has_the_schema_of_its_kind(
    manifests: tuple[Manifest, ...], version: str
) -> None:
    for manifest in manifests:
        if manifest["apiVersion"].startswith("keda.sh/"):
            Draft202012Validator(KEDA[manifest["kind"]]).validate(manifest["spec"])
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_everything_is_in_one_namespace_of_restricted_pods(
    manifests: tuple[Manifest, ...],
) -> None:
    (namespace,) = _of_kind(manifests, "Namespace")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    others = {m["metadata"]["namespace"] for m in manifests if m["kind"] != "Namespace"}
    assert others == {namespace["metadata"]["name"]}


def test_a_container_has_no_privileges(manifests: tuple[Manifest, ...]) -> None:
    """The same as the user that the image has, and nothing to write to but volumes."""
    for pod, container in _containers(manifests):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if "impasto-" in container["image"]:
            user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile.api").read_text(), re.M)
            assert [(str(context["runAsUser"]), str(context["runAsGroup"]))] == user


def test_a_container_has_limits_probes_and_a_pinned_image(manifests: tuple[Manifest, ...]) -> None:
    for _, container in _containers(manifests):
        assert PINNED.fullmatch(container["image"])
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert "livenessProbe" in container
        assert container["name"] in ("worker", "webhooks") or "readinessProbe" in container


def test_images_have_the_version_of_the_project(manifests: tuple[Manifest, ...]) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    tags = {
        container["image"].rpartition(":")[2]
        for _, container in _containers(manifests)
        if "impasto-" in container["image"]
    }
    assert tags == {version[1]}


def test_each_workload_has_a_disruption_budget_and_network_policies(
    manifests: tuple[Manifest, ...],
) -> None:
    """Without a policy of its own, a workload could be reached by nobody, or by everybody."""
    budgets = _of_kind(manifests, "PodDisruptionBudget")
    policies = _of_kind(manifests, "NetworkPolicy")
    (everything,) = [p for p in policies if p["metadata"]["name"] == "deny-all"]
    assert everything["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for workload in _of_kind(manifests, *WORKLOADS):
        name, template = workload["metadata"]["name"], workload["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert [b for b in budgets if _selects(b["spec"]["selector"], labels)], name
        assert [
            policy
            for policy in policies
            if policy["spec"]["podSelector"] and _selects(policy["spec"]["podSelector"], labels)
        ], name
        assert template["spec"]["topologySpreadConstraints"]
        assert _selects(workload["spec"]["selector"], labels)


def test_only_clients_of_the_store_reach_it(manifests: tuple[Manifest, ...]) -> None:
    for workload in _of_kind(manifests, "Deployment"):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert labels["store-client"] == "true"
    policies = {p["metadata"]["name"]: p["spec"] for p in _of_kind(manifests, "NetworkPolicy")}
    (rule,) = policies["store-clients"]["egress"]
    assert {port["port"] for port in rule["ports"]} <= {6379, 26379}
    if "valkey" in policies:
        (rule,) = policies["valkey"]["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {"store-client": "true"}}}]


def test_webhooks_reach_no_private_address(manifests: tuple[Manifest, ...]) -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in _of_kind(manifests, "NetworkPolicy")}
    (rule,) = policies["webhooks"]["egress"]
    (peer,) = rule["to"]
    private = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"}
    assert private <= {*peer["ipBlock"]["except"]}


def test_every_variable_is_a_setting_and_no_secret_is_written_down(
    manifests: tuple[Manifest, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values are valid, too."""
    (config,) = _of_kind(manifests, "ConfigMap")
    plain = dict(config["data"])
    for _, container in _containers(manifests):
        for variable in container.get("env", []):
            assert bool(IS_SECRET.search(variable["name"])) is ("valueFrom" in variable)
            if "valueFrom" in variable:
                assert variable["valueFrom"].keys() == {"secretKeyRef"}
                plain.setdefault(variable["name"], "")
            else:
                plain[variable["name"]] = variable["value"]
    known = {
        f"{kind.model_config['env_prefix']}{name.upper()}": kind
        for kind in (Settings, ApiSettings, WorkerSettings)
        for name in kind.model_fields
    }
    assert plain.keys() - known.keys() - FOREIGN_VARIABLES == set()
    assert not [name for name in config["data"] if IS_SECRET.search(name)]
    for name, value in plain.items():
        if name in known and value:
            monkeypatch.setenv(name, value)
    Settings(), ApiSettings(), WorkerSettings()


def test_nothing_in_the_folder_is_a_secret() -> None:
    for file in (ROOT / "deploy" / "kubernetes").rglob("*.yaml"):
        for manifest in yaml.safe_load_all(file.read_text()):
            assert manifest["kind"] != "Secret"


def test_probes_ask_for_what_each_program_offers(manifests: tuple[Manifest, ...]) -> None:
    """The API's without the check of workers: with no worker, nobody could submit a job."""
    containers = {container["name"]: container for _, container in _containers(manifests)}
    api, worker = containers["api"], containers["worker"]
    paths = {getattr(route, "path", None) for route in health.router.routes}
    assert api["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert api["readinessProbe"]["httpGet"]["path"] == "/readyz?exclude=worker"
    assert {"/livez", "/readyz"} <= paths
    dockerfile = (ROOT / "Dockerfile.worker").read_text()
    (check,) = re.findall(r"HEALTHCHECK.*\\\n\s+CMD (.+)", dockerfile)
    assert worker["livenessProbe"]["exec"]["command"] == json.loads(check)


def test_a_pod_that_ends_has_time_to_hand_its_work_back(manifests: tuple[Manifest, ...]) -> None:
    """As much as the containers of compose, and what the API waits for traffic to end."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for pod, container in _containers(manifests):
        if container["name"] in compose:
            grace = int(compose[container["name"]]["stop_grace_period"].removesuffix("s"))
            wait = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            assert pod["terminationGracePeriodSeconds"] >= grace + wait.get("seconds", 0)
            assert pod["shareProcessNamespace"] is True


def test_a_worker_gets_a_card_and_replaces_its_predecessor(manifests: tuple[Manifest, ...]) -> None:
    (worker,) = [m for m in _of_kind(manifests, "Deployment") if m["metadata"]["name"] == "worker"]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    scalers = _of_kind(manifests, "ScaledObject")
    assert ("replicas" in worker["spec"]) is not bool(scalers), "two would set the number"


def test_api_and_worker_share_the_pictures(manifests: tuple[Manifest, ...]) -> None:
    """A folder or a bucket; otherwise each pod would have pictures of its own."""
    (config,) = _of_kind(manifests, "ConfigMap")
    volumes = {
        container["name"]: next(v for v in pod["volumes"] if v["name"] == "data")
        for pod, container in _containers(manifests)
        if container["name"] in ("api", "worker")
    }
    claims = [volume.get("persistentVolumeClaim") for volume in volumes.values()]
    if "IMPASTO_BLOBS_URL" in config["data"]:
        assert claims == [None, None]
    else:
        assert claims == [{"claimName": "pictures"}] * 2
        (claim,) = _of_kind(manifests, "PersistentVolumeClaim")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
