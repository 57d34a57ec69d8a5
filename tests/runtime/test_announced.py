"""Small batches gathered several at once for a DataLoader: whoever asks for any rows gets those, and his own."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _damaged
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bigconv.block import Block
from bigconv.runtime import BatchOrder, StoreDataset, WindowDataset
from bigconv.runtime.announced import MOST_TOGETHER
from bigconv.schema import Field, Schema

ROWS, BATCH = 1000, 8
X = np.random.default_rng(0).integers(0, 255, (ROWS, 6), np.uint8)


@pytest.fixture
def dataset(make_store: Callable[..., Path]) -> StoreDataset:
    schema = Schema((Field("x", "uint8", (6,)), Field("row", "int64")))
    return StoreDataset(make_store(Block(schema, {"x": X, "row": np.arange(ROWS)}), ".h5"))


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches were gathered at once, each time that any were."""
    counts, whole = [], StoreDataset.several

    def several(self: StoreDataset, rows: Any, stops: Sequence[int]) -> Any:
        counts.append(len(stops))
        return whole(self, rows, stops)

    monkeypatch.setattr(StoreDataset, "several", several)
    return counts


class Changed:
    """A sampler around an order: something is done with each array of row numbers."""

    def __init__(self, order: BatchOrder, change: Callable[[np.ndarray], Any]) -> None:
        self.order, self.change = order, change

    def __iter__(self) -> Iterator[Any]:
        return map(self.change, self.order)


def loader(dataset: Any, sampler: Any, **options: Any) -> DataLoader:
    return DataLoader(dataset, sampler=sampler, batch_size=None, **options)


def right(batches: Sequence[Any], order: Sequence[Any]) -> bool:
    assert [batch["row"].tolist() for batch in batches] == [list(rows) for rows in order]
    return all(np.array_equal(batch["x"].numpy(), X[rows]) for batch, rows in zip(batches, order, strict=True))


