"""`impasto doctor` names what is wrong, says what to do, and tells it by its exit code."""

import os
import shutil
import stat
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from core.jobs.store import JobStore
from core.neural import capacity
from core.neural.capacity import Capacity
from core.neural.weights.cache import WeightsCache
from core.storage.files import SmallFile

Doctor = Callable[..., tuple[int, str]]

VERIFY = WeightsCache.load_parameters


@pytest.fixture
def run_doctor(
    run_command: Any, weights: WeightsCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    """Run it with folders and networks of this test, on a machine without cards.

    Returns the exit code, and the output.
    """
    cache = tmp_path / "cache" / "weights"
    cache.mkdir(parents=True)
    (cache / "vgg19.safetensors").symlink_to(weights.path("vgg19"))
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    _install_smi(tmp_path, "exit 9")  # as without a driver
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(WeightsCache, "load_parameters", lambda *_: None)  # takes most of the time
    folders = {
        "IMPASTO_DATA_DIR": str(tmp_path / "data"),
        "IMPASTO_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(**environment: str) -> tuple[int, str]:
        ran = run_command("doctor", **{**folders, **environment})
        return ran.returncode, ran.stdout

    return run


def _install_smi(tmp_path: Path, script: str) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def _insert_card(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], version: str
) -> None:
    stubs = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": name,
        "get_device_capability": capability,
        "get_arch_list": ["sm_75", "sm_80", "sm_86", "sm_90"],
        "mem_get_info": (11 * 10**9, 12 * 10**9),
    }
    for function, value in stubs.items():
        monkeypatch.setattr(torch.cuda, function, lambda *_, _value=value: _value)
    monkeypatch.setattr(torch, "__version__", version)


def test_a_machine_without_a_card_and_a_store_is_fine(run_doctor: Doctor) -> None:
    code, output = run_doctor()

    assert code == 0, output
    assert "a worker with device=auto runs on cpu" in output
    assert f"torch      {torch.__version__}" in output
    assert "vgg19 (auto)" in output
    assert output.endswith("Nothing is wrong.\n")


