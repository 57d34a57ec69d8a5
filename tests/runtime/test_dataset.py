"""StoreDataset against what a plain list of rows would give."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, WeightedRandomSampler, default_collate, random_split

import bigconv
from bigconv.block import Block, Ragged
from bigconv.errors import RowError, SchemaError
from bigconv.runtime import BatchOrder, StoreDataset
from bigconv.schema import Field, Schema
from bigconv.testing import cases

Make = Callable[..., Path]
SCHEMA = Schema(
    (
        Field("image", "uint8", (3, 8, 8), "image", "chw"),
        Field("x", "float32", (5,)),
        Field("label", "int64", (), "label"),
    )
)
BLOCK = cases.block(SCHEMA, 50, seed=4)


def test_default_collate_takes_the_batch_over(make_store: Make, suffix: str) -> None:
    """A stock DataLoader gives exactly the rows, in order, and nothing is copied after the gather."""
    dataset = StoreDataset(make_store(BLOCK, suffix), fields=("image", "label"))
    seen = 0
    for image, label in DataLoader(dataset, batch_size=16):
        rows = slice(seen, seen + len(label))
        assert image.dtype == torch.uint8
        assert label.dtype == torch.int64
        assert np.array_equal(image.numpy(), BLOCK["image"][rows])
        assert np.array_equal(label.numpy(), BLOCK["label"][rows])
        seen += len(label)
    assert seen == 50
    batch = dataset.__getitems__([3, 1, 2])
    assert default_collate(batch)[0].data_ptr() == batch.stacked()[0].data_ptr()


def test_batches_are_writable_without_warnings(make_store: Make, suffix: str) -> None:
    dataset = StoreDataset(make_store(BLOCK, suffix))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in DataLoader(dataset, batch_size=7):
            batch["image"].zero_()
            batch["x"] += 1
        row = dataset[3]
        row["image"].fill_(1)
    assert np.array_equal(dataset[3]["image"].numpy(), BLOCK["image"][3])


def test_rows_are_ordinary_to_a_user(make_store: Make, suffix: str) -> None:
    """A collate function of the user's own sees dicts or tuples of tensors and numbers."""
    path = make_store(BLOCK, suffix)
    seen: list[object] = []

    def mine(batch: list[object]) -> int:
        seen.extend(batch)
        return len(batch)

    assert sum(DataLoader(StoreDataset(path), batch_size=8, collate_fn=mine)) == 50
    assert isinstance(seen[0], dict)
    assert list(seen[0]) == ["image", "x", "label"]
    assert seen[7]["label"] == BLOCK["label"][7]  # type: ignore[index]
    for last in (-1, np.int32(49), np.array(49), torch.tensor(-1)):
        row = StoreDataset(path, fields=("x", "label"))[last]
        assert isinstance(row, tuple)
        assert torch.equal(row[0], torch.from_numpy(np.asarray(BLOCK["x"])[-1]))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_give_every_row_once(make_store: Make, method: str) -> None:
    """Also when the parent has read before: nothing open travels."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    for suffix in (".h5", ".lmdb") if method == "fork" else (".h5",):
        dataset = StoreDataset(make_store(BLOCK, suffix, method), fields=("label",))
        dataset[0]
        workers = 1 if method == "spawn" else 2  # which imports torch anew, seconds each
        loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=workers, multiprocessing_context=method)
        labels = torch.cat([batch[0] for batch in loader])
        assert sorted(labels.tolist()) == sorted(np.asarray(BLOCK["label"]).tolist())


@pytest.mark.parametrize("suffix", [".mmap", ".h5", ".zarr"])
def test_nothing_is_held_for_a_row(tmp_path: Path, suffix: str) -> None:
    """Opening, an exact shuffle, its first batch: 10 MB more for 100 million rows would be a tenth of a byte a row."""
    few, many = 40_000, 4_000_000

    def peak(rows: int) -> int:
        np.save(tmp_path / f"{rows}.npy", np.zeros(rows, np.uint8))
        path = tmp_path / f"{rows}{suffix}"
        bigconv.convert(tmp_path / f"{rows}.npy", path, workers=0)
        StoreDataset(path)[[1, 2]]  # modules are imported
        tracemalloc.start()
        dataset = StoreDataset(path)
        dataset[next(iter(BatchOrder(dataset, 1024)))]
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(many) - peak(few) < (many - few) / 10


def test_pickle_is_small(make_store: Make) -> None:
    big = cases.block(Schema((Field("x", "float64", (1000,)),)), 200)
    dataset = StoreDataset(make_store(big, ".h5"))
    dataset[0]
    assert len(pickle.dumps(dataset)) < 20_000


def test_torch_tools_work(make_store: Make, suffix: str) -> None:
    """Subset, random_split, ConcatDataset and every sampler see an ordinary map-style dataset."""
    path = make_store(BLOCK, suffix)
    dataset = StoreDataset(path, fields=("label",))
    labels = np.asarray(BLOCK["label"])
    (subset,) = next(iter(DataLoader(Subset(dataset, [5, 2, 9]), batch_size=3)))
    assert subset.tolist() == labels[[5, 2, 9]].tolist()
    a, b = random_split(dataset, [40, 10], torch.Generator().manual_seed(0))
    both = torch.cat([batch[0] for part in (a, b) for batch in DataLoader(part, batch_size=8)])
    assert sorted(both.tolist()) == sorted(labels.tolist())
    twice = torch.cat([batch[0] for batch in DataLoader(ConcatDataset([dataset, dataset]), batch_size=9)])
    assert twice.tolist() == labels.tolist() * 2
    weights = [0.0] * 49 + [1.0]
    drawn = DataLoader(dataset, batch_size=4, sampler=WeightedRandomSampler(weights, 8))
    assert {int(label) for (batch,) in drawn for label in batch} == {int(labels[49])}


def test_transforms(make_store: Make, suffix: str) -> None:
    path = make_store(BLOCK, suffix)
    per_row = StoreDataset(path, transform=lambda row: row["x"] * 2)
    expected = torch.from_numpy(np.asarray(BLOCK["x"])) * 2
    got = torch.cat(list(DataLoader(per_row, batch_size=16)))
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    assert torch.equal(per_row[4].nan_to_num(), expected[4].nan_to_num())
    calls = []

    def whole(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(len(batch["x"]))
        return batch["x"] * 2

    got = torch.cat(list(DataLoader(StoreDataset(path, batch_transform=whole), batch_size=16)))
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    assert calls == [16, 16, 16, 2]


def test_a_failing_transform_names_its_row(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of the batch, and where it lies, also out of a worker."""
    # so many seconds torch waits for each worker of an iterator that an error has ended: five
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    label = int(np.asarray(BLOCK["label"])[7])

    def bad(row: dict) -> int:
        if row["label"] == label:
            raise ValueError("no good")
        return 0

    one, two = make_store(BLOCK, ".h5", "one"), make_store(BLOCK, ".h5", "two")
    dataset = StoreDataset([one, two], transform=bad)
    for read in (
        lambda: dataset[57],
        lambda: dataset[40:],
        lambda: dataset[np.arange(100) >= 30],
        lambda: list(DataLoader(dataset, 4, sampler=[1, 57, 7])),
    ):
        with pytest.raises(ValueError, match="no good") as error:
            read()
        assert error.value.__notes__ == [f"in the transform of {two}, row 7"]
    with pytest.raises(ValueError, match=f"in the transform of {one}, row 7"):
        list(DataLoader(dataset, 4, num_workers=1))
    gc.collect()  # the iterator, here


