"""Training: learning, resuming bit by bit, stopping, and the files that a run leaves."""

import csv
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from core import errors
from core.neural.torch_versions import LEGACY, installed_set
from core.neural.training import artifacts
from core.neural.training.artifacts import RunPosition, load_checkpoint
from core.neural.training.classifier import Classifier
from core.neural.training.data import Shard
from core.neural.training.distributed import ProcessGroup
from core.neural.training.trainer import TrainerOptions, TrainingEvent, train
from core.neural.weights.cache import WeightsCache
from core.training.config import TrainingConfig
from core.training.dataset import Dataset
from core.training.dataset_builder import BuildOptions, build

ROOT = Path(__file__).parents[4]
TINY = TrainingConfig(
    architecture="vgg11",
    width=1 / 16,
    hidden=8,
    crop_px=32,
    batch=8,
    epochs=3,
    dropout=0.1,
    precision="float32",
)
EVERY_STEP = TrainerOptions(workers=0, checkpoint_seconds=0, log_steps=1)


def run_training(
    dataset: Path, folder: Path, options: TrainerOptions = EVERY_STEP, **changes: Any
) -> RunPosition:
    config = TINY.model_copy(update=changes)
    return train(dataset, folder, config, ProcessGroup(), options)


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of the log without the throughput, which depends on the clock."""
    with (folder / "log.csv").open(newline="") as file:
        return [
            {key: text for key, text in row.items() if key != "pictures_per_second"}
            for row in csv.DictReader(file)
        ]


def test_it_learns_to_tell_upright_from_lying_stripes(stripes: Path, tmp_path: Path) -> None:
    settings = {
        "width": 0.125,
        "hidden": 32,
        "dropout": 0,
        "learning_rate": 0.02,
        "schedule": "cosine",
    }
    ended = run_training(stripes, tmp_path / "run", batch_norm=True, epochs=12, **settings)

    losses = [float(row["loss"]) for row in read_log(tmp_path / "run") if row["loss"]]
    assert ended.best_top1 > 0.9
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_two_runs_of_one_configuration_are_bit_identical_and_another_seed_differs(
    stripes: Path, tmp_path: Path
) -> None:
    run_training(stripes, tmp_path / "one")
    run_training(
        stripes, tmp_path / "two", TrainerOptions(workers=1, checkpoint_seconds=1000, log_steps=1)
    )
    run_training(stripes, tmp_path / "other", seed=1)

    assert read_log(tmp_path / "one") == read_log(tmp_path / "two") != read_log(tmp_path / "other")


def read_network(folder: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and tensors of the published network."""
    with safetensors.safe_open(folder / "network.safetensors", framework="pt") as file:
        return file.metadata(), {
            name: file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())
        }


# Killed at a step before its checkpoint is written, or when half of a checkpoint is written.
KILLS = [("step", 1), ("step", 5), ("save", 4)]
BATCH_NORM = [False, True]
RESUMED = {"augment": "scale"}


@pytest.fixture(scope="module")
def killed_runs(stripes: Path, tmp_path_factory: pytest.TempPathFactory, run_cases: Any) -> Path:
    """A folder with a killed run for each of KILLS and BATCH_NORM; one process start for all."""
    folder = tmp_path_factory.mktemp("killed")
    cases = []
    for (where, step), batch_norm in product(KILLS, BATCH_NORM):
        config = TINY.model_copy(update={"batch_norm": batch_norm, **RESUMED})
        arguments = {
            "dataset": str(stripes),
            "folder": str(folder / f"{where}-{step}-{batch_norm}"),
            "config": config.model_dump_json(),
            "step": step,
            "where": where,
            "threads": torch.get_num_threads(),
        }
        cases.append({"function": "train_until_killed", "arguments": arguments, "processes": 1})
    assert run_cases(cases) == [[-signal.SIGKILL]] * len(cases)
    return folder


