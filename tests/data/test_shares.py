"""What each of several processes reads of a training batch: its own samples, where that gives the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from csqtool.data import DataSource, as_source, image_folder, load_data, training_batches
from csqtool.data.augment import ShiftAndFlip
from tests.support.images import write_images

Share = Callable[[int], slice]
SHARES: list[Share] = [lambda count: slice(0, None, 2), lambda count: slice(1, None, 2)]


class Read:
    """A data set that knows which of its samples were read."""

    def __init__(self, *, draws: bool) -> None:
        self.draws = draws
        self.seen: list[int] = []

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen.append(index)
        noise = torch.rand(()) + random.random() if self.draws else torch.zeros(())
        return torch.full((1, 4, 4), float(index)) + noise, index % 3


def shares_and_whole(source: DataSource) -> list[tuple[Any, Any]]:
    """Return (a batch put together from the shares of two processes, the whole batch) for each of an epoch."""
    batches = training_batches(source, batch_size=5, seed=3)
    halves = [list(batches.shares("search", 1, share)) for share in SHARES]
    pairs = []
    for number, whole in enumerate(batches.epoch("search", 1)):
        parts = [half[number] for half in halves]
        assert {count for _, count in parts} == {len(whole[1])}
        joined = [torch.empty_like(tensor) for tensor in whole]
        for (part, count), share in zip(parts, SHARES, strict=True):
            for into, tensor in zip(joined, part, strict=True):
                into[share(count)] = tensor
        pairs.append((joined, whole))
    return pairs


def assert_equal(pairs: list[tuple[Any, Any]]) -> None:
    assert pairs
    for joined, whole in pairs:
        assert all(torch.equal(one, other) for one, other in zip(joined, whole, strict=True))


def test_each_process_decodes_its_own_images_and_gets_them_as_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL.Image")
    write_images(tmp_path)
    source = load_data(f"imagefolder:{tmp_path}?size=16")
    assert_equal(shares_and_whole(source))
    read: list[Path] = []
    decode = image_folder.decoded
    monkeypatch.setattr(image_folder, "decoded", lambda file, crop: [read.append(file), decode(file, crop)][1])
    batches = training_batches(source, batch_size=6, seed=0)
    counts = []
    for share in SHARES:
        before = len(read)
        list(batches.shares("search", 0, share))
        counts.append(len(read) - before)
    assert counts == [3, 3]
    assert sorted(read) == sorted(source.train.files)


@pytest.mark.parametrize("draws", [False, True])
def test_a_data_set_that_draws_is_read_whole_and_another_one_by_shares(draws: bool) -> None:
    read = Read(draws=draws)
    source = as_source(train=read, test=read)
    assert_equal(shares_and_whole(source))
    batches = training_batches(source, batch_size=13, seed=0)
    read.seen.clear()
    list(batches.shares("search", 0, SHARES[1]))
    assert len(read.seen) == (13 if draws else 6)


class Batched(Read):
    """Makes batches by itself: padded to the longest sample, for instance."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        samples = [self[index] for index in indices]
        return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def test_a_data_set_that_makes_batches_by_itself_is_read_whole() -> None:
    read = Batched(draws=False)
    source = as_source(train=read, test=read)
    assert_equal(shares_and_whole(source))
    read.seen.clear()
    list(training_batches(source, batch_size=13, seed=0).shares("search", 0, SHARES[0]))
    assert len(read.seen) == 13


def test_batches_that_are_augmented_as_a_whole_and_those_of_a_loader_are_shared_out_after_reading() -> None:
    read = Read(draws=False)
    augmented = DataSource(
        "x", read, read, as_source(train=read, test=read).task, ShiftAndFlip(1, flip=True, fill=(0.0,))
    )
    assert_equal(shares_and_whole(augmented))
    loader = DataLoader(read, batch_size=5, shuffle=True)
    assert_equal(shares_and_whole(as_source(train=loader, test=read)))
