"""`impasto doctor`: checks this machine and says what to do about each finding.

It changes nothing, and needs no running service.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import redis

from cli.output import printable
from cli.store_location import find_store_url, is_store_named
from core import errors
from core.config import Settings, read_settings
from core.jobs.store_monitor import REQUIRED, StoreMonitor
from core.redis_client import CircuitBreaker, connect
from core.storage.location import IdentityFile, open_storage

MIN_FREE_BYTES = 1_000_000_000  # for some results and checkpoints
_SMI_TIMEOUT_SECONDS = 20.0  # nvidia-smi hangs if the driver does

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. advice: what to do about it."""

    topic: str
    state: State
    text: str
    advice: str = ""


Check = Callable[[Settings], Iterator[Finding]]


@click.command()
def doctor() -> None:
    """Check driver, cards, torch, store, disk, bucket, weights; exit with 1 if one is wrong."""
    config = read_settings(Settings)
    checks: dict[str, Check] = {
        "driver": check_driver,
        "torch": check_torch,
        "store": check_store,
        "disk": check_disk,
        "bucket": check_bucket,
        "weights": check_weights,
    }
    wrong = 0
    for topic, check in checks.items():
        for finding in _run(topic, check, config):
            click.echo(_format(finding))
            wrong += finding.state == "wrong"
    click.echo(f"Problems: {wrong}." if wrong else "Nothing is wrong.")
    if wrong:
        sys.exit(1)


def _run(topic: str, check: Check, config: Settings) -> Iterator[Finding]:
    """Yield what the check finds. A folder of another user is a finding, too, and no end."""
    try:
        yield from check(config)
    except OSError as error:
        text = f"{error.filename} cannot be read: {error.strerror}" if error.filename else error
        yield Finding(topic, "wrong", str(text), "change its owner, or run this as its user")


def _format(finding: Finding) -> str:
    lines = [f"{finding.state:<6} {finding.topic:<10} {printable(finding.text)}"]
    if finding.advice:
        lines.append(f"{'':<17} -> {printable(finding.advice)}")
    return "\n".join(lines)


# ---------------------------------------------------------------------- driver, cards, torch


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine, and the names of the cards that it sees."""

    version: str
    cards: list[str]

    @property
    def major(self) -> int:
        """The first part of its version; 0 if that is no number."""
        first = self.version.split(".")[0]
        return int(first) if first.isdigit() else 0


def find_driver() -> Driver | None:
    """Ask nvidia-smi. None without it, or if it reaches no driver or no card."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(", ", 1) for line in ran.stdout.splitlines() if ", " in line]
    return Driver(rows[0][0], [name for _, name in rows]) if rows else None


def check_driver(_: Settings) -> Iterator[Finding]:
    """The driver, and the cards that it sees."""
    driver = find_driver()
    if driver is not None:
        cards = ", ".join(driver.cards)
        yield Finding("driver", "ok", f"NVIDIA {driver.version}; it sees {cards}")
    elif _requires_cuda():
        yield Finding(
            "driver",
            "wrong",
            "nvidia-smi finds no card, but IMPASTO_WORKER_DEVICE requires one",
            "install or repair NVIDIA's driver (in a container: the NVIDIA Container Toolkit); "
            "if it worked before, the card may have dropped off the bus: restart the machine",
        )
    else:
        yield Finding("driver", "note", "there is no NVIDIA driver or card")


def _requires_cuda() -> bool:
    return _wanted_device().startswith("cuda")


def _wanted_device() -> str:
    """A setting of the worker, whose class the command line does not know."""
    return os.environ.get("IMPASTO_WORKER_DEVICE", "auto")


