"""The order of the pictures and what is seen of them: by seed and place alone."""

import os
import shutil
import signal
from pathlib import Path

import lmdb
import pytest
import torch
from torch import Tensor

from core import errors
from core.neural.training.data import BatchOrder, Share, TrainingImages, in_order, loader, shuffled
from core.training.config import TrainingConfig
from core.training.dataset import Dataset

RECIPE = TrainingConfig(crop_px=32, epochs=3, augment="scale", seed=4)
CPU = torch.device("cpu")


def batches(
    dataset: Path, workers: int, first: int = 0, recipe: TrainingConfig = RECIPE
) -> list[tuple[Tensor, Tensor]]:
    opened = Dataset(dataset)
    opened.close()
    with opened:
        return list(
            loader(
                TrainingImages(opened, "train", recipe),
                BatchOrder(recipe, 20, 4, first, Share()),
                workers,
                CPU,
            )
        )


def test_an_epoch_sees_every_picture_once_and_each_epoch_in_another_order() -> None:
    places = [place for batch in BatchOrder(RECIPE, 20, 4, 0, Share()) for place in batch]
    epochs = [[index for epoch, index in places if epoch == number] for number in range(3)]

    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_who_begins_later_gets_the_same_batches_from_there() -> None:
    whole = list(BatchOrder(RECIPE, 22, 4, 0, Share()))

    assert len(whole) == 15  # the last two of each epoch's order are no full batch
    for first in (0, 1, 5, 7, 14, 15):
        assert list(BatchOrder(RECIPE, 22, 4, first, Share())) == whole[first:]


def test_processes_share_each_batch_without_gap_or_overlap() -> None:
    whole = list(BatchOrder(RECIPE, 20, 4, 0, Share()))
    halves = [list(BatchOrder(RECIPE, 20, 4, 0, Share(rank, 2))) for rank in (0, 1)]

    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [
        sorted(batch) for batch in whole
    ]
    assert all(len(batch) == 2 for half in halves for batch in half)


def test_validation_is_seen_once_by_all_together() -> None:
    seen = [
        index
        for rank in range(3)
        for batch in in_order(11, 2, Share(rank, 3))
        for _, index in batch
    ]

    assert sorted(seen) == list(range(11))
    assert next(in_order(10**12, 2, Share())) == [
        (0, 0),
        (0, 1),
    ]  # not a tuple for each of a million pictures


def test_the_seed_decides_the_order() -> None:
    assert torch.equal(shuffled(1, 2, 50), shuffled(1, 2, 50))
    assert not torch.equal(shuffled(1, 2, 50), shuffled(2, 1, 50))


def test_views_are_the_same_however_many_processes_read_and_wherever_one_begins(
    stripes: Path,
) -> None:
    alone, helped, later = (batches(stripes, *args) for args in ((0,), (2,), (0, 3)))

    for one, other in ((alone, helped), (alone[3:], later)):
        assert len(other) == len(one)
        for (pictures, labels), (pictures2, labels2) in zip(one, other, strict=True):
            assert torch.equal(pictures, pictures2)
            assert torch.equal(labels, labels2)


def test_reading_leaves_the_processs_own_random_numbers_alone(stripes: Path) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    with Dataset(stripes) as opened:
        TrainingImages(opened, "train", RECIPE)[0, 0]

    assert torch.equal(wanted, torch.rand(3))


@pytest.mark.parametrize("augment", ["none", "crop", "scale"])
def test_a_view_has_the_size_that_is_asked_for_and_changes_with_the_epoch(
    stripes: Path, augment: str
) -> None:
    with Dataset(stripes) as opened:
        views = TrainingImages(opened, "train", RECIPE.model_copy(update={"augment": augment}))
        first, again, later = (views[epoch, 7][0] for epoch in (0, 0, 1))

    assert (tuple(first.shape), first.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(first, again)
    assert (augment == "none") == torch.equal(first, later)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_told_of_in_one_sentence_whoever_reads_it(
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
    def __getitem__(self, place: object) -> tuple[Tensor, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_reading_process_that_is_killed_is_told_of_in_words(stripes: Path) -> None:
    with Dataset(stripes) as opened:
        opened.close()
        with pytest.raises(errors.Unavailable, match="fewer --workers"):
            list(
                loader(
                    Dying(opened, "train", RECIPE), BatchOrder(RECIPE, 20, 4, 0, Share()), 1, CPU
                )
            )