def test_a_card_is_described_with_its_abilities(
    run_doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_smi(tmp_path, "echo '580.65.06, NVIDIA TITAN RTX'")
    _insert_card(monkeypatch, "NVIDIA TITAN RTX", (7, 5), "2.13.0")
    monkeypatch.setattr(
        capacity, "card_capacity", lambda *_: Capacity("float16", "channels last", 4096, 8192)
    )
    code, output = run_doctor()

    assert code == 0, output
    assert "NVIDIA 580.65.06; it sees NVIDIA TITAN RTX" in output
    assert "NVIDIA TITAN RTX, compute capability 7.5, 12.0 GB, 11.0 GB free" in output
    assert "float16, channels last (measured); pictures up to 4096 px whole, 8192 px" in output


def test_a_card_without_kernels_is_wrong_and_the_other_set_is_named(
    run_doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_smi(tmp_path, "echo '580.65.06, NVIDIA TITAN X (Pascal)'")
    _insert_card(monkeypatch, "NVIDIA TITAN X (Pascal)", (6, 1), "2.13.0")
    code, output = run_doctor()

    assert code == 1
    assert "wrong  card 0     NVIDIA TITAN X (Pascal)" in output
    assert "-> torch 2.13.0 has no kernels" in output
    assert "make up GPU=legacy" in output
    assert "Problems: 1." in output


@pytest.mark.parametrize(
    ("driver", "cuda", "advice"),
    [
        ("535.183.01", "13.0", "install driver 580 or newer, or the set of constraints-legacy-gpu"),
        ("470.57.02", "13.0", "install driver 580 or newer"),
        ("580.65.06", None, "install a build of torch with CUDA"),
        ("580.65.06", "13.0", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_card_that_torch_does_not_see_is_wrong(
    run_doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    cuda: str | None,
    advice: str,
) -> None:
    _install_smi(tmp_path, f"echo '{driver}, NVIDIA TITAN RTX'")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    code, output = run_doctor()

    assert code == 1
    assert "torch sees none of the driver's cards" in output
    assert f"-> {advice}" in output.replace("look at ", "")
    assert ("or the set of" in output) == (driver.startswith("535"))


def test_a_worker_that_requires_a_card_makes_a_missing_driver_wrong(run_doctor: Doctor) -> None:
    code, output = run_doctor(IMPASTO_WORKER_DEVICE="cuda")

    assert code == 1
    assert "wrong  driver" in output
    assert "wrong  device     CUDA does not work here" in output
    assert "Container Toolkit" in output


def test_a_durable_store_is_fine(run_doctor: Doctor, valkey: Any) -> None:
    code, output = run_doctor(IMPASTO_REDIS_URL=valkey.url)

    assert code == 0, output
    assert "ok     store      it answers, and its settings keep every accepted job" in output


@pytest.mark.parametrize(
    ("name", "value"),
    [("appendonly", "no"), ("appendfsync", "everysec"), ("maxmemory-policy", "allkeys-lru")],
)
def test_a_store_that_can_lose_jobs_is_wrong(
    run_doctor: Doctor, own_valkey: Any, name: str, value: str
) -> None:
    with redis.Redis(port=own_valkey.port) as client:
        client.config_set(name, value)
    code, output = run_doctor(IMPASTO_REDIS_URL=own_valkey.url)

    assert code == 1
    assert f"wrong  store      accepted jobs can be lost: {name} is {value}" in output
    assert "-> change this" in output

    code, output = run_doctor(IMPASTO_REDIS_URL=own_valkey.url, IMPASTO_STORE_UNSAFE="accept")
    assert code == 0
    assert f"note   store      accepted jobs can be lost: {name} is {value}" in output


def test_settings_that_may_not_be_read_are_not_wrong(run_doctor: Doctor, own_valkey: Any) -> None:
    """A managed store may forbid CONFIG."""
    with redis.Redis(port=own_valkey.port) as client:
        client.acl_setuser(
            "guest", enabled=True, nopass=True, categories=["+@all"], commands=["-config"]
        )
    url = own_valkey.url.replace("redis://", "redis://guest:any@")
    code, output = run_doctor(IMPASTO_REDIS_URL=url)

    assert code == 0, output
    assert "note   store      it does not show appendfsync" in output


def test_a_server_that_cannot_be_the_store_is_wrong_even_if_unsafe_ones_are_accepted(
    run_doctor: Doctor, own_valkey: Any
) -> None:
    url = own_valkey.url.removesuffix("/0") + "/99"
    code, output = run_doctor(IMPASTO_REDIS_URL=url, IMPASTO_STORE_UNSAFE="accept")

    assert code == 1
    assert "wrong  store      The server has no database" in output
    assert "-> use another server" in output


def test_a_store_that_is_not_that_of_the_pictures_is_wrong(
    run_doctor: Doctor, own_valkey: Any, tmp_path: Path
) -> None:
    file = tmp_path / "data" / "blobs" / "store.identity"
    assert run_doctor(IMPASTO_REDIS_URL=own_valkey.url)[0] == 0
    assert not file.exists(), "doctor changes nothing"
    JobStore(own_valkey.url, identity_file=SmallFile(file)).monitor.check()
    assert run_doctor(IMPASTO_REDIS_URL=own_valkey.url)[0] == 0
    with redis.Redis(port=own_valkey.port) as client:
        client.flushall()
    code, output = run_doctor(IMPASTO_REDIS_URL=own_valkey.url)

    assert code == 1
    assert "wrong  store      The store is empty: its jobs are not those of the pictures" in output
    assert "delete store.identity" in output


def test_a_bucket_that_cannot_be_written_and_read_is_wrong(
    run_doctor: Doctor, own_valkey: Any, s3: Any
) -> None:
    url = s3.create_bucket()
    settings = {"IMPASTO_REDIS_URL": own_valkey.url, "IMPASTO_BLOBS_URL": url}
    code, output = run_doctor(**settings)
    assert (code, "ok     bucket     s3://pictures-" in output) == (0, True)

    settings["IMPASTO_BLOBS_URL"] = url.replace("pictures-", "missing-")
    code, output = run_doctor(**settings)
    assert (code, "wrong  bucket     s3://missing-" in output) == (1, True)


@pytest.mark.parametrize(
    ("setting", "findings"),
    [
        ("IMPASTO_DATA_DIR", ["data       {} cannot be written", "ok     weights    vgg19"]),
        (
            "IMPASTO_CACHE_DIR",
            ["ok     data", "weights    {}/x/weights cannot be read: Permission"],
        ),
    ],
)
def test_folders_of_another_user_are_findings(
    run_doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    findings: list[str],
) -> None:
    """In Python 3.11, Path.exists and Path.is_dir raise PermissionError there."""
    forbidden, real = tmp_path / "forbidden", os.stat

    def stat_as_another_user(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | Path) and str(path).startswith(f"{forbidden}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    forbidden.mkdir()
    monkeypatch.setattr(os, "stat", stat_as_another_user)
    may_write = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != forbidden and may_write(path, mode)
    )
    code, output = run_doctor(**{setting: str(forbidden / "x")})

    assert code == 1
    assert [found for found in findings if found.format(forbidden) not in output] == [], output
    assert "Problems: " in output


def test_a_store_that_does_not_answer_is_wrong_only_if_one_is_set(run_doctor: Doctor) -> None:
    code, output = run_doctor(IMPASTO_REDIS_URL="redis://127.0.0.1:1/0")

    assert code == 1
    assert "it does not answer" in output
    assert "Traceback" not in output


def test_a_full_disk_is_wrong(run_doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 10**10, 10**8))
    code, output = run_doctor()

    assert code == 1
    assert output.count("0.1 GB free") == 2
    assert "-> make room" in output


def test_a_folder_that_cannot_be_written_is_wrong(
    run_doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    code, output = run_doctor(IMPASTO_DATA_DIR=str(tmp_path / "file" / "data"))

    assert code == 1
    assert f"{tmp_path / 'file'} cannot be written" in output


def test_missing_and_damaged_networks_are_wrong(
    run_doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsCache, "load_parameters", VERIFY)
    network = tmp_path / "cache" / "weights" / "vgg19.safetensors"
    data = bytearray(network.read_bytes())
    network.unlink()
    code, output = run_doctor()
    assert code == 1
    assert "-> impasto weights fetch" in output

    data[-1] ^= 1
    network.write_bytes(data)
    code, output = run_doctor()
    assert code == 1
    assert "vgg19 is damaged" in output
