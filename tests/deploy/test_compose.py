"""The variants of the compose files as Docker Compose merges them, and the policy they follow.

tests/test_containers.py has the details of the files without a proxy or a bucket.
"""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from api.settings import ApiSettings
from core.config import Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
VARIANTS = ("gpu", "cpu", "legacy-gpu", "s3", "tls", "s3 tls", "cpu s3 tls")
VARIABLES = {
    "IMPASTO_REDIS_PASSWORD": "redis-password",
    "IMPASTO_API_ALLOWED_HOSTS": "impasto.example.org",
    "AWS_ACCESS_KEY_ID": "an-id",
    "AWS_SECRET_ACCESS_KEY": "a-secret",
    "COMPOSE_PROFILES": "*",
}
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*")
# Variables of others: uvicorn, the AWS SDK, valkey-cli, RustFS, and the script beside it.
FOREIGN_VARIABLES = re.compile(r"FORWARDED_ALLOW_IPS|AWS_\w+|REDISCLI_AUTH|RUSTFS_\w+|KEYS")

each_variant = pytest.mark.parametrize("variant", VARIANTS)


@cache
def _merge(variant: str, **missing: str) -> dict[str, Any]:
    """Return the project that Docker Compose makes of the files of a variant."""
    compose = shutil.which("docker-compose", path=sysconfig.get_path("scripts")) or "docker-compose"
    names = [name for name in variant.split() if name != "gpu"]
    files = ["docker-compose.yml", *(f"docker-compose.{name}.yml" for name in names)]
    words = [word for file in files for word in ("-f", file)]
    ran = subprocess.run(
        [compose, "--env-file", os.devnull, *words, "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | VARIABLES | missing,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise ValueError(ran.stderr)
    project: dict[str, Any] = json.loads(ran.stdout)
    return project


@each_variant
def test_a_container_is_restricted_pinned_and_checked(variant: str) -> None:
    """Only Caddy is root, with no privilege but the ports below 1024."""
    for name, service in _merge(variant)["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["init"] is True, name
        assert service["pids_limit"] > 0, name
        assert "build" in service or PINNED.fullmatch(service["image"]), name
        assert "build" in service or "healthcheck" in service, name
        is_root = service.get("user", "0").startswith(("0", "root"))
        assert "build" in service or is_root is (name == "caddy"), name


@each_variant
def test_every_variable_is_a_setting(variant: str) -> None:
    known = {
        f"{kind.model_config['env_prefix']}{name.upper()}"
        for kind in (Settings, ApiSettings, WorkerSettings)
        for name in kind.model_fields
    }
    for service in _merge(variant)["services"].values():
        for variable in service.get("environment", {}):
            assert variable in known or FOREIGN_VARIABLES.fullmatch(variable)


@each_variant
def test_only_the_api_or_its_proxy_is_published(variant: str) -> None:
    """Without TLS on loopback only."""
    published = {
        (name, port.get("host_ip"), port["published"])
        for name, service in _merge(variant)["services"].items()
        for port in service.get("ports", [])
    }
    if "tls" in variant:
        assert published == {("caddy", None, "80"), ("caddy", None, "443")}
    else:
        assert published == {("api", "127.0.0.1", "8000")}


@pytest.mark.parametrize("variant", ["tls", "cpu s3 tls"])
def test_the_api_trusts_exactly_the_proxy_and_requires_keys(variant: str) -> None:
    services = _merge(variant)["services"]
    api, caddy = services["api"]["environment"], services["caddy"]
    address = caddy["networks"]["proxy"]["ipv4_address"]
    assert api["FORWARDED_ALLOW_IPS"] == address
    assert api["IMPASTO_API_KEYS"] == "required"
    assert api["IMPASTO_API_ALLOWED_HOSTS"] == "impasto.example.org"
    assert caddy["environment"]["IMPASTO_API_ALLOWED_HOSTS"] == "impasto.example.org"
    assert "proxy" in services["api"]["networks"]
    (file,) = [volume for volume in caddy["volumes"] if volume["type"] == "bind"]
    text = Path(file["source"]).read_text()
    assert file["read_only"] is True
    assert "reverse_proxy api:8000" in text
    assert "header_up -X-Forwarded-Prefix" in text, "the API would believe that of a client"


@pytest.mark.parametrize("variant", ["s3", "cpu s3 tls"])
def test_api_and_workers_wait_for_the_bucket_and_share_it(variant: str) -> None:
    services = _merge(variant)["services"]
    names = ("IMPASTO_BLOBS_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    values = {
        tuple(services[name]["environment"][key] for key in names)
        for name in ("api", "worker", "worker-1")
    }
    assert values == {
        (
            "s3://impasto/studio?endpoint=http://s3:9000&region=us-east-1",
            VARIABLES["AWS_ACCESS_KEY_ID"],
            VARIABLES["AWS_SECRET_ACCESS_KEY"],
        )
    }
    for name in ("api", "worker", "worker-1"):
        waits = {key: value["condition"] for key, value in services[name]["depends_on"].items()}
        assert waits == {"redis": "service_healthy", "s3-bucket": "service_completed_successfully"}
    assert services["s3"]["environment"]["RUSTFS_SECRET_KEY"] == VARIABLES["AWS_SECRET_ACCESS_KEY"]
    assert "http://s3:9000/impasto" in " ".join(services["s3-bucket"]["command"])


def test_a_bucket_elsewhere_needs_no_file_and_the_dispatcher_gets_no_credentials() -> None:
    given = {
        "IMPASTO_BLOBS_URL": "s3://pictures/studio",
        "IMPASTO_BLOBS_CACHE_GB": "7",
        "AWS_SESSION_TOKEN": "a-token",
    }
    services = _merge("gpu", **given, IMPASTO_API_RESULT_LINKS="true")["services"]
    for name in ("api", "worker", "worker-1"):
        environment = services[name]["environment"]
        assert {key: environment[key] for key in given} == given
        assert environment["AWS_SECRET_ACCESS_KEY"] == VARIABLES["AWS_SECRET_ACCESS_KEY"]
    assert services["api"]["environment"]["IMPASTO_API_RESULT_LINKS"] == "true"
    assert not [name for name in services["webhooks"]["environment"] if name.startswith("AWS_")]


@pytest.mark.parametrize(
    ("variant", "variable"),
    [
        ("gpu", "IMPASTO_REDIS_PASSWORD"),
        ("tls", "IMPASTO_API_ALLOWED_HOSTS"),
        ("s3", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_there_is_no_default_for_what_must_be_chosen(variant: str, variable: str) -> None:
    with pytest.raises(ValueError, match=f"put {variable} into .env"):
        _merge(variant, **{variable: ""})


@pytest.mark.parametrize("variant", ["cpu", "cpu s3 tls"])
def test_without_a_gpu_no_worker_reserves_a_card(variant: str) -> None:
    worker = _merge(variant)["services"]["worker"]
    assert worker["environment"]["IMPASTO_WORKER_DEVICE"] == "cpu"
    assert not worker["deploy"]["resources"]["reservations"].get("devices")