@pytest.fixture(scope="module")
def whole_runs(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """An uninterrupted run without and with batch normalization."""
    folder = tmp_path_factory.mktemp("whole")
    for batch_norm in BATCH_NORM:
        run_training(stripes, folder / str(batch_norm), batch_norm=batch_norm, **RESUMED)
    return {batch_norm: folder / str(batch_norm) for batch_norm in BATCH_NORM}


@pytest.mark.xdist_group("killed runs")
@pytest.mark.parametrize(("where", "step"), KILLS)
@pytest.mark.parametrize("batch_norm", BATCH_NORM)
def test_a_killed_run_resumes_to_bit_identical_losses_and_weights(
    stripes: Path,
    killed_runs: Path,
    whole_runs: dict[bool, Path],
    where: str,
    step: int,
    batch_norm: bool,
) -> None:
    killed, whole = killed_runs / f"{where}-{step}-{batch_norm}", whole_runs[batch_norm]
    assert (killed / "checkpoint.pt").exists() == (step > 1)

    run_training(stripes, killed, batch_norm=batch_norm, **RESUMED)

    assert read_log(killed) == read_log(whole)
    actual, expected = (load_checkpoint(run / "checkpoint.pt") for run in (killed, whole))
    assert actual.model.keys() == expected.model.keys()
    assert all(torch.equal(actual.model[name], tensor) for name, tensor in expected.model.items())
    assert replace(actual.position, log_bytes=expected.position.log_bytes) == expected.position
    assert read_network(killed) == read_network(whole)


def test_an_ended_run_does_not_change(stripes: Path, tmp_path: Path) -> None:
    first = run_training(stripes, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}

    assert run_training(stripes, tmp_path / "run") == first
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def build_with_validation(folder: Path, count: int) -> Path:
    """A data set of 24 pictures, with `count` pictures for validation."""
    generator = np.random.default_rng(0)
    for number in range(24):
        path = folder / "source" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    # The share of the hash space below a picture's hash decides its split.
    positions = sorted(
        int.from_bytes(hashlib.sha256(file.read_bytes()).digest()[:8]) / 2**64
        for file in folder.rglob("*.png")
    )
    share = (positions[count - 1] + positions[count]) / 2
    build(folder / "source", folder / "data", BuildOptions(40, validation=share), jobs=1)
    return folder / "data"


@pytest.mark.skipif(
    installed_set() is LEGACY,
    reason="gloo of torch 2.7.1 now and then hangs in destroy_process_group, after the training",
)
def test_processes_with_uneven_shares_do_not_deadlock_and_resume_after_a_kill(
    tmp_path: Path, run_cases: Any
) -> None:
    """With batch normalization. A process that waits forever is killed (forked_cases.py)."""
    config = TINY.model_copy(update={"batch_norm": True, "batch": 4, "epochs": 2})
    cases = []
    for count in (1, 5):  # one of the two processes validates nothing, or one batch less
        dataset = build_with_validation(tmp_path / str(count), count)
        for name, exit_step in (("whole", None), ("killed", 6), ("killed", None)):
            arguments = {
                "dataset": str(dataset),
                "folder": str(tmp_path / str(count) / name),
                "config": config.model_dump_json(),
                "exit_step": exit_step,
            }
            cases.append({"function": "train_together", "arguments": arguments, "processes": 2})

    assert run_cases(cases) == [[0, 0], [1, 1], [0, 0]] * 2
    for count in (1, 5):
        whole, killed = (read_log(tmp_path / str(count) / name) for name in ("whole", "killed"))
        assert killed == whole
        assert sum(bool(row["validation_loss"]) for row in whole) == 2


def test_two_processes_of_torchrun_learn_the_same_as_one(stripes: Path, tmp_path: Path) -> None:
    """Gloo over loopback. Each has half of each batch; one of them writes the files."""
    settings = ["--architecture=vgg11", "--width=0.0625", "--hidden=8", "--crop-px=32"]
    settings += ["--batch=8", "--epochs=1", "--dropout=0", "--precision=float32"]
    options = ["--device=cpu", "--workers=0", "--log-steps=1"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cli"]
    command = [*launch, "train", str(stripes), "-o", str(tmp_path / "two"), *settings, *options]
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    run_training(stripes, tmp_path / "one", dropout=0, epochs=1)

    alone, together = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for name in ("loss", "validation_loss"):
        expected, actual = (
            [float(row[name]) for row in run if row[name]] for run in (alone, together)
        )
        assert actual == pytest.approx(expected, rel=1e-4)
    assert [row["top1"] for row in together] == [row["top1"] for row in alone]
    assert result.stdout.count("network.safetensors") == 1
    assert "Warning" not in result.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    stripes: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        errors.Diverged, match=r"the last checkpoint is kept\. Start .* lower learning_rate"
    ):
        run_training(stripes, tmp_path / "run", learning_rate=100, epochs=50)
    with pytest.raises(errors.Diverged, match="there was no checkpoint yet"):
        run_training(
            stripes, tmp_path / "other", TrainerOptions(workers=0), learning_rate=100, epochs=50
        )

    model = load_checkpoint(tmp_path / "run" / "checkpoint.pt").model
    assert all(tensor.isfinite().all() for tensor in model.values())


def test_clipping_keeps_the_same_run_finite(stripes: Path, tmp_path: Path) -> None:
    run_training(stripes, tmp_path / "run", learning_rate=100, epochs=2, clip=1e-4, weight_decay=0)


def test_it_stops_after_patience_epochs_without_improvement(stripes: Path, tmp_path: Path) -> None:
    ended = run_training(stripes, tmp_path / "run", learning_rate=1e-9, patience=2, epochs=50)

    assert (ended.best_epoch, ended.has_ended) == (1, True)
    assert sum(bool(row["validation_top1"]) for row in read_log(tmp_path / "run")) == 3


def test_the_published_network_works_for_style_transfer_and_has_metadata(
    stripes: Path, tmp_path: Path
) -> None:
    ended = run_training(stripes, tmp_path / "run", architecture="vgg16", batch_norm=True, epochs=1)
    with safetensors.safe_open(tmp_path / "run" / "network.safetensors", framework="pt") as file:
        metadata = file.metadata()
    model = Classifier(
        TINY.model_copy(update={"architecture": "vgg16", "batch_norm": True}), 2
    ).eval()
    model.load_state_dict(artifacts.read_start_weights(tmp_path / "run" / "whole.safetensors"))
    pth = torch.load(tmp_path / "run" / "network.pth", weights_only=True)

    assert json.loads(metadata["classes"]) == ["lying", "upright"]
    assert tuple(metadata[name] for name in ("architecture", "epoch", "validation_top1")) == (
        "vgg16",
        "1",
        f"{ended.best_top1:.6g}",
    )
    assert json.loads(metadata["config"])["batch_norm"]
    assert len(metadata["dataset_sha256"]) == 64
    assert all(torch.equal(tensor, pth[name]) for name, tensor in model.state_dict().items())

    cache = WeightsCache(tmp_path / "cache")
    cache.import_file("vgg16", tmp_path / "run" / "network.safetensors")
    network = cache.load("vgg16", "cpu", "float32")
    image = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    actual = network.features(image.float() / 255, ["relu3_3"], edges="zeros")["relu3_3"]
    expected = model.features[:23]((image.float() / 255 - model.mean) / model.std)
    torch.testing.assert_close(
        actual[:, : expected.shape[1]], expected.detach(), rtol=1e-3, atol=1e-4
    )
    assert network.sha256 == metadata["sha256"]


def change_checkpoint(run: Path, **changes: Any) -> None:
    """Change the RunInfo of a checkpoint."""
    checkpoint = load_checkpoint(run / "checkpoint.pt")
    info = checkpoint.info.model_copy(update=changes)
    tensors = {
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
        "scaler": checkpoint.scaler,
    }
    artifacts.save_checkpoint(run / "checkpoint.pt", info, checkpoint.position, **tensors)


def test_other_settings_data_sets_or_start_weights_are_refused(
    stripes: Path, tmp_path: Path
) -> None:
    run_training(stripes, tmp_path / "run", epochs=1)

    with pytest.raises(errors.BadSpec, match="was started with epochs 1"):
        run_training(stripes, tmp_path / "run", epochs=2)
    change_checkpoint(tmp_path / "run", dataset_sha256="0" * 64)
    with pytest.raises(errors.BadSpec, match="another data set"):
        run_training(stripes, tmp_path / "run", epochs=1)
    with Dataset(stripes) as data:
        change_checkpoint(tmp_path / "run", dataset_sha256=data.sha256, start_sha256="0" * 64)
    with pytest.raises(errors.BadSpec, match="with another --start"):
        run_training(stripes, tmp_path / "run", epochs=1)


@pytest.mark.parametrize(
    "spoil", [lambda tensor: tensor[..., :1], lambda tensor: tensor * float("nan")]
)
def test_a_checkpoint_with_bad_momentum_is_refused_before_a_step(
    stripes: Path, tmp_path: Path, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    with pytest.raises(Stopped):
        train(stripes, tmp_path / "run", TINY, ProcessGroup(), EVERY_STEP, on_event=stop_at(3))
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    first = checkpoint.optimizer["state"][0]
    first["momentum_buffer"] = spoil(first["momentum_buffer"])
    tensors = {
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
        "scaler": checkpoint.scaler,
    }
    artifacts.save_checkpoint(
        tmp_path / "run" / "checkpoint.pt", checkpoint.info, checkpoint.position, **tensors
    )

    with pytest.raises(errors.BadWeights, match="does not fit its own configuration"):
        run_training(stripes, tmp_path / "run")


def test_a_damaged_checkpoint_and_a_folder_of_something_else_are_refused(
    stripes: Path, tmp_path: Path
) -> None:
    run_training(stripes, tmp_path / "run", epochs=1)
    file = tmp_path / "run" / "checkpoint.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    with pytest.raises(errors.BadWeights, match="damaged"):
        run_training(stripes, tmp_path / "run", epochs=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(errors.BadSpec, match="something else"):
        run_training(stripes, tmp_path / "mine")


def test_pictures_smaller_than_the_crop_are_refused(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.BadSpec, match="have 40 px"):
        run_training(stripes, tmp_path / "run", crop_px=48)


@pytest.mark.parametrize(
    "limit_bytes", [20_000, 200]
)  # too little for a checkpoint, and for the log
def test_a_full_disk_raises_storage_full_and_keeps_the_last_checkpoint(
    stripes: Path, tmp_path: Path, limit_bytes: int
) -> None:
    """A limit on file size stands in for a full disk: the kernel refuses the write as well."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill_disk(event: TrainingEvent) -> None:
        if event.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))

    try:
        with pytest.raises(errors.StorageFull, match="no room"):
            train(stripes, tmp_path / "run", TINY, ProcessGroup(), EVERY_STEP, on_event=fill_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)

    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").position.step == 2
    assert not list((tmp_path / "run").glob("*.part"))
    run_training(stripes, tmp_path / "whole")
    run_training(stripes, tmp_path / "run")
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")


def test_without_validation_the_last_epoch_is_published(stripes: Path, tmp_path: Path) -> None:
    build(stripes.parent / "source", tmp_path / "all", BuildOptions(40, validation=0), jobs=1)
    ended = run_training(tmp_path / "all", tmp_path / "run", epochs=2)

    assert (ended.best_top1, ended.best_epoch) == (-1.0, 2)
    with safetensors.safe_open(tmp_path / "run" / "network.safetensors", framework="pt") as file:
        assert "validation_top1" not in file.metadata()


class Stopped(Exception):
    pass


def stop_at(step: int) -> Callable[[TrainingEvent], None]:
    def stop(event: TrainingEvent) -> None:
        if event.step == step:
            raise Stopped

    return stop


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_run_in_half_precision_resumes_with_its_scaler_and_its_precision(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Even where `auto` means another precision, for example after a start on a GPU."""
    config = TINY.model_copy(update={"precision": "auto", "epochs": 1})
    monkeypatch.setattr(
        "core.neural.training.trainer.fast_dtype", lambda _: getattr(torch, precision)
    )
    train(stripes, tmp_path / "whole", config, ProcessGroup(), EVERY_STEP)
    with pytest.raises(Stopped):
        train(stripes, tmp_path / "parts", config, ProcessGroup(), EVERY_STEP, on_event=stop_at(4))
    monkeypatch.setattr("core.neural.training.trainer.fast_dtype", lambda _: torch.float32)
    train(stripes, tmp_path / "parts", config, ProcessGroup(), EVERY_STEP)

    whole, parts = (
        load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts")
    )
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert parts.scaler == whole.scaler
    assert bool(whole.scaler) == (precision == "float16")
    assert precision == parts.info.precision == read_network(tmp_path / "parts")[0]["precision"]


def test_float32_does_not_use_tf32_on_a_gpu(stripes: Path, tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    run_training(stripes, tmp_path / "run", epochs=1)

    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": 3.0}, "warmup_epochs must be less than epochs"),
        ({"patience": 1}, "the data set has none"),
    ],
)
def test_contradictory_settings_are_refused_and_leave_no_folder(
    stripes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    build(stripes.parent / "source", tmp_path / "all", BuildOptions(40, validation=0), jobs=1)

    with pytest.raises(errors.BadSpec, match=message):
        run_training(tmp_path / "all", tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_processes_cannot_share_is_refused_with_a_batch_that_they_can(
    stripes: Path, tmp_path: Path
) -> None:
    with Dataset(stripes) as data:
        count = data.count("train")
    group = ProcessGroup(Shard(0, 7))

    with pytest.raises(
        errors.BadSpec, match=r"^batch must be a multiple of the 7 processes, for example 7"
    ):
        train(stripes, tmp_path / "run", TINY, group, EVERY_STEP)
    with pytest.raises(
        errors.BadSpec, match=rf"only {count} pictures .* 7 processes, for example {count // 7 * 7}"
    ):
        train(stripes, tmp_path / "run", TINY.model_copy(update={"batch": 7000}), group, EVERY_STEP)


def test_unreadable_start_weights_leave_no_folder(stripes: Path, tmp_path: Path) -> None:
    (tmp_path / "start.pth").write_bytes(b"no weights")

    with pytest.raises(errors.BadWeights):
        train(
            stripes,
            tmp_path / "run",
            TINY,
            ProcessGroup(),
            EVERY_STEP,
            start=tmp_path / "start.pth",
        )
    assert not (tmp_path / "run").exists()


def test_a_failed_allocation_raises_out_of_memory(stripes: Path, tmp_path: Path) -> None:
    """On a CPU, where torch raises a plain RuntimeError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, hard))
    try:
        with pytest.raises(errors.OutOfMemory, match="make --batch smaller"):
            run_training(stripes, tmp_path / "run", width=1.0, hidden=16384)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {7: 7},
        {"format": 2},
        {"format": 3},
        {
            "format": 2,
            "info": "[" * 100_000,
            "position": {},
            "model": {},
            "optimizer": {},
            "scaler": {},
        },
        {
            "format": 2,
            "info": None,
            "position": {"step": "many"},
            "model": {},
            "optimizer": {},
            "scaler": {},
        },
        {
            "format": 2,
            "info": None,
            "position": {},
            "model": {},
            "optimizer": {"state": 7},
            "scaler": {},
        },
    ],
)
def test_a_checkpoint_file_with_other_content_is_refused(
    stripes: Path, tmp_path: Path, content: Any
) -> None:
    run_training(stripes, tmp_path / "run", epochs=1)
    file = tmp_path / "run" / "checkpoint.pt"
    if isinstance(content, dict) and content.get("info", 0) is None:
        content = {**content, "info": load_checkpoint(file).info.model_dump_json()}
    torch.save(content, file)

    with pytest.raises(errors.BadWeights):
        run_training(stripes, tmp_path / "run", epochs=1)


def test_a_log_that_a_user_has_shortened_continues_without_a_gap(
    stripes: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train(stripes, tmp_path / "run", TINY, ProcessGroup(), EVERY_STEP, on_event=stop_at(5))
    text = (tmp_path / "run" / "log.csv").read_bytes()
    (tmp_path / "run" / "log.csv").write_bytes(text[: text.index(b"\n") + 1])
    run_training(stripes, tmp_path / "run")

    assert b"\0" not in (tmp_path / "run" / "log.csv").read_bytes()
    assert read_log(tmp_path / "run")[0]["step"] == "5"
