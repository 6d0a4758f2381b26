"""Training: it learns, goes on after a kill to the same bits, stops where it must, and leaves what painting needs."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from core import errors
from core.neural import trained
from core.neural.classifier import Classifier
from core.neural.train import Moment, Pacing, Position, Team, train
from core.neural.trained import load
from core.neural.weights import WeightsCache
from core.recipe import Recipe

ROOT = Path(__file__).parents[3]
TINY = Recipe(
    architecture="vgg11", width=1 / 16, hidden=8, crop_px=32, batch=8, epochs=3, dropout=0.1, precision="float32"
)
EVERY_STEP = Pacing(workers=0, checkpoint_seconds=0, log_steps=1)


def teach(dataset: Path, run: Path, pacing: Pacing = EVERY_STEP, **changes: Any) -> Position:
    return train(dataset, run, TINY.model_copy(update=changes), Team(), pacing)


def rows(run: Path) -> list[dict[str, str]]:
    """The log, without what the clock has to say."""
    with (run / "log.csv").open(newline="") as file:
        return [
            {key: text for key, text in row.items() if key != "pictures_per_second"} for row in csv.DictReader(file)
        ]


def test_it_learns_to_tell_upright_stripes_from_lying_ones(stripes: Path, tmp_path: Path) -> None:
    settings = {"width": 0.125, "hidden": 32, "dropout": 0, "learning_rate": 0.02, "schedule": "cosine"}
    ended = teach(stripes, tmp_path / "run", batch_norm=True, epochs=12, **settings)

    losses = [float(row["loss"]) for row in rows(tmp_path / "run") if row["loss"]]
    assert ended.best > 0.9
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_two_runs_of_one_recipe_are_the_same_to_the_bit_and_another_seed_is_another(
    stripes: Path, tmp_path: Path
) -> None:
    teach(stripes, tmp_path / "one")
    teach(stripes, tmp_path / "two", Pacing(workers=1, checkpoint_seconds=1000, log_steps=1))
    teach(stripes, tmp_path / "other", seed=1)

    assert rows(tmp_path / "one") == rows(tmp_path / "two") != rows(tmp_path / "other")


def opened(run: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Card and tensors of the network that came out."""
    with safetensors.safe_open(run / "network.safetensors", framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())}


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from core.neural import trained
from core.neural.train import Pacing, Team, train
from core.recipe import Recipe

dataset, run, recipe, at, where = sys.argv[1:]
def on_moment(moment):
    if where == "step" and moment.step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
saves, save = 0, torch.save
def torn(content, file):
    global saves
    saves += str(file).endswith("checkpoint.pt.part")
    save(content, file)
    if where == "save" and saves == int(at):
        os.truncate(file, os.stat(file).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = torn
torch.set_num_threads(int(os.environ["THREADS"]))
pacing = Pacing(workers=0, checkpoint_seconds=0, log_steps=1)
train(Path(dataset), Path(run), Recipe.model_validate_json(recipe), Team(), pacing, on_moment=on_moment)
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
    assert -signal.SIGKILL == died.returncode
    assert (tmp_path / "killed" / "checkpoint.pt").exists() == (at > 1)

    teach(stripes, tmp_path / "killed", batch_norm=batch_norm, augment="scale")

    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    one, other = (load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())
    assert one["position"] == other["position"] | {"log_bytes": one["position"]["log_bytes"]}
    assert opened(tmp_path / "whole") == opened(tmp_path / "killed")


def test_a_run_that_has_ended_is_left_as_it_is(stripes: Path, tmp_path: Path) -> None:
    first = teach(stripes, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}

    assert first == teach(stripes, tmp_path / "run")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}


def test_two_processes_learn_as_one(stripes: Path, tmp_path: Path) -> None:
    """Gloo, over loopback. The same batches, halved; the losses agree to rounding, and one of them writes."""
    settings = {"architecture": "vgg11", "width": 0.0625, "hidden": 8, "crop_px": 32, "batch": 8, "epochs": 2}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cli"]
    options += ["--dropout=0", "--precision=float32", "--device=cpu", "--workers=0", "--log-steps=1"]
    ran = subprocess.run(
        [sys.executable, *launch, "train", str(stripes), "-o", str(tmp_path / "two"), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ran.returncode, ran.stderr
    teach(stripes, tmp_path / "one", dropout=0, epochs=2)

    alone, together = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in alone] == [row["step"] for row in together]
    for name in ("loss", "validation_loss"):
        one, two = ([float(row[name]) for row in run if row[name]] for run in (alone, together))
        assert pytest.approx(one, rel=1e-4) == two
    assert [row["top1"] for row in alone] == [row["top1"] for row in together]
    assert 1 == ran.stdout.count("network.safetensors")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.Diverged, match="lower learning_rate"):
        teach(stripes, tmp_path / "run", learning_rate=100, epochs=50)

    kept = load(tmp_path / "run" / "checkpoint.pt")["model"]
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_clipping_keeps_the_same_run_together(stripes: Path, tmp_path: Path) -> None:
    teach(stripes, tmp_path / "run", learning_rate=100, epochs=2, clip=1e-4, weight_decay=0)


