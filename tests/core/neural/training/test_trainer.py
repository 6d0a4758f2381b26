"""Training: it learns, goes on after a kill to the same bits, stops where it must, and leaves what painting needs."""

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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from core import errors
from core.neural.training import artifacts
from core.neural.training.artifacts import RunPosition, load
from core.neural.training.classifier import Classifier
from core.neural.training.data import Share
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


def teach(
    dataset: Path, run: Path, pacing: TrainerOptions = EVERY_STEP, **changes: Any
) -> RunPosition:
    return train(dataset, run, TINY.model_copy(update=changes), ProcessGroup(), pacing)


def rows(run: Path) -> list[dict[str, str]]:
    """The log, without what the clock has to say."""
    with (run / "log.csv").open(newline="") as file:
        return [
            {key: text for key, text in row.items() if key != "pictures_per_second"}
            for row in csv.DictReader(file)
        ]


def test_it_learns_to_tell_upright_stripes_from_lying_ones(stripes: Path, tmp_path: Path) -> None:
    settings = {
        "width": 0.125,
        "hidden": 32,
        "dropout": 0,
        "learning_rate": 0.02,
        "schedule": "cosine",
    }
    ended = teach(stripes, tmp_path / "run", batch_norm=True, epochs=12, **settings)

    losses = [float(row["loss"]) for row in rows(tmp_path / "run") if row["loss"]]
    assert ended.best > 0.9
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_two_runs_of_one_recipe_are_the_same_to_the_bit_and_another_seed_is_another(
    stripes: Path, tmp_path: Path
) -> None:
    teach(stripes, tmp_path / "one")
    teach(
        stripes, tmp_path / "two", TrainerOptions(workers=1, checkpoint_seconds=1000, log_steps=1)
    )
    teach(stripes, tmp_path / "other", seed=1)

    assert rows(tmp_path / "one") == rows(tmp_path / "two") != rows(tmp_path / "other")