def check_torch(config: Settings) -> Iterator[Finding]:
    """torch, the cards that it sees, and what each can do."""
    try:
        from core.neural import device, torch_versions
        from core.neural.torch_versions import describe_build
    except (ImportError, OSError) as error:
        yield Finding(
            "torch",
            "wrong",
            f"it cannot be loaded: {error}",
            "install the packages again: `make clean`, then `make up`",
        )
        return
    used = torch_versions.installed_set()
    yield Finding("torch", "ok", f"{describe_build()}, the set of {used.constraints}")
    try:
        cards = device.list_cards()
    except (errors.DeviceLost, errors.OutOfMemory) as error:
        yield Finding(
            "cards",
            "wrong",
            f"a card does not answer: {error.__cause__ or error}",
            "end the programs that use it; if that does not help, restart the machine",
        )
        return
    if not cards:
        yield from _explain_absent_cards(used)
    for index, card in enumerate(cards):
        name = f"{card.name}, compute capability {card.capability[0]}.{card.capability[1]}"
        memory = f"{card.total_bytes / 1e9:.1f} GB, {card.free_bytes / 1e9:.1f} GB free"
        unused: State = "note" if _wanted_device() == "cpu" else "wrong"
        state: State = unused if card.problem else "ok"
        yield Finding(f"card {index}", state, f"{name}, {memory}", card.problem)
        if not card.problem:
            yield Finding("", "ok", _describe_abilities(config, index, card))
    yield Finding("processor", "ok", _describe_processor())
    try:
        chosen = device.best_device(_wanted_device())
    except (errors.BadSettings, RuntimeError) as error:
        if not any(card.problem for card in cards):  # which is reported already
            yield Finding("device", "wrong", str(error), "correct IMPASTO_WORKER_DEVICE")
    else:
        yield Finding("device", "ok", f"a worker with device={_wanted_device()} runs on {chosen}")


def _explain_absent_cards(used: Any) -> Iterator[Finding]:
    """Why torch sees no card, if the driver sees one."""
    from core.neural.torch_versions import LEGACY, cuda_of_build

    driver = find_driver()
    if driver is None:
        return
    if not cuda_of_build():
        advice = "install a build of torch with CUDA"
    elif driver.major < used.driver:
        advice = f"install driver {used.driver} or newer"
        if used is not LEGACY and driver.major >= LEGACY.driver:
            advice += f", or the set of {LEGACY.constraints}: {LEGACY.install}"
    else:
        advice = "look at CUDA_VISIBLE_DEVICES, and into the kernel's log (dmesg) for Xid errors"
    state: State = "note" if _wanted_device() == "cpu" else "wrong"
    yield Finding("cards", state, "torch sees none of the driver's cards", advice)


def _describe_abilities(config: Settings, index: int, card: Any) -> str:
    """In which format a card runs, and the largest pictures that its free memory allows."""
    from core.neural.capacity import card_capacity

    capacity = card_capacity(index, card.free_bytes, config.throughput_file)
    text = f"runs {capacity.dtype}, {capacity.layout} (measured)"
    if capacity.dtype is None:
        text = "no format is measured yet: the first start of a worker does it"
    return f"{text}; pictures up to {capacity.whole_px} px whole, {capacity.tiled_px} px in tiles"


def _describe_processor() -> str:
    from core.neural.torch_versions import cpu_capabilities

    capabilities = cpu_capabilities()
    halves = [
        name
        for name, sets in (
            ("bfloat16", ("avx512_bf16", "amx_bf16")),
            ("float16", ("avx512_fp16", "amx_fp16")),
        )
        if any(capabilities.get(one) for one in sets)
    ]
    fast = f"multiplies {' and '.join(halves)}" if halves else "runs float32"
    return f"{os.cpu_count()} cores, {capabilities['architecture']}, {fast}"


# ---------------------------------------------------------------------- store, disk, weights


