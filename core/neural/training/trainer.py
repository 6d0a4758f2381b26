"""Trains a classifier on a data set, on one device or several, and resumes after any interruption.

A run is a folder with `checkpoint.pt`, `log.csv` and the best network so far (artifacts.py). Order,
crops and dropout depend only on seed and step, so a checkpoint needs no state of random generators.
On a CPU, a resumed run is bit-identical to an uninterrupted one. Knows no terminal.
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
from core.neural.training.artifacts import Checkpoint, RunInfo, RunPosition
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
    """The progress of a run, reported after each step.

    loss, top1 and top5 are moving averages (`_Meter`); top1, top5 and validation_top1 are shares
    from 0 to 1.
    """

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
    """Options that do not change the resulting network."""

    workers: int = 1  # reader processes; 0 reads in the training process
    checkpoint_seconds: float = 60.0
    log_steps: int = 10


def train(
    dataset: Path,
    folder: Path,
    config: TrainingConfig,
    group: ProcessGroup,
    options: TrainerOptions,
    *,
    start: Path | None = None,
    on_event: Callable[[TrainingEvent], None] = lambda _: None,
) -> RunPosition:
    """Start or resume the run in `folder`. Returns at once if the run has ended.

    start: a trained VGG-11 whose layers a deeper network starts with. Raises BadDataset, BadSpec,
    BadWeights; Diverged, after which the last checkpoint is still valid; OutOfMemory, StorageFull.
    """
    with Dataset(dataset) as opened:
        _check_config(opened, config, group)
        info = RunInfo(
            dataset_sha256=opened.sha256,
            classes=opened.classes,
            config=config,
            start_sha256=artifacts.compute_sha256(start),
        )
        # Reader processes open it again after the fork: an LMDB environment must not cross one.
        opened.close()
        try:
            with _lock_folder(folder, group):
                run = TrainingRun(opened, folder, info, group=group, options=options, start=start)
                return run.run(on_event)
        except (RuntimeError, MemoryError) as error:
            # On a CPU, torch raises a plain RuntimeError when an allocation fails.
            is_cpu_allocation = "DefaultCPUAllocator" in str(error)
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or is_cpu_allocation:
                raise errors.OutOfMemory(
                    "There is not enough memory for this; make --batch smaller."
                ) from error
            raise


def _check_config(dataset: Dataset, config: TrainingConfig, group: ProcessGroup) -> None:
    """Raises BadSpec if the configuration does not fit the data set or the processes."""
    if dataset.header.side_px < config.crop_px:
        raise errors.BadSpec(
            f"The data set's pictures have {dataset.header.side_px} px; crop_px must not be larger."
        )
    if config.patience and not dataset.count("validation"):
        raise errors.BadSpec(
            "patience needs validation pictures, and the data set has none; leave it at 0."
        )
    if config.warmup_epochs >= config.epochs:
        raise errors.BadSpec(
            "warmup_epochs must be less than epochs, or the learning rate never falls."
        )
    batch_size, processes = _batch_size(config, dataset.count("train")), group.shard.world_size
    if batch_size % processes:
        reason = ""
        if batch_size != config.batch:
            reason = f"There are only {batch_size} pictures for training, which are one batch: "
        multiple = batch_size // processes * processes
        raise errors.BadSpec(
            f"{reason}batch must be a multiple of the {processes} processes, "
            f"for example {multiple}."
        )


def _batch_size(config: TrainingConfig, count: int) -> int:
    """Samples of a batch over all processes. A data set smaller than `batch` is one batch."""
    return min(config.batch, count)


def _lock_folder(folder: Path, group: ProcessGroup) -> AbstractContextManager[None]:
    """Lock the run's folder, in the main process. Raises BadSpec for a folder of something else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "log.csv").is_file():
        raise errors.BadSpec(f"{folder} holds something else; choose another folder.")
    if not group.is_main:
        return nullcontext()
    return exclusive_lock(folder, errors.BadSpec(f"Another process trains in {folder}."))


