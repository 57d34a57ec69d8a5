"""WindowDataset as DataLoader sees it; which windows there are is tested in tests/view/test_windows.py."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, default_collate

from bigconv.block import Block, Ragged
from bigconv.errors import RowError, SchemaError, UsageError
from bigconv.runtime import (
    BatchOrder,
    ClassBalancedSampler,
    Loader,
    StreamDataset,
    TokenBatchSampler,
    WindowDataset,
    stratified_split,
)
from bigconv.schema import Field, Schema

Make = Callable[..., Path]
ROWS = 300
SCHEMA = Schema(
    (
        Field("x", "float32", (4,)),
        Field("y", "int64"),
        Field("subject", "int32"),
        Field("tokens", "uint16", (None,), "tokens"),
    )
)


def example_block() -> Block:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 9999, n).astype(np.uint16) for n in rng.integers(0, 200, ROWS)]
    return Block(
        SCHEMA,
        {
            "x": rng.standard_normal((ROWS, 4)).astype(np.float32),
            "y": np.arange(ROWS),
            "subject": np.repeat(np.arange(30, dtype=np.int32), 10),
            "tokens": Ragged.of(tokens, SCHEMA["tokens"]),
        },
    )


BLOCK = example_block()


def test_batches_of_a_stock_loader(make_store: Make, suffix: str) -> None:
    """Exactly torch's own unfold, in order, and the default collate function copies nothing."""
    dataset = WindowDataset(make_store(BLOCK, suffix), ("x", "y"), 8, 3, 2)
    whole = {name: torch.from_numpy(np.asarray(BLOCK[name])) for name in ("x", "y")}
    x = whole["x"].unfold(0, 10, 3).transpose(1, 2)
    y = whole["y"].unfold(0, 10, 3)
    assert len(dataset) == len(x)
    batches = list(DataLoader(dataset, batch_size=16))
    parts = [torch.cat(column) for column in zip(*batches, strict=True)]
    for got, expected in zip(parts, (x[:, :8], y[:, :8], x[:, 8:], y[:, 8:]), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    batch = dataset.__getitems__([3, 1, 2])
    assert default_collate(batch)[0].data_ptr() == batch.stacked()[0].data_ptr()
    assert all(column.is_contiguous() for column in batch.stacked())


def test_dicts_have_names(make_store: Make, suffix: str) -> None:
    path = make_store(BLOCK, suffix)
    sample = WindowDataset(path, "x", 5, horizon=1, target="y", once="subject")[7]
    assert {name: getattr(value, "shape", value) for name, value in sample.items()} == {
        "x": (5, 4),
        "y_target": (1,),
        "subject": 1,
    }
    assert sample["y_target"].tolist() == [12]
    batch = WindowDataset(path, ["x"], 5)[2:4]
    assert list(batch) == ["x"]
    assert batch["x"].shape == (2, 5, 4)
    partial = WindowDataset(path, "y", 200, 200, drop_partial=False)
    assert partial[1]["length"] == 100
    assert partial[[1, 0]]["length"].tolist() == [100, 200]
    assert WindowDataset(path, "y", 4).schema["y"].shape == (4,)


def test_groups_and_documents(make_store: Make, suffix: str) -> None:
    path = make_store(BLOCK, suffix)
    assert WindowDataset(path, "y", 4, 3, group="subject")[:]["y"][:, 0].tolist() == [
        10 * g + s for g in range(30) for s in (0, 3, 6)
    ]
    tokens = BLOCK["tokens"]
    assert isinstance(tokens, Ragged)
    expected = [row[i : i + 64] for row in tokens for i in range(0, len(row) - 63, 64)]
    inside = WindowDataset(path, "tokens", 64, 64)
    assert torch.equal(inside[:]["tokens"].int(), torch.from_numpy(np.stack(expected).astype(np.int32)))
    stream = WindowDataset(path, "tokens", 64, 64, cross_documents=True)
    got = torch.cat([batch["tokens"] for batch in DataLoader(stream, batch_size=50)])
    assert got.dtype == torch.uint16
    assert np.array_equal(got.numpy().reshape(-1), tokens.values[: got.numel()])


@pytest.mark.parametrize(
    ("method", "suffix", "field", "length", "group"),
    [
        ("fork", ".lmdb", ("tokens",), 64, None),
        ("forkserver", ".zarr", ("x", "y"), 32, None),
        ("forkserver", ".h5", ("x", "y"), 4, "subject"),
    ],
)
def test_workers_give_every_window_once(
    make_store: Make, method: str, suffix: str, field: Any, length: int, group: str | None
) -> None:
    """Also when the parent has read before; batches larger than a message go through shared memory."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    dataset = WindowDataset(make_store(BLOCK, suffix, method), field, length, 2, 4, group)
    assert len(dataset) >= 60
    expected = [column.clone() for column in dataset[:]]
    loader = DataLoader(dataset, batch_size=40, num_workers=2, multiprocessing_context=method)
    got = [torch.cat(column) for column in zip(*loader, strict=True)]
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("field, length, stride", [("y", 7, 3), ("tokens", 3, 1)])
def test_orders_are_of_windows(make_store: Make, field: str, length: int, stride: int) -> None:
    """Of fewer and of more windows than the store has rows."""
    dataset = WindowDataset(make_store(BLOCK, ".h5"), field, length, stride)
    assert (len(dataset) < ROWS) == (field == "y")
    expected = dataset[:][field]
    readers: list[Any] = [
        DataLoader(dataset, sampler=BatchOrder(dataset, 16, shuffle=False), batch_size=None),
        Loader(dataset, 16, threads=1),
        StreamDataset(dataset, batch_size=16),
    ]
    for reader in readers:
        assert torch.equal(torch.cat([batch[field] for batch in reader]), expected)
    assert sorted(BatchOrder(dataset, 16).order(0).tolist()) == list(range(len(dataset)))


def test_what_is_known_of_rows_is_not_taken_for_windows(make_store: Make) -> None:
    dataset = WindowDataset(make_store(BLOCK, ".h5"), "tokens", 3, once=("y",))
    told = f"has {len(dataset)} samples, and its store 300 rows"
    for ask in (
        lambda: ClassBalancedSampler(dataset, 8, field="subject"),
        lambda: TokenBatchSampler(dataset, 400, field="tokens"),
        lambda: stratified_split(dataset, (0.5, 0.5), field="subject"),
    ):
        with pytest.raises(UsageError, match=told):
            ask()


def test_several_paths_are_one_table(make_store: Make) -> None:
    paths = [make_store(BLOCK.slice(a, b), s, s[1:]) for a, b, s in ((0, 7, ".h5"), (7, 9, ".lmdb"), (9, 300, ".zarr"))]
    whole = WindowDataset(paths, ["y", "x"], 12)
    assert whole[:]["y"].tolist() == [list(range(i, i + 12)) for i in range(289)]
    apart = ConcatDataset([WindowDataset(path, "y", 2) for path in paths])
    starts = torch.cat([batch["y"] for batch in DataLoader(apart, batch_size=8)])[:, 0]
    assert starts.tolist() == [*range(6), 7, *range(9, 299)]


def test_transforms(make_store: Make, suffix: str) -> None:
    path = make_store(BLOCK, suffix)
    doubled = WindowDataset(path, "y", 3, transform=lambda row: row["y"] * 2)
    assert doubled[4].tolist() == [8, 10, 12]
    assert torch.cat(list(DataLoader(doubled, batch_size=64)))[5].tolist() == [10, 12, 14]
    sums = WindowDataset(path, ("y",), 3, batch_transform=lambda batch: batch[0].sum(1))
    assert torch.cat(list(DataLoader(sums, batch_size=64))).tolist() == [3 * i + 3 for i in range(298)]
    failing = WindowDataset(path, "y", 3, transform=lambda row: 1 / (row["y"][0].item() - 5))
    with pytest.raises(ZeroDivisionError) as error:
        failing[3:9]
    assert error.value.__notes__ == [f"in the transform of window 5 of {failing._view.told}"]


def test_written_to_without_harm(make_store: Make, suffix: str) -> None:
    dataset = WindowDataset(make_store(BLOCK, suffix), "y", 5)
    for batch in DataLoader(dataset, batch_size=64):
        batch["y"].zero_()
    sample = dataset[3]
    sample["y"] += 100
    assert dataset[3]["y"].tolist() == [3, 4, 5, 6, 7]


def test_pickle_is_small(make_store: Make) -> None:
    dataset = WindowDataset(make_store(BLOCK, ".h5"), "tokens", 2)
    dataset[5]
    assert len(dataset) > 20_000
    assert len(pickle.dumps(dataset)) < 12_000


def test_errors(make_store: Make) -> None:
    path = make_store(BLOCK, ".h5")
    with pytest.raises(SchemaError, match="Did you mean 'tokens'"):
        WindowDataset(path, "token", 4)
    with pytest.raises(RowError, match="window 297 of 297 windows"):
        WindowDataset(path, "y", 4)[297]
    with pytest.raises(UsageError, match="length must be a whole number"):
        WindowDataset(path, "y", 0)
    with pytest.raises(UsageError, match="a target needs a horizon"):
        WindowDataset(path, "y", 4, target="y")
    wrong: Any = ("y", 3)
    with pytest.raises(UsageError, match="by their names"):
        WindowDataset(path, wrong, 4)
    assert "297 windows of 4" in repr(WindowDataset(path, "y", 4))


def test_windows_that_fit_nowhere(make_store: Make) -> None:
    """A DataLoader would only say that it has nothing to shuffle."""
    with pytest.warns(UserWarning, match="0 windows of 290.*: no document.* has the 301 items"):
        assert len(WindowDataset(make_store(BLOCK, ".h5"), "y", 290, horizon=11)) == 0