def test_batches_have_tensors_of_their_own(dataset: StoreDataset, gathered: list[int]) -> None:
    order = list(BatchOrder(ROWS, BATCH))
    batches = list(loader(dataset, BatchOrder(dataset, BATCH)))
    assert right(batches, order)
    assert gathered == [MOST_TOGETHER] * 7 + [ROWS // BATCH - 7 * MOST_TOGETHER]
    for batch in batches:
        assert batch["x"].untyped_storage().nbytes() == batch["x"].nbytes
    for batch in batches[::2]:
        batch["x"].zero_()
    assert right(batches[1::2], order[1::2])


def test_a_second_epoch_and_one_begun_anew(dataset: StoreDataset, gathered: list[int]) -> None:
    order = BatchOrder(dataset, BATCH)
    batches = loader(dataset, order)
    next(iter(batches))
    gc.collect()
    assert dataset._announced == ()  # nothing is kept of what was gathered and not asked for
    assert right(list(batches), list(BatchOrder(ROWS, BATCH, seed=0).order(1).reshape(-1, BATCH)))
    assert len(gathered) == 1 + 8


def test_two_loaders_of_one_dataset_in_turn(dataset: StoreDataset, gathered: list[int]) -> None:
    one, other = BatchOrder(dataset, BATCH, seed=1), BatchOrder(dataset, BATCH, seed=2)
    pairs = list(zip(loader(dataset, one), loader(dataset, other), strict=True))
    assert right([a for a, _ in pairs], list(BatchOrder(ROWS, BATCH, seed=1)))
    assert right([b for _, b in pairs], list(BatchOrder(ROWS, BATCH, seed=2)))
    assert len(gathered) == 16


@pytest.mark.parametrize("first", [True, False])
def test_numbers_that_are_changed_on_the_way(dataset: StoreDataset, gathered: list[int], first: bool) -> None:
    def change(rows: np.ndarray) -> np.ndarray:
        if first or rows[0] % 3:  # in place: it is the order's own array
            rows += 1
            rows %= ROWS
        return rows

    expected = [change(rows).copy() for rows in BatchOrder(ROWS, BATCH)]
    assert right(list(loader(dataset, Changed(BatchOrder(dataset, BATCH), change))), expected)


def test_numbers_of_another_kind(dataset: StoreDataset) -> None:
    order = list(BatchOrder(ROWS, BATCH))
    for change in (np.ndarray.tolist, lambda rows: rows.astype(np.uint16), lambda rows: rows - ROWS):
        assert right(list(loader(dataset, Changed(BatchOrder(dataset, BATCH), change))), order)


def test_who_passes_over_most_is_not_gathered_for(dataset: StoreDataset, gathered: list[int]) -> None:
    order = BatchOrder(dataset, BATCH)
    batches = [dataset[rows] for number, rows in enumerate(order) if number % MOST_TOGETHER == 0]
    assert right(batches, list(BatchOrder(ROWS, BATCH))[::MOST_TOGETHER])
    assert gathered == [MOST_TOGETHER]


def test_the_same_rows_twice(dataset: StoreDataset) -> None:
    for rows in BatchOrder(dataset, BATCH):
        one, other = dataset[rows], dataset[rows]
        one["x"].zero_()
        assert right([other], [rows])


def test_several_threads(dataset: StoreDataset) -> None:
    order = BatchOrder(dataset, BATCH)
    with ThreadPoolExecutor(8) as pool:
        asked = [(rows, pool.submit(dataset.__getitem__, rows)) for rows in order for _ in range(2)]
    batches = [future.result() for _, future in asked]
    assert right(batches, [rows for rows, _ in asked])
    assert len({batch["x"].data_ptr() for batch in batches}) == len(batches)


def test_an_error_comes_in_its_place(dataset: StoreDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    _damaged.row_20(monkeypatch)
    order = BatchOrder(dataset, BATCH, shuffle=False)
    batches = iter(loader(dataset, order))
    assert [next(batches)["row"][0].item() for _ in range(2)] == [0, 8]
    with pytest.raises(OSError, match="can't read"):
        next(batches)
    assert [batch["row"][0].item() for batch in batches] == list(range(24, ROWS, 8))


def test_in_workers_nothing_is_announced(dataset: StoreDataset, gathered: list[int]) -> None:
    order = BatchOrder(dataset, BATCH)
    dataset[next(iter(order))]  # what a fork then inherits
    order.set_epoch(0)
    before = len(gathered)
    assert right(list(loader(dataset, order, num_workers=2)), list(BatchOrder(ROWS, BATCH)))
    assert len(gathered) == before


def test_copies_tell_nobody(dataset: StoreDataset, gathered: list[int]) -> None:
    order = BatchOrder(dataset, BATCH)
    reading = iter(order)
    dataset[next(reading)]
    for other in (pickle.loads(pickle.dumps(order)), copy.deepcopy(order)):
        other.set_epoch(0)
        assert right([dataset[rows] for rows in other], list(BatchOrder(ROWS, BATCH)))
    for twin in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert twin._announced == ()
    assert len(gathered) == 1


def test_what_is_done_to_rows_is_done_batch_by_batch(dataset: StoreDataset, gathered: list[int]) -> None:
    dataset = StoreDataset(dataset.view.paths[0], transform=lambda row: {**row, "x": row["x"] ^ 255})
    batches = list(loader(dataset, BatchOrder(dataset, BATCH)))
    assert torch.equal(torch.cat([batch["x"] for batch in batches]).sum(0), torch.from_numpy(X ^ 255).long().sum(0))
    assert gathered == []


def test_windows(dataset: StoreDataset, gathered: list[int]) -> None:
    windows = WindowDataset(dataset.view.paths[0], ("x",), 5)
    order = list(BatchOrder(len(windows), BATCH))
    for (batch,), rows in zip(loader(windows, BatchOrder(windows, BATCH)), order, strict=True):
        assert np.array_equal(batch.numpy(), X[rows[:, None] + np.arange(5)])
    assert gathered[0] == MOST_TOGETHER