class TrainingRun:
    """One training run, from the position of its folder's checkpoint to its end."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        info: RunInfo,
        *,
        group: ProcessGroup,
        options: TrainerOptions,
        start: Path | None,
    ) -> None:
        self._dataset, self._folder, self._group, self._options = dataset, folder, group, options
        self._config = config = info.config
        self._train_count = dataset.count("train")
        self._validation_count = dataset.count("validation")
        self._batch_size = _batch_size(config, self._train_count)
        self._epoch_steps = self._train_count // self._batch_size
        self._steps = config.epochs * self._epoch_steps

        checkpoint = None
        if self._checkpoint_path.is_file():
            checkpoint = artifacts.load_checkpoint(self._checkpoint_path)
            self._check_same_run(checkpoint.info, info)
        dtype = _choose_dtype(config, checkpoint, group.device)
        self._info = info.model_copy(update={"precision": str(dtype).removeprefix("torch.")})
        self._half = None if dtype == torch.float32 else dtype
        disable_tf32(dtype)

        torch.manual_seed(data.derive_seed(config.seed, "weights"))
        self._model = Classifier(config, len(info.classes))
        self._model.initialize(config.init)
        if start is not None and checkpoint is None:
            self._model.initialize_from(artifacts.read_start_weights(start))
        # channels_last: cuDNN's and oneDNN's fastest layout for convolutions.
        self._model = self._model.to(group.device)
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(
            self._model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        # float16 gradients underflow without loss scaling; bfloat16 has float32's exponent range.
        self._scaler = torch.amp.GradScaler(group.device.type, enabled=dtype == torch.float16)
        self.position = RunPosition() if checkpoint is None else self._restore(checkpoint)
        group.broadcast(self._model.parameters())
        self._log = None
        if group.is_main:
            self._log = TrainingLog(folder / "log.csv", self.position.log_bytes)

    # ------------------------------------------------------------------ the loop

    def run(self, on_event: Callable[[TrainingEvent], None]) -> RunPosition:
        """Train to the last epoch, or until early stopping."""
        try:
            if not self.position.has_ended:
                self._run_steps(on_event)
        finally:
            if self._log is not None:
                self._log.close()
        return self.position

    def _run_steps(self, on_event: Callable[[TrainingEvent], None]) -> None:
        images = data.TrainingImages(self._dataset, "train", self._config)
        sampler = data.BatchSampler(
            self._config,
            self._train_count,
            self._batch_size,
            self.position.step,
            self._group.shard,
        )
        batches = data.load_batches(images, sampler, self._options.workers, self._group.device)
        meter, saved_at = _Meter(), time.monotonic()
        for host_images, host_labels in batches:
            metrics = self._step(*self._to_device(host_images, host_labels))
            self.position.step += 1
            on_event(self._build_event(metrics, meter))
            if self.position.step % self._options.log_steps == 0:
                self._write_log(self._build_row(metrics, meter))
            if self.position.step % self._epoch_steps == 0:
                self._end_epoch(meter)
                self.position.has_ended = self._should_stop()
            is_due = time.monotonic() - saved_at > self._options.checkpoint_seconds
            if self.position.has_ended or is_due:
                self._save_checkpoint()
                saved_at = time.monotonic()
            if self.position.has_ended:
                break

    def _should_stop(self) -> bool:
        """Whether the last epoch is done, or `patience` epochs brought no better validation."""
        epoch = self.position.step // self._epoch_steps
        if epoch == self._config.epochs:
            return True
        if not self._validation_count or not self._config.patience:
            return False
        return epoch - self.position.best_epoch >= self._config.patience

    def _step(self, images: Tensor, labels: Tensor) -> list[float]:
        """One step of gradient descent.

        images: (N, 3, crop_px, crop_px), uint8; labels: (N,); N is this process's share of the
        batch. Returns mean loss, top-1 and top-5 of the batch over all processes. Raises Diverged.
        """
        step, config = self.position.step, self._config
        torch.manual_seed(data.derive_seed(config.seed, "dropout", step, self._group.shard.rank))
        for parameter_group in self._optimizer.param_groups:
            parameter_group["lr"] = config.learning_rate_at(step, self._epoch_steps)
        self._model.train()
        scores = self._compute_scores(images)  # (N, classes)
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._group.average_gradients(self._model)
        sums = self._group.sum_over_processes(
            torch.stack([loss.detach(), *_count_correct(scores, labels)])
        )
        if config.clip:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), config.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        # Read the numbers only now: tolist() waits until the GPU has finished.
        loss_sum, top1, top5 = sums.tolist()
        if not math.isfinite(loss_sum):
            raise errors.Diverged(
                f"The loss is not finite after step {step + 1}; {self._checkpoint_status}. "
                "Start another run with a lower learning_rate, a warm-up, or clip."
            )
        mean_loss = loss_sum / self._group.shard.world_size
        return [mean_loss, top1 / self._batch_size, top5 / self._batch_size]

    def _to_device(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.to(self._group.device, non_blocking=True) for tensor in tensors]

    def _compute_scores(self, images: Tensor) -> Tensor:
        """Scores (N, classes) in float32; the convolutions run in the run's precision."""
        is_half = self._half is not None
        with torch.autocast(self._group.device.type, self._half, enabled=is_half):
            scores: Tensor = self._model(images)
        return scores.float()

    def _end_epoch(self, meter: "_Meter") -> None:
        """Validate, and publish the network if it is the best so far."""
        epoch = self.position.step // self._epoch_steps
        validation = self._validate() if self._validation_count else None
        top1 = -1.0  # without validation pictures each epoch is the best
        if validation is not None:
            top1 = self.position.last_top1 = validation[1]
            self._write_log(self._build_row(None, meter, validation))
        if validation is None or top1 > self.position.best_top1:
            self.position.best_top1, self.position.best_epoch = top1, epoch
            if self._group.is_main:
                self._check_weights_finite()
                artifacts.publish(self._folder, self._model, self._info, epoch, validation)

    @torch.no_grad()
    def _validate(self) -> list[float]:
        """Mean loss, top-1 and top-5 of the validation pictures.

        The processes communicate only before and after the loop: some have fewer batches than
        others, or none, and a collective operation inside it would wait for them forever.
        """
        # Batch normalization's running statistics differ: each process counts its own samples.
        self._group.broadcast(self._model.buffers())
        self._model.eval()
        images = data.TrainingImages(self._dataset, "validation", self._config)
        batch_size = max(1, self._batch_size // self._group.shard.world_size)
        batches = data.load_batches(
            images,
            data.sequential_batches(self._validation_count, batch_size, self._group.shard),
            self._options.workers,
            self._group.device,
        )
        sums = torch.zeros(3, device=self._group.device)
        for host_images, host_labels in batches:
            x, labels = self._to_device(host_images, host_labels)
            scores = self._compute_scores(x)
            loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
            sums += torch.stack([loss, *_count_correct(scores, labels)])
        totals = self._group.sum_over_processes(sums).tolist()
        return [total / self._validation_count for total in totals]

    # ------------------------------------------------------------------ progress and log

    def _build_event(self, metrics: list[float], meter: "_Meter") -> TrainingEvent:
        meter.update(metrics, self._batch_size)
        position = self.position
        pictures_left = (self._steps - position.step) * self._batch_size
        loss, top1, top5 = meter.means
        return TrainingEvent(
            step=position.step,
            steps=self._steps,
            epoch=min(self._config.epochs, position.step // self._epoch_steps + 1),
            epochs=self._config.epochs,
            loss=loss,
            top1=top1,
            top5=top5,
            pictures_per_second=meter.throughput,
            seconds_left=pictures_left / meter.throughput,
            validation_top1=position.last_top1,
        )

    def _build_row(
        self, metrics: list[float] | None, meter: "_Meter", validation: list[float] | None = None
    ) -> LogRow:
        step = self.position.step
        columns = dict(zip(("loss", "top1", "top5"), metrics or (), strict=False))
        validation_names = ("validation_loss", "validation_top1", "validation_top5")
        columns |= dict(zip(validation_names, validation or (), strict=False))
        learning_rate = self._config.learning_rate_at(step - 1, self._epoch_steps)
        return LogRow(
            step,
            step / self._epoch_steps,
            learning_rate,
            pictures_per_second=meter.throughput,
            **columns,
        )

    def _write_log(self, row: LogRow) -> None:
        if self._log is not None:
            self._log.write(row)

    # ------------------------------------------------------------------ the checkpoint

    def _check_weights_finite(self) -> None:
        """Check that all weights are finite. Raises Diverged."""
        if not all(bool(tensor.isfinite().all()) for tensor in self._model.state_dict().values()):
            raise errors.Diverged(
                f"The weights are not finite; {self._checkpoint_status}. Start another run with a "
                "lower learning_rate, a warm-up, or clip."
            )

    @property
    def _checkpoint_status(self) -> str:
        if self._checkpoint_path.is_file():
            return "the last checkpoint is kept"
        return "there was no checkpoint yet"

    def _save_checkpoint(self) -> None:
        """Write the checkpoint, in the main process only. Raises Diverged, StorageFull, OSError."""
        if self._log is None:
            return
        self._check_weights_finite()
        self.position.log_bytes = self._log.flush()
        artifacts.save_checkpoint(
            self._checkpoint_path,
            self._info,
            self.position,
            model=self._model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
        )

    @property
    def _checkpoint_path(self) -> Path:
        return self._folder / "checkpoint.pt"

    def _restore(self, checkpoint: Checkpoint) -> RunPosition:
        """Restore the state of model and optimizer, and return the position. Raises BadWeights."""
        try:
            self._model.load_state_dict(checkpoint.model)
            self._optimizer.load_state_dict(checkpoint.optimizer)
            self._scaler.load_state_dict(checkpoint.scaler)
            self._check_momentum()
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise errors.BadWeights(
                f"{self._checkpoint_path} does not fit its own configuration; start another run."
            ) from error
        return checkpoint.position

    def _check_momentum(self) -> None:
        """Check the momentum of each weight. Raises ValueError.

        torch's load_state_dict accepts any tensor; a bad one would fail in the middle of a step.
        """
        for tensor in self._model.parameters():
            momentum = self._optimizer.state[tensor].get("momentum_buffer", tensor)
            if momentum is not None and (
                momentum.shape != tensor.shape or not momentum.isfinite().all()
            ):
                raise ValueError("momentum of another shape, or not finite")

    def _check_same_run(self, started: RunInfo, requested: RunInfo) -> None:
        """Raises BadSpec if the checkpoint's data set, start weights or settings are others."""
        if started.dataset_sha256 != requested.dataset_sha256:
            raise errors.BadSpec(
                f"The run in {self._folder} was started with another data set; choose another "
                "folder."
            )
        if started.start_sha256 != requested.start_sha256:
            how = "with another --start" if started.start_sha256 else "without --start"
            raise errors.BadSpec(
                f"The run in {self._folder} was started {how}; repeat it, or start another run."
            )
        for name, value in started.config:
            if value != getattr(requested.config, name):
                raise errors.BadSpec(
                    f"The run in {self._folder} was started with {name} {value}; repeat it, or "
                    "start another run."
                )


def _choose_dtype(
    config: TrainingConfig, checkpoint: Checkpoint | None, device: torch.device
) -> torch.dtype:
    """The precision of the convolutions. Raises BadWeights.

    A resumed run keeps its precision on any device, even if `auto` means another one there.
    """
    started = checkpoint.info.precision if checkpoint is not None else ""
    if started and started not in _DTYPES:
        raise errors.BadWeights(f"The run was started in the unknown precision {started}.")
    if started:
        return _DTYPES[started]
    if config.precision != "auto":
        return _DTYPES[config.precision]
    return fast_dtype(device)


class _Meter:
    """Throughput, and moving averages of the metrics over about the last hundred steps."""

    _MIN_WEIGHT = 0.01  # of a new value in the moving average

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._pictures = 0
        self.means = [0.0, 0.0, 0.0]  # loss, top-1, top-5

    def update(self, metrics: list[float], pictures: int) -> None:
        """Add a step's metrics. The first hundred steps give a plain average."""
        self._pictures += pictures
        weight = max(self._MIN_WEIGHT, pictures / self._pictures)
        self.means = [
            mean + weight * (new - mean) for mean, new in zip(self.means, metrics, strict=True)
        ]

    @property
    def throughput(self) -> float:
        """Pictures per second since this process started or resumed the run."""
        return self._pictures / max(time.monotonic() - self._started_at, 1e-9)


def _count_correct(scores: Tensor, labels: Tensor) -> list[Tensor]:
    """Number of images whose label has the highest score, and one of the five highest.

    scores: (N, classes); labels: (N,). Returns two scalars.
    """
    hits = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]  # (N, 5)
    return [hits[:, 0].sum().float(), hits.any(1).sum().float()]
