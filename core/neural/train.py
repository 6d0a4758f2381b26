"""Train a classifier on a data set, on one device or several; go on after any end, to the same bits on a CPU.

A run is a folder: `checkpoint.pt`, `log.csv`, and the best network so far (core/neural/trained.py). Order, crops and
dropout depend on the seed and the step alone, so that a checkpoint needs no state of random numbers beside the step.
Knows no terminal.
"""

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core import errors
from core.dataset import Dataset
from core.neural import feed, trained
from core.neural.classifier import Classifier
from core.neural.feed import Share
from core.neural.trainlog import Log, Row
from core.neural.vgg import best_device, fast_dtype
from core.recipe import Recipe

_FORMAT = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Moment:
    """A running training, for who watches."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    top1: float
    top5: float
    pictures_per_second: float
    seconds_left: float
    validation_top1: float | None


@dataclass
class Position:
    """Where a run stands, beside its tensors."""

    step: int = 0
    best: float = -1.0  # top-1 of the best validation
    best_epoch: int = 0
    last_top1: float | None = None
    log_bytes: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Team:
    """One process among those that `torchrun` started; alone without it."""

    share: Share = field(default_factory=Share)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.share.rank == 0

    def summed(self, numbers: Tensor) -> list[float]:
        """Over all processes."""
        if self.share.size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers.tolist()

    def wrapped(self, model: nn.Module) -> nn.Module:
        """With gradients that are the mean over all processes."""
        if self.share.size == 1:
            return model
        return DistributedDataParallel(model, [self.device.index] if self.device.type == "cuda" else None)


@contextmanager
def joined(wanted: str) -> Iterator[Team]:
    """The team of this process. Raises BadSettings for a device that is not there."""
    share = Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    device = best_device(wanted)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:  # torch's answers to a device that is not there
        raise errors.BadSettings(f"The device {wanted} cannot be used here; cpu always can.") from error
    if share.size == 1:
        yield Team(share, device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(share, device)
    finally:
        torch.distributed.destroy_process_group()


def reading_processes(team: Team) -> int:
    """As many as keep a device busy: one beside a CPU, whose cores have enough to do; a GPU's share of the cores."""
    if team.device.type != "cuda":
        return 1
    return max(1, min(16, (os.cpu_count() or 1) // max(1, torch.cuda.device_count())))


@dataclass(frozen=True)
class Pacing:
    """What changes nothing about the network that comes out."""

    workers: int = 1  # processes that read ahead
    checkpoint_seconds: float = 60.0
    log_steps: int = 10


def train(
    dataset: Path,
    run: Path,
    recipe: Recipe,
    team: Team,
    pacing: Pacing,
    *,
    start: Path | None = None,
    on_moment: Callable[[Moment], None] = lambda _: None,
) -> Position:
    """Train, or go on with, the run in the folder `run`; returns at once where it has ended.

    start: a trained VGG-11 to begin with. Raises BadDataset, BadSpec, BadWeights; Diverged, after which the last
    checkpoint is still good; OutOfMemory, StorageFull.
    """
    with Dataset(dataset) as opened:
        _check(opened, recipe, team)
        about = trained.About(
            dataset_sha256=opened.sha256,
            classes=opened.classes,
            recipe=recipe,
            start_sha256=trained.digest_of(start),
        )
        opened.close()  # whoever reads opens it again, after it has forked
        try:
            with _alone(run, team):
                return Run(opened, run, about, team=team, pacing=pacing, start=start).go(on_moment)
        except torch.OutOfMemoryError as error:
            raise errors.OutOfMemory("The device has not enough memory for this; make --batch smaller.") from error


def _check(dataset: Dataset, recipe: Recipe, team: Team) -> None:
    if dataset.header.side_px < recipe.crop_px:
        raise errors.BadSpec(f"The data set's pictures have {dataset.header.side_px} px; crop_px must not be larger.")
    if _batch(recipe, dataset.count("train")) % team.share.size:
        raise errors.BadSpec(f"batch must be a multiple of the {team.share.size} processes.")


def _batch(recipe: Recipe, count: int) -> int:
    """A data set smaller than a batch is one."""
    return min(recipe.batch, count)


@contextmanager
def _alone(run: Path, team: Team) -> Iterator[None]:
    if run.is_dir() and any(run.iterdir()) and not (run / "log.csv").is_file():
        raise errors.BadSpec(f"{run} is a folder with something else in it; take another.")
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run, os.O_RDONLY)
    try:
        if team.leads:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise errors.BadSpec(f"Another process trains in {run}.") from error
    finally:
        os.close(handle)


class Run:
    """One training, from where its folder says it stands."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        about: trained.About,
        *,
        team: Team,
        pacing: Pacing,
        start: Path | None,
    ) -> None:
        self._dataset, self._folder, self._about, self._team, self._pacing = dataset, folder, about, team, pacing
        self._recipe = recipe = about.recipe
        self._train, self._validation = dataset.count("train"), dataset.count("validation")
        self._batch = _batch(recipe, self._train)
        self._epoch_steps = self._train // self._batch
        self._steps = recipe.epochs * self._epoch_steps
        dtype = fast_dtype(team.device) if recipe.precision == "auto" else _DTYPES[recipe.precision]
        self._half = None if dtype == torch.float32 else dtype
        torch.manual_seed(feed.mixed(recipe.seed, "weights"))
        self._plain = Classifier(recipe, len(about.classes))
        self._plain.begin(recipe.init)
        if start is not None:
            self._plain.begin_with(trained.read(start))
        self._plain = self._plain.to(team.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(
            self._plain.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._scaler = torch.amp.GradScaler(team.device.type, enabled=dtype == torch.float16)
        self.position = self._resumed()
        self._model = team.wrapped(self._plain)
        self._log = Log(folder / "log.csv", self.position.log_bytes) if team.leads else None

    # ------------------------------------------------------------------ the loop

    def go(self, on_moment: Callable[[Moment], None]) -> Position:
        """To the end, or to where patience is over."""
        try:
            if not self.position.ended:
                self._go(on_moment)
        finally:
            if self._log is not None:
                self._log.close()
        return self.position

    def _go(self, on_moment: Callable[[Moment], None]) -> None:
        views = feed.Views(self._dataset, "train", self._recipe)
        order = feed.Order(self._recipe, self._train, self._batch, self.position.step, self._team.share)
        watch, saved = _Watch(self.position.step), time.monotonic()
        for pictures, labels in feed.loader(views, order, self._pacing.workers, self._team.device):
            losses = self._step(pictures.to(self._team.device), labels.to(self._team.device))
            self.position.step += 1
            on_moment(self._moment(losses, watch))
            if self.position.step % self._pacing.log_steps == 0:
                self._write(self._row(losses, watch))
            if self.position.step % self._epoch_steps == 0:
                self._end_epoch(watch)
                self.position.ended = self._is_over()
            if self.position.ended or time.monotonic() - saved > self._pacing.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            if self.position.ended:
                break

    def _is_over(self) -> bool:
        epoch = self.position.step // self._epoch_steps
        waited = epoch - self.position.best_epoch
        return epoch == self._recipe.epochs or (self._validation > 0 and 0 < self._recipe.patience <= waited)

    def _step(self, pictures: Tensor, labels: Tensor) -> list[float]:
        """One step down; the mean loss of the batch, and the shares of top-1 and top-5. Raises Diverged."""
        step, recipe = self.position.step, self._recipe
        torch.manual_seed(feed.mixed(recipe.seed, "dropout", step, self._team.share.rank))
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.rate(step, self._epoch_steps)
        self._model.train()
        scores = self._scores(pictures)
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        losses = self._team.summed(torch.stack([loss.detach(), *_hits(scores, labels)]))
        losses = [losses[0] / self._team.share.size, losses[1] / self._batch, losses[2] / self._batch]
        if not math.isfinite(losses[0]):
            raise errors.Diverged(
                f"The loss left the finite numbers at step {step + 1}; the last checkpoint is kept. Begin another run "
                "with a lower learning_rate, a warm-up, or clip."
            )
        if recipe.clip:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return losses

    def _scores(self, pictures: Tensor) -> Tensor:
        with torch.autocast(self._team.device.type, self._half, enabled=self._half is not None):
            scores: Tensor = self._model(pictures)
        return scores.float()

    def _end_epoch(self, watch: "_Watch") -> None:
        epoch = self.position.step // self._epoch_steps
        found = self._validate() if self._validation else None
        if found is not None:
            self.position.last_top1 = found[1]
            self._write(self._row(None, watch, found))
        if found is None or found[1] > self.position.best:
            self.position.best, self.position.best_epoch = (found[1] if found else -1.0), epoch
            if self._team.leads and self._is_sound():
                trained.publish(self._folder, self._plain, self._about, epoch, found)

    @torch.no_grad()
    def _validate(self) -> list[float]:
        """Mean loss, top-1 and top-5 of the validation pictures."""
        self._model.eval()
        views = feed.Views(self._dataset, "validation", self._recipe)
        order = feed.in_order(self._validation, max(1, self._batch // self._team.share.size), self._team.share)
        sums = torch.zeros(3, device=self._team.device)
        for pictures, labels in feed.loader(views, order, self._pacing.workers, self._team.device):
            labels = labels.to(self._team.device)  # noqa: PLW2901
            scores = self._scores(pictures.to(self._team.device))
            sums += torch.stack([nn.functional.cross_entropy(scores, labels, reduction="sum"), *_hits(scores, labels)])
        return [total / self._validation for total in self._team.summed(sums)]

    # ------------------------------------------------------------------ what is told

    def _moment(self, losses: list[float], watch: "_Watch") -> Moment:
        watch.see(losses, self._batch)
        at = self.position
        left = (self._steps - at.step) * self._batch / watch.pace
        epoch = min(self._recipe.epochs, at.step // self._epoch_steps + 1)
        loss, top1, top5 = watch.means
        return Moment(
            at.step, self._steps, epoch, self._recipe.epochs, loss, top1, top5, watch.pace, left, at.last_top1
        )

    def _row(self, losses: list[float] | None, watch: "_Watch", validation: list[float] | None = None) -> Row:
        at = self.position
        own = dict(zip(("loss", "top1", "top5"), losses or (), strict=False))
        own |= dict(zip(("validation_loss", "validation_top1", "validation_top5"), validation or (), strict=False))
        rate = self._recipe.rate(at.step - 1, self._epoch_steps)
        return Row(at.step, at.step / self._epoch_steps, rate, pictures_per_second=watch.pace, **own)

    def _write(self, row: Row) -> None:
        if self._log is not None:
            self._log.write(row)

    # ------------------------------------------------------------------ the checkpoint

    def _is_sound(self) -> bool:
        """Whether all weights are finite. Raises Diverged."""
        if not all(bool(tensor.isfinite().all()) for tensor in self._plain.state_dict().values()):
            raise errors.Diverged("The weights left the finite numbers; the last checkpoint is kept.")
        return True

    def _save(self) -> None:
        if self._log is None or not self._is_sound():
            return
        self.position.log_bytes = self._log.settle()
        trained.save(
            self._folder / "checkpoint.pt",
            {
                "format": _FORMAT,
                "about": self._about.model_dump_json(),
                "position": asdict(self.position),
                "model": self._plain.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
            },
        )

    def _resumed(self) -> Position:
        """Take over the checkpoint, if there is one. Raises BadSpec, BadWeights."""
        file = self._folder / "checkpoint.pt"
        if not file.is_file():
            return Position()
        found = trained.load(file)
        if found.get("format") != _FORMAT:
            raise errors.BadWeights(f"{file} is of another version; begin another run.")
        self._check_same(trained.About.model_validate_json(found["about"]))
        self._plain.load_state_dict(found["model"])
        self._optimizer.load_state_dict(found["optimizer"])
        self._scaler.load_state_dict(found["scaler"])
        return Position(**found["position"])

    def _check_same(self, then: trained.About) -> None:
        if then.dataset_sha256 != self._about.dataset_sha256 or then.start_sha256 != self._about.start_sha256:
            raise errors.BadSpec(f"The run in {self._folder} was begun with other pictures or weights; take another.")
        for name, value in then.recipe:
            if value != getattr(self._recipe, name):
                raise errors.BadSpec(
                    f"The run in {self._folder} was begun with {name} {value}; give the same, or begin another run."
                )


class _Watch:
    """Pictures a second, and means over the last hundred steps or so."""

    def __init__(self, step: int) -> None:
        self._began, self._seen, self.means, self._step = time.monotonic(), 0, [0.0, 0.0, 0.0], step

    def see(self, losses: list[float], pictures: int) -> None:
        self._seen += pictures
        share = max(0.01, pictures / self._seen)
        self.means = [mean + share * (new - mean) for mean, new in zip(self.means, losses, strict=True)]

    @property
    def pace(self) -> float:
        return self._seen / max(time.monotonic() - self._began, 1e-9)


def _hits(scores: Tensor, labels: Tensor) -> list[Tensor]:
    """How many pictures have the right class first, and among the first five."""
    best = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]  # (N, 5)
    return [best[:, 0].sum().float(), best.any(1).sum().float()]