def opened(run: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Card and tensors of the network that came out."""
    with safetensors.safe_open(run / "network.safetensors", framework="pt") as file:
        return file.metadata(), {
            name: file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())
        }


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from core.neural.training.distributed import ProcessGroup
from core.neural.training.trainer import TrainerOptions, train
from core.training.config import TrainingConfig

dataset, run, recipe, at, where = sys.argv[1:]
def on_moment(moment):
    if where == "step" and moment.step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
saves, replace = 0, Path.replace
def torn(part, file):
    global saves
    saves += part.name == "checkpoint.pt.part"
    if where == "save" and saves == int(at):
        os.truncate(part, part.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(part, file)
Path.replace = torn
torch.set_num_threads(int(os.environ["THREADS"]))
pacing = TrainerOptions(workers=0, checkpoint_seconds=0, log_steps=1)
train(Path(dataset), Path(run), TrainingConfig.model_validate_json(recipe), ProcessGroup(), pacing, on_moment=on_moment)
"""


@pytest.mark.parametrize(("where", "at"), [("step", 1), ("step", 5), ("save", 4)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_run_that_is_killed_goes_on_to_the_same_losses_and_weights_to_the_bit(
    stripes: Path, tmp_path: Path, where: str, at: int, batch_norm: bool
) -> None:
    """Killed in mid-epoch before the step's checkpoint, or with half of a checkpoint written."""
    recipe = TINY.model_copy(update={"batch_norm": batch_norm, "augment": "scale"})
    teach(stripes, tmp_path / "whole", batch_norm=batch_norm, augment="scale")
    args = [str(stripes), str(tmp_path / "killed"), recipe.model_dump_json(), str(at), where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "THREADS": str(torch.get_num_threads())}
    died = subprocess.run([sys.executable, "-c", KILLED, *args], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert (at > 1) == (tmp_path / "killed" / "checkpoint.pt").exists()

    teach(stripes, tmp_path / "killed", batch_norm=batch_norm, augment="scale")

    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    one, other = (load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert all(torch.equal(tensor, other.model[name]) for name, tensor in one.model.items())
    assert replace(other.position, log_bytes=one.position.log_bytes) == one.position
    assert opened(tmp_path / "killed") == opened(tmp_path / "whole")


def test_a_run_that_has_ended_is_left_as_it_is(stripes: Path, tmp_path: Path) -> None:
    first = teach(stripes, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}

    assert teach(stripes, tmp_path / "run") == first
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


TEAM = """
import os, sys
from pathlib import Path
import torch
from core.neural.training.distributed import join_process_group
from core.neural.training.trainer import TrainerOptions, train
from core.training.config import TrainingConfig

dataset, run, recipe, at = sys.argv[1:]
def on_moment(moment):
    if moment.step == int(at):
        os._exit(1)
with join_process_group("cpu") as team:
    pacing = TrainerOptions(workers=0, checkpoint_seconds=0, log_steps=1)
    train(Path(dataset), Path(run), TrainingConfig.model_validate_json(recipe), team, pacing, on_moment=on_moment)
"""


def validated_by(folder: Path, count: int) -> Path:
    """A data set of 24 pictures, of which so many are for validation."""
    hand = np.random.default_rng(0)
    for number in range(24):
        place = folder / "source" / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(hand.integers(0, 256, (40, 40, 3), np.uint8)).save(place)
    places = sorted(
        int.from_bytes(hashlib.sha256(file.read_bytes()).digest()[:8]) / 2**64
        for file in folder.rglob("*.png")
    )
    build(
        folder / "source",
        folder / "data",
        BuildOptions(40, validation=(places[count - 1] + places[count]) / 2),
        jobs=1,
    )
    return folder / "data"


@pytest.mark.parametrize(
    "validation", [1, 5]
)  # of two processes one has nothing to look at, or a batch less
def test_processes_with_uneven_shares_and_batch_normalization_do_not_wait_for_each_other_and_go_on_after_a_kill(
    tmp_path: Path, validation: int
) -> None:
    dataset = validated_by(tmp_path, validation)
    recipe = TINY.model_copy(update={"batch_norm": True, "batch": 4, "epochs": 2})
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(tmp_path / "team.py"),
    ]
    (tmp_path / "team.py").write_text(TEAM)

    def run(name: str, at: int) -> int:
        args = [str(dataset), str(tmp_path / name), recipe.model_dump_json(), str(at)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *launch, *args],
            env=environment,
            check=False,
            timeout=120,
            capture_output=True,
        ).returncode

    assert run("whole", -1) == 0
    assert run("killed", 6) == 1
    assert run("killed", -1) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert sum(bool(row["validation_loss"]) for row in rows(tmp_path / "whole")) == 2


def test_two_processes_learn_as_one(stripes: Path, tmp_path: Path) -> None:
    """Gloo, over loopback. The same batches, halved; the losses agree to rounding, and one of them writes."""
    settings = {
        "architecture": "vgg11",
        "width": 0.0625,
        "hidden": 8,
        "crop_px": 32,
        "batch": 8,
        "epochs": 2,
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cli"]
    options += [
        "--dropout=0",
        "--precision=float32",
        "--device=cpu",
        "--workers=0",
        "--log-steps=1",
    ]
    ran = subprocess.run(
        [sys.executable, *launch, "train", str(stripes), "-o", str(tmp_path / "two"), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    teach(stripes, tmp_path / "one", dropout=0, epochs=2)

    alone, together = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for name in ("loss", "validation_loss"):
        one, two = ([float(row[name]) for row in run if row[name]] for run in (alone, together))
        assert two == pytest.approx(one, rel=1e-4)
    assert [row["top1"] for row in together] == [row["top1"] for row in alone]
    assert ran.stdout.count("network.safetensors") == 1
    assert "Warning" not in ran.stderr


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    stripes: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        errors.Diverged, match=r"the last checkpoint is kept\. Begin .* lower learning_rate"
    ):
        teach(stripes, tmp_path / "run", learning_rate=100, epochs=50)
    with pytest.raises(errors.Diverged, match="there was no checkpoint yet"):
        teach(stripes, tmp_path / "other", TrainerOptions(workers=0), learning_rate=100, epochs=50)

    kept = load(tmp_path / "run" / "checkpoint.pt").model
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_clipping_keeps_the_same_run_together(stripes: Path, tmp_path: Path) -> None:
    teach(stripes, tmp_path / "run", learning_rate=100, epochs=2, clip=1e-4, weight_decay=0)


def test_it_stops_when_patience_is_over(stripes: Path, tmp_path: Path) -> None:
    ended = teach(stripes, tmp_path / "run", learning_rate=1e-9, patience=2, epochs=50)

    assert (ended.best_epoch, ended.ended) == (1, True)
    assert sum(bool(row["validation_top1"]) for row in rows(tmp_path / "run")) == 3


def test_what_comes_out_can_be_painted_with_and_says_what_it_is(
    stripes: Path, tmp_path: Path
) -> None:
    ended = teach(stripes, tmp_path / "run", architecture="vgg16", batch_norm=True, epochs=1)
    with safetensors.safe_open(tmp_path / "run" / "network.safetensors", framework="pt") as file:
        card = file.metadata()
    model = Classifier(
        TINY.model_copy(update={"architecture": "vgg16", "batch_norm": True}), 2
    ).eval()
    model.load_state_dict(artifacts.read_start_weights(tmp_path / "run" / "whole.safetensors"))
    pth = torch.load(tmp_path / "run" / "network.pth", weights_only=True)

    assert json.loads(card["classes"]) == ["lying", "upright"]
    assert tuple(card[name] for name in ("architecture", "epoch", "validation_top1")) == (
        "vgg16",
        "1",
        f"{ended.best:.6g}",
    )
    assert json.loads(card["recipe"])["batch_norm"]
    assert len(card["dataset_sha256"]) == 64
    assert all(torch.equal(tensor, pth[name]) for name, tensor in model.state_dict().items())

    cache = WeightsCache(tmp_path / "cache")
    cache.import_file("vgg16", tmp_path / "run" / "network.safetensors")
    network = cache.load("vgg16", "cpu", "float32")
    image = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    found = network.features(image.float() / 255, ["relu3_3"], edges="zeros")["relu3_3"]
    wanted = model.features[:23]((image.float() / 255 - model.mean) / model.std)
    torch.testing.assert_close(wanted.detach(), found[:, : wanted.shape[1]], rtol=1e-3, atol=1e-4)
    assert network.sha256 == card["sha256"]


def resaved(run: Path, **changes: Any) -> None:
    """The checkpoint, with something else told of the run."""
    found = load(run / "checkpoint.pt")
    about = found.about.model_copy(update=changes)
    tensors = {"model": found.model, "optimizer": found.optimizer, "scaler": found.scaler}
    artifacts.save(run / "checkpoint.pt", about, found.position, **tensors)


def test_other_settings_or_pictures_than_those_it_was_begun_with_are_refused(
    stripes: Path, tmp_path: Path
) -> None:
    teach(stripes, tmp_path / "run", epochs=1)

    with pytest.raises(errors.BadSpec, match="was begun with epochs 1"):
        teach(stripes, tmp_path / "run", epochs=2)
    resaved(tmp_path / "run", dataset_sha256="0" * 64)
    with pytest.raises(errors.BadSpec, match="another data set"):
        teach(stripes, tmp_path / "run", epochs=1)
    with Dataset(stripes) as data:
        resaved(tmp_path / "run", dataset_sha256=data.sha256, start_sha256="0" * 64)
    with pytest.raises(errors.BadSpec, match="with another --start"):
        teach(stripes, tmp_path / "run", epochs=1)


@pytest.mark.parametrize(
    "spoil", [lambda tensor: tensor[..., :1], lambda tensor: tensor * float("nan")]
)
def test_a_checkpoint_whose_momentum_does_not_fit_is_refused_before_a_step(
    stripes: Path, tmp_path: Path, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    with pytest.raises(Stopped):
        train(stripes, tmp_path / "run", TINY, ProcessGroup(), EVERY_STEP, on_moment=stop_at(3))
    found = load(tmp_path / "run" / "checkpoint.pt")
    first = found.optimizer["state"][0]
    first["momentum_buffer"] = spoil(first["momentum_buffer"])
    tensors = {"model": found.model, "optimizer": found.optimizer, "scaler": found.scaler}
    artifacts.save(tmp_path / "run" / "checkpoint.pt", found.about, found.position, **tensors)

    with pytest.raises(errors.BadWeights, match="does not fit its own recipe"):
        teach(stripes, tmp_path / "run")


def test_a_damaged_checkpoint_and_a_strange_folder_are_refused(
    stripes: Path, tmp_path: Path
) -> None:
    teach(stripes, tmp_path / "run", epochs=1)
    file = tmp_path / "run" / "checkpoint.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    with pytest.raises(errors.BadWeights, match="damaged"):
        teach(stripes, tmp_path / "run", epochs=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(errors.BadSpec, match="something else"):
        teach(stripes, tmp_path / "mine")


def test_pictures_smaller_than_the_crop_are_refused(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.BadSpec, match="have 40 px"):
        teach(stripes, tmp_path / "run", crop_px=48)


@pytest.mark.parametrize(
    "room_bytes", [20_000, 200]
)  # less than a checkpoint, and less than the log
def test_a_full_disk_is_told_of_and_the_last_checkpoint_is_still_good(
    stripes: Path, tmp_path: Path, room_bytes: int
) -> None:
    """The limit on the size of a file stands in for the disk: the kernel refuses the write just the same."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(moment: TrainingEvent) -> None:
        if moment.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))

    try:
        with pytest.raises(errors.StorageFull, match="no room"):
            train(stripes, tmp_path / "run", TINY, ProcessGroup(), EVERY_STEP, on_moment=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)

    assert load(tmp_path / "run" / "checkpoint.pt").position.step == 2
    assert not list((tmp_path / "run").glob("*.part"))
    teach(stripes, tmp_path / "whole")
    teach(stripes, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_without_validation_the_last_epoch_is_kept(stripes: Path, tmp_path: Path) -> None:
    build(stripes.parent / "source", tmp_path / "all", BuildOptions(40, validation=0), jobs=1)
    ended = teach(tmp_path / "all", tmp_path / "run", epochs=2)

    assert (ended.best, ended.best_epoch) == (-1.0, 2)
    with safetensors.safe_open(tmp_path / "run" / "network.safetensors", framework="pt") as file:
        assert "validation_top1" not in file.metadata()


class Stopped(Exception):
    pass


def stop_at(step: int) -> Callable[[TrainingEvent], None]:
    def look(moment: TrainingEvent) -> None:
        if moment.step == step:
            raise Stopped

    return look


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_run_in_half_precision_goes_on_with_its_scaler_and_in_the_precision_it_was_begun_with(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Where `auto` means another one now: the run was begun on a card, say."""
    recipe = TINY.model_copy(update={"precision": "auto", "epochs": 1})
    monkeypatch.setattr(
        "core.neural.training.trainer.fast_dtype", lambda _: getattr(torch, precision)
    )
    train(stripes, tmp_path / "whole", recipe, ProcessGroup(), EVERY_STEP)
    with pytest.raises(Stopped):
        train(stripes, tmp_path / "parts", recipe, ProcessGroup(), EVERY_STEP, on_moment=stop_at(4))
    monkeypatch.setattr("core.neural.training.trainer.fast_dtype", lambda _: torch.float32)
    train(stripes, tmp_path / "parts", recipe, ProcessGroup(), EVERY_STEP)

    whole, parts = (load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert parts.scaler == whole.scaler
    assert bool(whole.scaler) == (precision == "float16")
    assert precision == parts.about.precision == opened(tmp_path / "parts")[0]["precision"]


def test_float32_is_not_ten_bits_of_it_on_a_card(stripes: Path, tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    teach(stripes, tmp_path / "run", epochs=1)

    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_epochs": 3.0}, "warmup_epochs must be less than epochs"),
        ({"patience": 1}, "the data set has none"),
    ],
)
def test_settings_that_mean_nothing_are_refused_and_leave_nothing(
    stripes: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    build(stripes.parent / "source", tmp_path / "all", BuildOptions(40, validation=0), jobs=1)

    with pytest.raises(errors.BadSpec, match=words):
        teach(tmp_path / "all", tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_team_that_no_batch_can_be_shared_among_is_told_what_batch_could(
    stripes: Path, tmp_path: Path
) -> None:
    with Dataset(stripes) as data:
        count = data.count("train")
    team = ProcessGroup(Share(0, 7))

    with pytest.raises(
        errors.BadSpec, match=r"^batch must be a multiple of the 7 processes, 7 or so"
    ):
        train(stripes, tmp_path / "run", TINY, team, EVERY_STEP)
    with pytest.raises(
        errors.BadSpec, match=rf"only {count} pictures .* 7 processes, {count // 7 * 7} or so"
    ):
        train(stripes, tmp_path / "run", TINY.model_copy(update={"batch": 7000}), team, EVERY_STEP)


def test_a_beginning_that_cannot_be_read_leaves_no_folder(stripes: Path, tmp_path: Path) -> None:
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


def test_a_machine_without_memory_is_told_of_in_words(stripes: Path, tmp_path: Path) -> None:
    """On a CPU, where torch's error has no class of its own: a billion bytes more than there are."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, hard))
    try:
        with pytest.raises(errors.OutOfMemory, match="make --batch smaller"):
            teach(stripes, tmp_path / "run", width=1.0, hidden=16384)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {7: 7},
        {"format": 1},
        {"format": 2},
        {
            "format": 1,
            "about": "[" * 100_000,
            "position": {},
            "model": {},
            "optimizer": {},
            "scaler": {},
        },
        {
            "format": 1,
            "about": None,
            "position": {"step": "many"},
            "model": {},
            "optimizer": {},
            "scaler": {},
        },
        {
            "format": 1,
            "about": None,
            "position": {},
            "model": {},
            "optimizer": {"state": 7},
            "scaler": {},
        },
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_words(
    stripes: Path, tmp_path: Path, content: Any
) -> None:
    teach(stripes, tmp_path / "run", epochs=1)
    file = tmp_path / "run" / "checkpoint.pt"
    if isinstance(content, dict) and content.get("about", 0) is None:
        content = {**content, "about": load(file).about.model_dump_json()}
    torch.save(content, file)

    with pytest.raises(errors.BadWeights):
        teach(stripes, tmp_path / "run", epochs=1)


def test_a_log_that_someone_has_cut_goes_on_without_a_gap(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(stripes, tmp_path / "run", TINY, ProcessGroup(), EVERY_STEP, on_moment=stop_at(5))
    text = (tmp_path / "run" / "log.csv").read_bytes()
    (tmp_path / "run" / "log.csv").write_bytes(text[: text.index(b"\n") + 1])
    teach(stripes, tmp_path / "run")

    assert b"\0" not in (tmp_path / "run" / "log.csv").read_bytes()
    assert rows(tmp_path / "run")[0]["step"] == "5"
