"""Train a classifier on a data set, on one device or several; go on after any end, to the same bits on a CPU.

A run is a folder: `checkpoint.pt`, `log.csv`, and the best network so far (artifacts.py). Order, crops and
dropout depend on the seed and the step alone, so that a checkpoint needs no state of random numbers beside the step.
Knows no terminal.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from core import errors
from core.neural.training import artifacts, data
from core.neural.training.artifacts import Checkpoint, RunPosition
from core.neural.training.classifier import Classifier
from core.neural.training.distributed import ProcessGroup
from core.neural.training.log import LogRow, TrainingLog
from core.neural.vgg import disable_tf32, fast_dtype
from core.storage.files import exclusive_lock
from core.training.config import TrainingConfig
from core.training.dataset import Dataset

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainingEvent:
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


@dataclass(frozen=True)
class TrainerOptions:
    """What changes nothing about the network that comes out."""

    workers: int = 1  # processes that read ahead
    checkpoint_seconds: float = 60.0
    log_steps: int = 10


def train(
    dataset: Path,
    run: Path,
    recipe: TrainingConfig,
    team: ProcessGroup,
    pacing: TrainerOptions,
    *,
    start: Path | None = None,
    on_moment: Callable[[TrainingEvent], None] = lambda _: None,
) -> RunPosition:
    """Train, or go on with, the run in the folder `run`; returns at once where it has ended.

    start: a trained VGG-11 to begin with. Raises BadDataset, BadSpec, BadWeights; Diverged, after which the last
    checkpoint is still good; OutOfMemory, StorageFull.
    """
    with Dataset(dataset) as opened:
        _check(opened, recipe, team)
        about = artifacts.RunInfo(
            dataset_sha256=opened.sha256,
            classes=opened.classes,
            recipe=recipe,
            start_sha256=artifacts.digest_of(start),
        )
        opened.close()  # whoever reads opens it again, after it has forked
        try:
            with _alone(run, team):
                return TrainingRun(opened, run, about, team=team, pacing=pacing, start=start).go(
                    on_moment
                )
        except (RuntimeError, MemoryError) as error:
            # On a CPU torch has no class for it.
            if isinstance(
                error, torch.OutOfMemoryError | MemoryError
            ) or "DefaultCPUAllocator" in str(error):
                raise errors.OutOfMemory(
                    "There is not enough memory for this; make --batch smaller."
                ) from error
            raise


def _check(dataset: Dataset, recipe: TrainingConfig, team: ProcessGroup) -> None:
    if dataset.header.side_px < recipe.crop_px:
        raise errors.BadSpec(
            f"The data set's pictures have {dataset.header.side_px} px; crop_px must not be larger."
        )
    if recipe.patience and not dataset.count("validation"):
        raise errors.BadSpec(
            "patience looks at validation pictures, and the data set has none; leave it at 0."
        )
    if recipe.warmup_epochs >= recipe.epochs:
        raise errors.BadSpec(
            "warmup_epochs must be less than epochs, or the learning rate never falls."
        )
    batch, size = _batch(recipe, dataset.count("train")), team.share.size
    if batch % size:
        few = (
            ""
            if batch == recipe.batch
            else f"There are only {batch} pictures for training, which are one batch: "
        )
        raise errors.BadSpec(
            f"{few}batch must be a multiple of the {size} processes, {batch // size * size} or so."
        )


def _batch(recipe: TrainingConfig, count: int) -> int:
    """A data set smaller than a batch is one."""
    return min(recipe.batch, count)


def _alone(run: Path, team: ProcessGroup) -> AbstractContextManager[None]:
    if run.is_dir() and any(run.iterdir()) and not (run / "log.csv").is_file():
        raise errors.BadSpec(f"{run} is a folder with something else in it; take another.")
    return (
        exclusive_lock(run, errors.BadSpec(f"Another process trains in {run}."))
        if team.leads
        else nullcontext()
    )


class TrainingRun:
    """One training, from where its folder says it stands."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        about: artifacts.RunInfo,
        *,
        team: ProcessGroup,
        pacing: TrainerOptions,
        start: Path | None,
    ) -> None:
        self._dataset, self._folder, self._team, self._pacing = dataset, folder, team, pacing
        self._recipe = recipe = about.recipe
        self._train, self._validation = dataset.count("train"), dataset.count("validation")
        self._batch = _batch(recipe, self._train)
        self._epoch_steps = self._train // self._batch
        self._steps = recipe.epochs * self._epoch_steps
        found = artifacts.load(self._checkpoint) if self._checkpoint.is_file() else None
        if found is not None:
            self._check_same(found.about, about)
        dtype = _dtype(recipe, found, team.device)
        self._about = about.model_copy(update={"precision": str(dtype).removeprefix("torch.")})
        self._half = None if dtype == torch.float32 else dtype
        disable_tf32(dtype)
        torch.manual_seed(data.mix_seed(recipe.seed, "weights"))
        self._model = Classifier(recipe, len(about.classes))
        self._model.begin(recipe.init)
        if start is not None and found is None:
            self._model.begin_with(artifacts.read_start_weights(start))
        self._model = self._model.to(team.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(
            self._model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._scaler = torch.amp.GradScaler(team.device.type, enabled=dtype == torch.float16)
        self.position = RunPosition() if found is None else self._resumed(found)
        team.agree(self._model.parameters())
        self._log = TrainingLog(folder / "log.csv", self.position.log_bytes) if team.leads else None

    # ------------------------------------------------------------------ the loop

    def go(self, on_moment: Callable[[TrainingEvent], None]) -> RunPosition:
        """To the end, or to where patience is over."""
        try:
            if not self.position.ended:
                self._go(on_moment)
        finally:
            if self._log is not None:
                self._log.close()
        return self.position

    def _go(self, on_moment: Callable[[TrainingEvent], None]) -> None:
        views = data.TrainingImages(self._dataset, "train", self._recipe)
        order = data.BatchOrder(
            self._recipe, self._train, self._batch, self.position.step, self._team.share
        )
        watch, saved = _Watch(), time.monotonic()
        for pictures, labels in data.loader(views, order, self._pacing.workers, self._team.device):
            losses = self._step(*self._there(pictures, labels))
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
        return epoch == self._recipe.epochs or (
            self._validation > 0 and 0 < self._recipe.patience <= waited
        )

    def _step(self, pictures: Tensor, labels: Tensor) -> list[float]:
        """One step down; the mean loss of the batch, and the shares of top-1 and top-5. Raises Diverged."""
        step, recipe = self.position.step, self._recipe
        torch.manual_seed(data.mix_seed(recipe.seed, "dropout", step, self._team.share.rank))
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.rate(step, self._epoch_steps)
        self._model.train()
        scores = self._scores(pictures)
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._team.average(self._model)
        sums = self._team.summed(torch.stack([loss.detach(), *_hits(scores, labels)]))
        if recipe.clip:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        total, top1, top5 = (
            sums.tolist()
        )  # only now: whoever asks a card for numbers waits until it is done
        if not math.isfinite(total):
            raise errors.Diverged(
                f"The loss left the finite numbers at step {step + 1}; {self._kept}. Begin another run with a lower "
                "learning_rate, a warm-up, or clip."
            )
        return [total / self._team.share.size, top1 / self._batch, top5 / self._batch]

    def _there(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.to(self._team.device, non_blocking=True) for tensor in tensors]

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
                artifacts.publish(self._folder, self._model, self._about, epoch, found)

    @torch.no_grad()
    def _validate(self) -> list[float]:
        """Mean loss, top-1 and top-5 of the validation pictures.

        Each process by itself: some may have fewer batches than others, or none, and must not be waited for in between.
        """
        self._team.agree(
            self._model.buffers()
        )  # what batch normalization has counted, each by itself
        self._model.eval()
        views = data.TrainingImages(self._dataset, "validation", self._recipe)
        order = data.in_order(
            self._validation, max(1, self._batch // self._team.share.size), self._team.share
        )
        sums = torch.zeros(3, device=self._team.device)
        for pictures, labels in data.loader(views, order, self._pacing.workers, self._team.device):
            seen, right = self._there(pictures, labels)
            scores = self._scores(seen)
            sums += torch.stack(
                [nn.functional.cross_entropy(scores, right, reduction="sum"), *_hits(scores, right)]
            )
        return [total / self._validation for total in self._team.summed(sums).tolist()]

    # ------------------------------------------------------------------ what is told

    def _moment(self, losses: list[float], watch: "_Watch") -> TrainingEvent:
        watch.see(losses, self._batch)
        at = self.position
        left = (self._steps - at.step) * self._batch / watch.pace
        epoch = min(self._recipe.epochs, at.step // self._epoch_steps + 1)
        loss, top1, top5 = watch.means
        return TrainingEvent(
            at.step,
            self._steps,
            epoch,
            self._recipe.epochs,
            loss,
            top1,
            top5,
            watch.pace,
            left,
            at.last_top1,
        )

    def _row(
        self, losses: list[float] | None, watch: "_Watch", validation: list[float] | None = None
    ) -> LogRow:
        at = self.position
        own = dict(zip(("loss", "top1", "top5"), losses or (), strict=False))
        own |= dict(
            zip(
                ("validation_loss", "validation_top1", "validation_top5"),
                validation or (),
                strict=False,
            )
        )
        rate = self._recipe.rate(at.step - 1, self._epoch_steps)
        return LogRow(
            at.step, at.step / self._epoch_steps, rate, pictures_per_second=watch.pace, **own
        )

    def _write(self, row: LogRow) -> None:
        if self._log is not None:
            self._log.write(row)

    # ------------------------------------------------------------------ the checkpoint

    def _is_sound(self) -> bool:
        """Whether all weights are finite. Raises Diverged."""
        if not all(bool(tensor.isfinite().all()) for tensor in self._model.state_dict().values()):
            raise errors.Diverged(
                f"The weights left the finite numbers; {self._kept}. Begin another run with a lower learning_rate, a "
                "warm-up, or clip."
            )
        return True

    @property
    def _kept(self) -> str:
        return (
            "the last checkpoint is kept"
            if self._checkpoint.is_file()
            else "there was no checkpoint yet"
        )

    def _save(self) -> None:
        if self._log is None or not self._is_sound():
            return
        self.position.log_bytes = self._log.flush()
        artifacts.save(
            self._checkpoint,
            self._about,
            self.position,
            model=self._model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
        )

    @property
    def _checkpoint(self) -> Path:
        return self._folder / "checkpoint.pt"

    def _resumed(self, found: Checkpoint) -> RunPosition:
        """Take over a checkpoint. Raises BadWeights."""
        try:
            self._model.load_state_dict(found.model)
            self._optimizer.load_state_dict(found.optimizer)
            self._scaler.load_state_dict(found.scaler)
            self._check_momentum()
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise errors.BadWeights(
                f"{self._checkpoint} does not fit its own recipe; begin another run."
            ) from error
        return found.position

    def _check_momentum(self) -> None:
        """The optimizer takes whatever it is given, and would stop in the middle of a step. Raises ValueError."""
        for tensor in self._model.parameters():
            momentum = self._optimizer.state[tensor].get("momentum_buffer", tensor)
            if momentum is not None and (
                momentum.shape != tensor.shape or not momentum.isfinite().all()
            ):
                raise ValueError("momentum of another shape, or not finite")

    def _check_same(self, then: artifacts.RunInfo, now: artifacts.RunInfo) -> None:
        if then.dataset_sha256 != now.dataset_sha256:
            raise errors.BadSpec(
                f"The run in {self._folder} was begun with another data set; take another folder."
            )
        if then.start_sha256 != now.start_sha256:
            how = "with another --start" if then.start_sha256 else "without --start"
            raise errors.BadSpec(
                f"The run in {self._folder} was begun {how}; give the same, or begin another run."
            )
        for name, value in then.recipe:
            if value != getattr(now.recipe, name):
                raise errors.BadSpec(
                    f"The run in {self._folder} was begun with {name} {value}; give the same, or begin another run."
                )


def _dtype(recipe: TrainingConfig, found: Checkpoint | None, device: torch.device) -> torch.dtype:
    """What was meant by `auto` where the run began, on whatever device it goes on. Raises BadWeights."""
    told = found.about.precision if found is not None else ""
    if told and told not in _DTYPES:
        raise errors.BadWeights(f"The run was begun in the precision {told}, which there is not.")
    if told or recipe.precision != "auto":
        return _DTYPES[told or recipe.precision]
    return fast_dtype(device)


class _Watch:
    """Pictures a second, and means over the last hundred steps or so."""

    def __init__(self) -> None:
        self._began, self._seen, self.means = time.monotonic(), 0, [0.0, 0.0, 0.0]

    def see(self, losses: list[float], pictures: int) -> None:
        self._seen += pictures
        share = max(0.01, pictures / self._seen)
        self.means = [
            mean + share * (new - mean) for mean, new in zip(self.means, losses, strict=True)
        ]

    @property
    def pace(self) -> float:
        return self._seen / max(time.monotonic() - self._began, 1e-9)


def _hits(scores: Tensor, labels: Tensor) -> list[Tensor]:
    """How many pictures have the right class first, and among the first five."""
    best = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]  # (N, 5)
    return [best[:, 0].sum().float(), best.any(1).sum().float()]
