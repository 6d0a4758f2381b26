"""Batches of a data set. Order and random crops depend only on seed, epoch and index.

So a run that resumes at step 1000 reads the same batches as one that started at step 0, with any
number of reader processes. Knows no network.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from core import errors
from core.neural.weights.torchvision_registry import import_torchvision
from core.training.config import TrainingConfig
from core.training.dataset import Dataset, Split

SampleIndex = tuple[int, int]  # epoch, and index in the split

_PREFETCHED_BATCHES = 4  # for each reader process


class Shard(NamedTuple):
    """The part of every batch that this process trains on: every `world_size`-th sample."""

    rank: int = 0
    world_size: int = 1


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from several values; similar values give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def build_transform(config: TrainingConfig, split: Split) -> Any:
    """The transform of a picture to a uint8 tensor (3, crop_px, crop_px).

    For training it draws from torch's global generator; for validation it crops the center.
    """
    v2 = import_torchvision("transforms.v2")
    steps = [v2.PILToTensor()]
    if split == "validation" or config.augment == "none":
        steps += [v2.CenterCrop(config.crop_px)]
    elif config.augment == "crop":
        steps += [v2.RandomCrop(config.crop_px), v2.RandomHorizontalFlip()]
    else:
        steps += [
            v2.RandomResizedCrop(config.crop_px, scale=(0.25, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        steps += [v2.ColorJitter(0.3, 0.3, 0.3)]
    return v2.Compose(steps)


class TrainingImages(TorchDataset[tuple[Tensor, int]]):
    """The transformed pictures of a split, by epoch and index.

    Pass a closed `dataset` if other processes will read: each reopens it after the fork.
    """

    def __init__(self, dataset: Dataset, split: Split, config: TrainingConfig) -> None:
        self._dataset, self._split, self._config = dataset, split, config
        self._transform = build_transform(config, split)

    def __getitem__(self, sample: SampleIndex) -> tuple[Tensor, int]:
        """Image (3, crop_px, crop_px), uint8, and label."""
        label, picture = self._dataset.picture(self._split, sample[1])
        with torch.random.fork_rng(devices=[]):
            # Seed only the CPU's generator: torch.manual_seed would look for every kind of device
            # for each picture.
            seed = derive_seed(self._config.seed, "view", *sample)
            torch.default_generator.manual_seed(seed)
            return self._transform(picture), label


class BatchSampler(Iterable[list[SampleIndex]]):
    """The samples of each batch for this process, from a step to the end of the last epoch.

    Yields only full batches: the rest of an epoch's order is dropped.
    """

    def __init__(
        self,
        config: TrainingConfig,
        sample_count: int,
        batch_size: int,
        first_step: int,
        shard: Shard,
    ) -> None:
        self._config, self._shard = config, shard
        self._sample_count, self._batch_size = sample_count, batch_size
        self._first_step = first_step

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        epoch_steps = self._sample_count // self._batch_size
        first_epoch, first_step = divmod(self._first_step, epoch_steps)
        for epoch in range(first_epoch, self._config.epochs):
            order = shuffle_epoch(self._config.seed, epoch, self._sample_count)
            for step in range(first_step, epoch_steps):
                batch = order[step * self._batch_size : (step + 1) * self._batch_size]
                own = batch[self._shard.rank :: self._shard.world_size]
                yield [(epoch, int(index)) for index in own]
            first_step = 0


def shuffle_epoch(seed: int, epoch: int, count: int) -> Tensor:
    """A permutation of `count` indices for an epoch, (count,)."""
    return torch.randperm(
        count, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    )


def sequential_batches(
    sample_count: int, batch_size: int, shard: Shard
) -> Iterator[list[SampleIndex]]:
    """The samples of a split for this process, once and in order. The last batch may be smaller."""
    own = range(shard.rank, sample_count, shard.world_size)
    for start in range(0, len(own), batch_size):
        yield [(0, index) for index in own[start : start + batch_size]]


def load_batches(
    images: TrainingImages,
    batches: Iterable[list[SampleIndex]],
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Load the batches: images (N, 3, crop_px, crop_px), uint8, and labels (N,), int64.

    workers: number of reader processes; 0 reads in this process. Raises BadDataset; Unavailable
    if a reader process has died.
    """
    loader: Iterable[Any] = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=_PREFETCHED_BATCHES if workers else None,
    )
    try:
        yield from loader
    except errors.BadDataset as error:
        # From a reader process, the message is a whole traceback that ends with our message.
        raise errors.BadDataset(error.message.strip().rpartition("BadDataset: ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise errors.Unavailable(
            "A process that reads pictures has died, perhaps for lack of memory; repeat the "
            "command with fewer --workers."
        ) from error