def check_store(config: Settings) -> Iterator[Finding]:
    """Whether the store answers, can lose jobs, and is that of the pictures."""
    try:
        url = find_store_url(config)
    except errors.BadSettings as error:
        yield Finding("store", "wrong", error.message)
        return
    is_expected = is_store_named(config)
    # The monitor would write a missing file.
    identity = open_storage(config).identity
    client = connect(url)
    monitor = StoreMonitor(
        client,
        CircuitBreaker(),
        identity if _can_read(identity) else None,
        replicas=config.store_replicas,
    )
    try:
        report = monitor.check()
    except errors.StoreUnavailable as error:
        if is_expected:
            text = f"it does not answer: {error.__cause__}"
            yield Finding("store", "wrong", text, "start it, or correct IMPASTO_REDIS_URL")
        else:
            yield Finding("store", "note", "none runs; `impasto up` starts its own")
        return
    except redis.RedisError as error:
        yield Finding("store", "wrong", str(error), "correct IMPASTO_REDIS_URL")
        return
    finally:
        client.close()
    if monitor.unusable:
        yield Finding("store", "wrong", monitor.unusable, "use another server: IMPASTO_REDIS_URL")
        return
    if foreign := report.describe_identity():
        yield Finding("store", "wrong", foreign)
    state: State = "note" if config.store_unsafe == "accept" else "wrong"
    for problem in report.problems:
        advice = "change this, in its configuration file too: docs/operations.md, The store"
        yield Finding("store", state, f"accepted jobs can be lost: {problem}", advice)
    for risk in report.risks:
        yield Finding("store", "note", risk)
    if report.unchecked:
        text = f"it does not show {', '.join(report.unchecked)}"
        needed = ", ".join(f"{name} {REQUIRED[name]}" for name in report.unchecked)
        yield Finding("store", "note", text, f"ask its operator for {needed}")
    elif not report.problems:
        yield Finding("store", "ok", "it answers, and its settings keep every accepted job")


def _can_read(identity: IdentityFile) -> bool:
    try:
        identity.read()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def check_bucket(config: Settings) -> Iterator[Finding]:
    """Whether the bucket of the pictures can be written and read."""
    if not config.blobs_url:
        return
    blobs = open_storage(config).blobs
    if blobs.is_writable():
        yield Finding("bucket", "ok", f"{blobs} can be written and read")
    else:
        advice = (
            "the line above says why; correct IMPASTO_BLOBS_URL, the AWS_ variables or its policy"
        )
        yield Finding("bucket", "wrong", f"{blobs} cannot be written and read", advice)


def check_disk(config: Settings) -> Iterator[Finding]:
    """Room and permission in the folders."""
    for topic, setting, folder in (
        ("data", "IMPASTO_DATA_DIR", config.data_dir),
        ("cache", "IMPASTO_CACHE_DIR", config.cache_dir),
    ):
        existing = next(path for path in (folder, *folder.parents) if _exists(path))
        free = shutil.disk_usage(existing).free
        text = f"{folder}: {free / 1e9:.1f} GB free"
        if not _is_writable(existing) and topic == "cache" and any(config.weights_dir.glob("*")):
            # As in the containers, whose images have the networks.
            yield Finding(topic, "note", f"{existing} cannot be written; it has networks")
        elif not _is_writable(existing):
            advice = f"change its owner, or set {setting}"
            yield Finding(topic, "wrong", f"{existing} cannot be written", advice)
        elif free < MIN_FREE_BYTES:
            advice = f"make room, lower IMPASTO_API_STORAGE_QUOTA_GB, or set {setting}"
            yield Finding(topic, "wrong", text, advice)
        else:
            yield Finding(topic, "ok", text)


def _exists(path: Path) -> bool:
    """Return False also for a path in a folder that may not be entered. Path.exists raises."""
    try:
        return path.exists()
    except OSError:
        return False


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def check_weights(config: Settings) -> Iterator[Finding]:
    """Whether the networks are here and undamaged."""
    try:
        from core.neural.weights.cache import WeightsCache
    except (ImportError, OSError):  # `check_torch` reports it
        return
    cache = WeightsCache(config.weights_dir)
    names = [entry.name for entry in cache.entries()]
    for name in names:
        try:
            cache.load_parameters(name)
        except errors.ImpastoError as error:
            yield Finding("weights", "wrong", f"{name} is damaged", error.message)
        else:
            suffix = " (auto)" if cache.resolve("auto") == name else ""
            yield Finding("weights", "ok", name + suffix)
    if "vgg19" not in names:
        yield Finding(
            "weights",
            "note" if "vgg16" in names else "wrong",
            "vgg19, the paper's network, is missing",
            "impasto weights fetch",
        )