def test_our_order_gives_every_row_once(make_store: Make, suffix: str) -> None:
    dataset = StoreDataset(make_store(BLOCK, suffix), fields=["label"])
    order = BatchOrder(dataset, 16, seed=3)
    first = [batch["label"] for batch in DataLoader(dataset, sampler=order, batch_size=None)]
    assert [len(b) for b in first] == [16, 16, 16, 2]
    assert sorted(torch.cat(first).tolist()) == sorted(np.asarray(BLOCK["label"]).tolist())
    second = [batch["label"] for batch in DataLoader(dataset, sampler=order, batch_size=None)]
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    order.set_epoch(0)
    again = [batch["label"] for batch in DataLoader(dataset, sampler=order, batch_size=None)]
    assert torch.cat(first).tolist() == torch.cat(again).tolist()


def test_ragged_rows(make_store: Make, suffix: str) -> None:
    """Rows of their own size one by one; stacked when equal; a clear error when not."""
    field = Field("t", "int32", (None,))
    rows = [np.arange(n, dtype=np.int32) for n in (3, 3, 5, 0)]
    dataset = StoreDataset(make_store(Block(Schema((field,)), {"t": Ragged.of(rows, field)}), suffix))
    assert [len(dataset[i]["t"]) for i in range(4)] == [3, 3, 5, 0]
    batch = next(iter(DataLoader(Subset(dataset, [0, 1]), batch_size=2)))
    assert batch["t"].tolist() == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(SchemaError, match=r"field t: rows of different .* \(\(3,\) and \(5,\)\)\.\nPad them"):
        next(iter(DataLoader(dataset, batch_size=4)))


def test_text_is_str(make_store: Make, suffix: str) -> None:
    field = Field("text", "uint8", (None,), "text")
    words = ["a", "ü☃", ""]
    rows = Ragged.of([np.frombuffer(w.encode(), np.uint8) for w in words], field)
    dataset = StoreDataset(make_store(Block(Schema((field,)), {"text": rows}), suffix))
    assert [dataset[i]["text"] for i in range(3)] == words
    assert next(iter(DataLoader(dataset, batch_size=3)))["text"] == words


def test_errors(make_store: Make) -> None:
    path = make_store(BLOCK, ".h5")
    with pytest.raises(SchemaError, match=r"unknown field 'imge'. Did you mean 'image'\?"):
        StoreDataset(path, fields=("imge",))
    with pytest.raises(RowError, match="row 50 of 50 rows"):
        StoreDataset(path)[50]
    with pytest.raises(SchemaError, match="tuple or a list"):
        StoreDataset(path, fields="label")
    for key in (1.5, "label", None):
        with pytest.raises(TypeError, match="integer"):
            StoreDataset(path)[key]
