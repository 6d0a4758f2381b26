"""Order and transforms of the training pictures depend only on seed, epoch and index."""

import os
import shutil
import signal
from pathlib import Path

import lmdb
import pytest
import torch
from torch import Tensor

from core import errors
from core.neural.training.data import (
    BatchSampler,
    Shard,
    TrainingImages,
    load_batches,
    sequential_batches,
    shuffle_epoch,
)
from core.training.config import TrainingConfig
from core.training.dataset import Dataset

CONFIG = TrainingConfig(crop_px=32, epochs=3, augment="scale", seed=4)
CPU = torch.device("cpu")


def batches(
    dataset: Path, workers: int, first: int = 0, config: TrainingConfig = CONFIG
) -> list[tuple[Tensor, Tensor]]:
    opened = Dataset(dataset)
    opened.close()
    with opened:
        return list(
            load_batches(
                TrainingImages(opened, "train", config),
                BatchSampler(config, 20, 4, first, Shard()),
                workers,
                CPU,
            )
        )


def test_each_epoch_reads_every_picture_once_in_its_own_order() -> None:
    samples = [sample for batch in BatchSampler(CONFIG, 20, 4, 0, Shard()) for sample in batch]
    epochs = [[index for epoch, index in samples if epoch == number] for number in range(3)]

    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_sampler_that_starts_later_yields_the_same_batches_from_there() -> None:
    whole = list(BatchSampler(CONFIG, 22, 4, 0, Shard()))

    assert len(whole) == 15  # the last two of each epoch's order are no full batch
    for first in (0, 1, 5, 7, 14, 15):
        assert list(BatchSampler(CONFIG, 22, 4, first, Shard())) == whole[first:]


def test_processes_divide_each_batch_without_gap_or_overlap() -> None:
    whole = list(BatchSampler(CONFIG, 20, 4, 0, Shard()))
    halves = [list(BatchSampler(CONFIG, 20, 4, 0, Shard(rank, 2))) for rank in (0, 1)]

    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [
        sorted(batch) for batch in whole
    ]
    assert all(len(batch) == 2 for half in halves for batch in half)


def test_processes_together_read_each_validation_picture_once() -> None:
    seen = [
        index
        for rank in range(3)
        for batch in sequential_batches(11, 2, Shard(rank, 3))
        for _, index in batch
    ]

    assert sorted(seen) == list(range(11))
    assert next(sequential_batches(10**12, 2, Shard())) == [
        (0, 0),
        (0, 1),
    ]  # lazy: 10**12 samples would not fit into memory


def test_the_seed_decides_the_order() -> None:
    assert torch.equal(shuffle_epoch(1, 2, 50), shuffle_epoch(1, 2, 50))
    assert not torch.equal(shuffle_epoch(1, 2, 50), shuffle_epoch(2, 1, 50))


def test_images_are_the_same_for_any_number_of_readers_and_any_first_step(
    stripes: Path,
) -> None:
    serial, parallel, later = (batches(stripes, *args) for args in ((0,), (2,), (0, 3)))

    for one, other in ((serial, parallel), (serial[3:], later)):
        assert len(other) == len(one)
        for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
            assert torch.equal(other_images, images)
            assert torch.equal(other_labels, labels)


def test_reading_does_not_change_the_global_random_generator(stripes: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with Dataset(stripes) as opened:
        TrainingImages(opened, "train", CONFIG)[0, 0]

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("augment", ["none", "crop", "scale"])
def test_an_image_has_the_crop_size_and_changes_with_the_epoch(stripes: Path, augment: str) -> None:
    with Dataset(stripes) as opened:
        images = TrainingImages(opened, "train", CONFIG.model_copy(update={"augment": augment}))
        first, again, later = (images[epoch, 7][0] for epoch in (0, 0, 1))

    assert (tuple(first.shape), first.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(first, again)
    assert (augment == "none") == torch.equal(first, later)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_raises_one_sentence_with_and_without_readers(
    stripes: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(stripes, tmp_path / "data")
    with lmdb.open(str(tmp_path / "data"), max_dbs=4) as environment:
        database = environment.open_db(b"train")
        with environment.begin(db=database, write=True) as transaction:
            transaction.put(b"\0" * 8, b"\0\0damaged")

    with pytest.raises(errors.BadDataset) as refused:
        batches(tmp_path / "data", workers)
    assert refused.value.message == f"{tmp_path / 'data'} is damaged; build it again."


class Dying(TrainingImages):
    def __getitem__(self, sample: object) -> tuple[Tensor, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_reader_raises_unavailable_with_advice(stripes: Path) -> None:
    with Dataset(stripes) as opened:
        opened.close()
        with pytest.raises(errors.Unavailable, match="fewer --workers"):
            list(
                load_batches(
                    Dying(opened, "train", CONFIG), BatchSampler(CONFIG, 20, 4, 0, Shard()), 1, CPU
                )
            )
