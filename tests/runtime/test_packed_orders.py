"""Compressed stores in the runtime: chunk-aware orders, workers, threads, and coming batches that are asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bigconv.block import Block
from bigconv.errors import UsageError
from bigconv.runtime import BatchOrder, Loader, StoreDataset, StreamDataset
from bigconv.schema import Field, Schema
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.zarr import Zarr
from bigconv.testing.store_suite import write
from bigconv.view.order import CHUNK

ROWS = 300
X = np.arange(ROWS * 16, dtype=np.int32).reshape(ROWS, 16)
STORES = {".h5": Hdf5("lz4", 8), ".zarr": Zarr(compress="zstd", chunk=8), ".lmdb": Lmdb("lz4")}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    found = {}
    for suffix, store in STORES.items():
        found[suffix] = folder / f"x{suffix}"
        write(found[suffix], store, Block(Schema((Field("x", "int32", (16,)),)), {"x": X}), 100)
    return found


def rows_of(batches: Any) -> list[int]:
    return torch.cat([batch["x"][:, 0] // 16 for batch in batches]).tolist()


@pytest.mark.parametrize("suffix", STORES)
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_threads_read_every_row_once(stores: dict[str, Path], suffix: str, workers: int) -> None:
    """Also in forked workers after the parent has decoded with its threads."""
    dataset = StoreDataset(stores[suffix])
    assert torch.equal(dataset[np.arange(ROWS)]["x"], torch.from_numpy(X))
    if workers:
        batches = list(DataLoader(dataset, 32, shuffle=True, num_workers=workers))
    else:
        batches = list(Loader(dataset, 32, shuffle=True, threads=2))
    assert sorted(rows_of(batches)) == list(range(ROWS))
    for batch in batches:
        assert np.array_equal(batch["x"].numpy(), X[batch["x"][:, 0].numpy() // 16])


def test_a_windowed_order_takes_the_stores_own_chunks(stores: dict[str, Path]) -> None:
    dataset = StoreDataset(stores[".zarr"])
    order = BatchOrder(dataset, 10, window=32)
    assert (dataset.chunk_rows, order.chunk) == (8, 8)
    rows = order.order(0)
    assert sorted(rows.tolist()) == list(range(ROWS))
    chunks = rows // 8
    for chunk in range(ROWS // 8):
        places = np.flatnonzero(chunks == chunk)
        assert places[-1] - places[0] < 32 + 8  # within its window, which a short chunk may shift
    assert BatchOrder(dataset, 10, window=32, chunk=4).chunk == 4
    assert BatchOrder(dataset, 10).chunk == CHUNK
    assert BatchOrder(StoreDataset(stores[".lmdb"]), 10, window=32).chunk == CHUNK
    assert BatchOrder(StoreDataset(stores[".zarr"], in_memory=True), 10, window=32).chunk == CHUNK
    assert StreamDataset(dataset, shuffle=True, window=32).chunk == 8


def test_each_chunk_is_decoded_once_an_epoch(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stated bound on memory: a cache of one window is enough."""
    from bigconv.stores import frames

    seen: list[int] = []
    original = frames.unpack
    monkeypatch.setattr(frames, "unpack", lambda frame, out: (seen.append(len(out)), original(frame, out)))
    dataset = StoreDataset(stores[".h5"], cache=64 * 64)
    order = BatchOrder(dataset, 8, window=64)
    assert sorted(rows_of(dataset[rows] for rows in order)) == list(range(ROWS))
    assert len(seen) <= -(-ROWS // 8) + ROWS // 64  # a chunk may be cut by the end of a window
    seen.clear()
    exact = StoreDataset(stores[".h5"], cache=64 * 64)
    # an order that tells no dataset what comes: each batch by itself
    assert sorted(rows_of(exact[rows] for rows in BatchOrder(ROWS, 8))) == list(range(ROWS))
    assert len(seen) > 3 * ROWS // 8


def test_a_window_larger_than_the_cache_is_told(stores: dict[str, Path]) -> None:
    small = StoreDataset(stores[".zarr"], cache=1000)
    for make in (lambda: BatchOrder(small, 10, window=100), lambda: StreamDataset(small, shuffle=True, window=100)):
        with pytest.warns(UserWarning, match=r"100 rows takes 6,400 bytes.*keeps 1,000(?s:.*)cache=6400"):
            make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BatchOrder(small, 10, window=15)
        BatchOrder(StoreDataset(stores[".lmdb"], cache=0), 10, window=100)  # no chunks of several rows
    with pytest.raises(UsageError, match="cache must be 0 or more"):
        StoreDataset(stores[".zarr"], cache=-1)


def test_a_chunk_aware_stream_goes_on_elsewhere(stores: dict[str, Path]) -> None:
    """On two ranks from where one stopped; every row once in all."""
    how: dict[str, Any] = {"shuffle": True, "seed": 3, "batch_size": 7, "window": 64}
    stream = StreamDataset(stores[".zarr"], **how)
    reading = iter(stream)
    seen = rows_of([next(reading) for _ in range(11)])
    state = stream.state_dict()
    for rank in range(2):
        other = StreamDataset(stores[".zarr"], rank=rank, world_size=2, **how)
        other.load_state_dict(state)
        seen += rows_of(other)
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_loader_asks_for_coming_batches(
    stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Each batch but the first is asked for while an earlier one is read; a wrong row is still told where it is."""
    dataset = StoreDataset(stores[".h5"])
    asked: list[list[int]] = []
    monkeypatch.setattr(dataset, "will_need", lambda rows: asked.append(list(rows)))
    batches = [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert rows_of(Loader(dataset, None, sampler=[np.array(b) for b in batches], threads=threads)) == list(range(9))
    assert sorted(asked) == batches[max(1, threads) :]
    monkeypatch.undo()
    got = []
    with pytest.raises(IndexError, match="row 999"):
        for batch in Loader(dataset, batch_sampler=[[0, 1], [2, 3], [4, 999]], threads=threads):
            got += rows_of([batch])
    assert got == [0, 1, 2, 3]
