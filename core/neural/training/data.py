"""A data set's pictures as batches, in an order and with random crops that depend on the seed and the place alone.

Whoever begins at step 1000 gets the same batches from there as who began at 0, whatever the number of processes that
read. Knows no network.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from core import errors
from core.neural.weights.torchvision_registry import module
from core.training.config import TrainingConfig
from core.training.dataset import Dataset, Split

SampleIndex = tuple[int, int]  # epoch, and index in the split


class Share(NamedTuple):
    """Which part of every batch is this process's: the `rank`th of `size`."""

    rank: int = 0
    size: int = 1


def mix_seed(*numbers: object) -> int:
    """A seed from several: neighbors have nothing in common."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()) >> 1


def transform(recipe: TrainingConfig, split: Split) -> Any:
    """A picture to (3, crop, crop), 8 bits. Random from torch's own numbers, for training."""
    v2 = module("transforms.v2")
    steps = [v2.PILToTensor()]
    if split == "validation" or recipe.augment == "none":
        steps += [v2.CenterCrop(recipe.crop_px)]
    elif recipe.augment == "crop":
        steps += [v2.RandomCrop(recipe.crop_px), v2.RandomHorizontalFlip()]
    else:
        steps += [
            v2.RandomResizedCrop(recipe.crop_px, scale=(0.25, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        steps += [v2.ColorJitter(0.3, 0.3, 0.3)]
    return v2.Compose(steps)


class TrainingImages(TorchDataset[tuple[Tensor, int]]):
    """What the network sees of each picture in an epoch. Where other processes are to read, `dataset` comes closed."""

    def __init__(self, dataset: Dataset, split: Split, recipe: TrainingConfig) -> None:
        self._dataset, self._split, self._recipe = dataset, split, recipe
        self._transform = transform(recipe, split)

    def __getitem__(self, place: SampleIndex) -> tuple[Tensor, int]:
        label, picture = self._dataset.picture(self._split, place[1])
        with torch.random.fork_rng(devices=[]):
            # Of the CPU alone: torch.manual_seed looks for every device there could be, for each picture.
            torch.default_generator.manual_seed(mix_seed(self._recipe.seed, "view", *place))
            return self._transform(picture), label


class BatchOrder(Iterable[list[SampleIndex]]):
    """The places of each step's batch from `first` on to the end of all epochs; of full batches only."""

    def __init__(
        self, recipe: TrainingConfig, count: int, batch: int, first: int, share: Share
    ) -> None:
        self._recipe, self._count, self._batch, self._first, self._share = (
            recipe,
            count,
            batch,
            first,
            share,
        )

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        steps = self._count // self._batch
        for epoch in range(self._first // steps, self._recipe.epochs):
            order = shuffled(self._recipe.seed, epoch, self._count)
            for step in range(self._first % steps if epoch == self._first // steps else 0, steps):
                batch = order[step * self._batch : (step + 1) * self._batch]
                yield [(epoch, int(index)) for index in batch[self._share.rank :: self._share.size]]


def shuffled(seed: int, epoch: int, count: int) -> Tensor:
    """An epoch's order."""
    return torch.randperm(
        count, generator=torch.Generator().manual_seed(mix_seed(seed, "order", epoch))
    )


def in_order(count: int, batch: int, share: Share) -> Iterator[list[SampleIndex]]:
    """A process's part of a split, once."""
    mine = range(share.rank, count, share.size)
    for start in range(0, len(mine), batch):
        yield [(0, index) for index in mine[start : start + batch]]


def loader(
    views: TrainingImages, order: Iterable[list[SampleIndex]], workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (pictures (N, 3, H, W), labels (N,)). workers: processes that read ahead; 0: none.

    Raises BadDataset, and Unavailable where one of them died.
    """
    batches: Iterable[Any] = DataLoader(
        views,
        batch_sampler=order,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from batches
    except (
        errors.BadDataset
    ) as error:  # from a process it comes with all of its traceback as the message
        raise errors.BadDataset(error.message.strip().rpartition("BadDataset: ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise errors.Unavailable(
            "A process that reads pictures has died, perhaps for want of memory; give the command again, with fewer "
            "--workers."
        ) from error
