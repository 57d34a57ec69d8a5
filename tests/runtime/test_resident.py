"""`in_memory=True`: the same rows, held once for all processes."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from bigconv.block import Block, Ragged
from bigconv.errors import RowError, UsageError
from bigconv.runtime import Loader, StoreDataset
from bigconv.runtime.resident import Resident
from bigconv.schema import Field, Schema
from bigconv.testing import cases

Make = Callable[..., Path]
SCHEMA = Schema(
    (
        Field("x", "float32", (3, 5)),
        Field("t", "int16", (None,)),
        Field("m", "uint8", (None, 2, None)),
        Field("word", "uint8", (None,), "text"),
        Field("nothing", "int32", (0, 4)),
        Field("label", "int64"),
    )
)
BLOCK = cases.block(SCHEMA, 60, seed=9)
FIXED = ("x", "label")
ROWS = [3, 59, 0, 3, 41, -1]


def same(a: Block, b: Block) -> bool:
    def equal(one: np.ndarray | Ragged, other: np.ndarray | Ragged) -> bool:
        return len(one) == len(other) and all(
            np.array_equal(x, y, equal_nan=x.dtype.kind in "fc") for x, y in zip(one, other, strict=True)
        )

    return all(equal(a[name], b[name]) for name in a.schema.names)


def test_same_rows_as_the_files(make_store: Make, suffix: str) -> None:
    """Every kind of field, over several stores, without the files."""
    path = make_store(BLOCK, suffix)
    dataset = StoreDataset([path, path], in_memory=True)
    view, resident = dataset.view, dataset._resident
    assert resident is not None
    index = view.rows([*ROWS, 100, 77, 60])
    taken = Block(SCHEMA, {f.name: resident.take_field(f.name, index) for f in SCHEMA})
    assert same(taken, view.take(index))
    none = view.rows([])
    assert same(Block(SCHEMA, {f.name: resident.take_field(f.name, none) for f in SCHEMA}), view.take(none))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert dataset[100]["word"] == StoreDataset.__getitem__(dataset, 40)["word"]
    assert dataset[41]["label"] == np.asarray(BLOCK["label"])[41]


def test_every_way_of_reading(make_store: Make) -> None:
    path = make_store(BLOCK, ".h5")
    plain, held = StoreDataset(path, FIXED), StoreDataset(path, FIXED, in_memory=True)
    for ours, expected in zip(
        [*DataLoader(held, 7), *DataLoader(held, 7, num_workers=2), *Loader(held, 7)],
        [*DataLoader(plain, 7)] * 3,
        strict=True,
    ):
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(ours, expected, strict=True))
        ours[0].zero_()  # a copy: what is held stays as it is
    assert default_collate(held.__getitems__(ROWS))[1].tolist() == np.asarray(BLOCK["label"])[ROWS].tolist()
    with pytest.raises(RowError, match="row 60 of 60 rows"):
        held[60]


def shared_with(dataset: StoreDataset) -> int:
    resident = dataset._resident
    assert resident is not None
    return os.fstat(resident._fd or -1).st_ino


class Inode:
    """Which memory a worker reads from."""

    def __init__(self, dataset: StoreDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[int, int]:
        return shared_with(self.dataset), self.dataset[i]["label"]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="by descriptor on Linux only")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_one_copy_for_all_workers(make_store: Make, method: str) -> None:
    path = make_store(BLOCK, ".mmap")
    dataset = StoreDataset(path, in_memory=True)
    shutil.rmtree(path)
    workers = 1 if method == "spawn" else 2  # which imports torch anew, seconds each
    loader = DataLoader(Inode(dataset), 1, num_workers=workers, multiprocessing_context=method)  # type: ignore[arg-type]
    found = [(int(inode), int(label)) for inode, label in loader]
    assert found == [(shared_with(dataset), int(label)) for label in np.asarray(BLOCK["label"])[:2]]


def test_pickles_hold_no_rows(make_store: Make) -> None:
    """Elsewhere it is read again."""
    big = cases.block(Schema((Field("x", "float64", (1000,)),)), 200)
    dataset = StoreDataset(make_store(big, ".h5"), in_memory=True)
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert torch.equal(copy[7]["x"].nan_to_num(), dataset[7]["x"].nan_to_num())
    assert copy._resident is not None


def test_memory_and_descriptors_are_given_back(make_store: Make) -> None:
    path = make_store(BLOCK, ".mmap")
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        StoreDataset(path, in_memory=True)[3]
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs 1,125,899,906,842,624 bytes, and this machine has"):
        Resident._check(1 << 50)