def test_it_stops_when_patience_is_over(stripes: Path, tmp_path: Path) -> None:
    ended = teach(stripes, tmp_path / "run", learning_rate=1e-9, patience=2, epochs=50)

    assert (1, True) == (ended.best_epoch, ended.ended)
    assert 3 == sum(bool(row["validation_top1"]) for row in rows(tmp_path / "run"))


def test_what_comes_out_can_be_painted_with_and_says_what_it_is(stripes: Path, tmp_path: Path) -> None:
    ended = teach(stripes, tmp_path / "run", architecture="vgg16", batch_norm=True, epochs=1)
    with safetensors.safe_open(tmp_path / "run" / "network.safetensors", framework="pt") as file:
        card = file.metadata()
    model = Classifier(TINY.model_copy(update={"architecture": "vgg16", "batch_norm": True}), 2).eval()
    model.load_state_dict(trained.read(tmp_path / "run" / "whole.safetensors"))
    pth = torch.load(tmp_path / "run" / "network.pth", weights_only=True)

    assert ["lying", "upright"] == json.loads(card["classes"])
    assert ("vgg16", "1", f"{ended.best:.6g}") == tuple(
        card[name] for name in ("architecture", "epoch", "validation_top1")
    )
    assert json.loads(card["recipe"])["batch_norm"]
    assert 64 == len(card["dataset_sha256"])
    assert all(torch.equal(tensor, pth[name]) for name, tensor in model.state_dict().items())

    cache = WeightsCache(tmp_path / "cache")
    cache.import_file("vgg16", tmp_path / "run" / "network.safetensors")
    network = cache.load("vgg16", "cpu", "float32")
    image = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    found = network.features(image.float() / 255, ["relu3_3"], edges="zeros")["relu3_3"]
    wanted = model.features[:23]((image.float() / 255 - model.mean) / model.std)
    torch.testing.assert_close(wanted.detach(), found[:, : wanted.shape[1]], rtol=1e-3, atol=1e-4)
    assert card["sha256"] == network.sha256


def test_other_settings_or_pictures_than_those_it_was_begun_with_are_refused(stripes: Path, tmp_path: Path) -> None:
    teach(stripes, tmp_path / "run", epochs=1)

    with pytest.raises(errors.BadSpec, match="was begun with epochs 1"):
        teach(stripes, tmp_path / "run", epochs=2)
    found = load(tmp_path / "run" / "checkpoint.pt")
    about = trained.About.model_validate_json(found["about"]).model_copy(update={"dataset_sha256": "0" * 64})
    trained.save(tmp_path / "run" / "checkpoint.pt", {**found, "about": about.model_dump_json()})
    with pytest.raises(errors.BadSpec, match="other pictures"):
        teach(stripes, tmp_path / "run", epochs=1)


def test_a_damaged_checkpoint_and_a_strange_folder_are_refused(stripes: Path, tmp_path: Path) -> None:
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


def test_a_full_disk_is_told_of_and_the_last_checkpoint_is_still_good(stripes: Path, tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the disk: the kernel refuses the write just the same."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(moment: Moment) -> None:
        if moment.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(errors.StorageFull, match="no room"):
            train(stripes, tmp_path / "run", TINY, Team(), EVERY_STEP, on_moment=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)

    assert 2 == load(tmp_path / "run" / "checkpoint.pt")["position"]["step"]
    assert not list((tmp_path / "run").glob("*.part"))
    teach(stripes, tmp_path / "whole")
    teach(stripes, tmp_path / "run")
    assert rows(tmp_path / "whole") == rows(tmp_path / "run")


def test_without_validation_the_last_epoch_is_kept(stripes: Path, tmp_path: Path) -> None:
    from core.harvest import Wish, build

    build(stripes.parent / "source", tmp_path / "all", Wish(40, validation=0), jobs=1)
    ended = teach(tmp_path / "all", tmp_path / "run", epochs=2)

    assert (-1.0, 2) == (ended.best, ended.best_epoch)
    with safetensors.safe_open(tmp_path / "run" / "network.safetensors", framework="pt") as file:
        assert "validation_top1" not in file.metadata()
