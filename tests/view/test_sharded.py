"""A view of a sharded directory: parts are opened when they are read, few at a time, in any process."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import bigconv
from bigconv.block import Block
from bigconv.errors import IncompleteStore
from bigconv.runtime import BatchOrder, StoreDataset, StreamDataset, WindowDataset
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view import open_parts
from bigconv.view.opening import OpenedDataset, open_store
from bigconv.view.order import Permutation
from bigconv.view.table import StoreView
from tests.benchmarks import scale

SCHEMA = Schema((Field("x", "int64", (3,)), Field("t", "uint8", (None,))))
BLOCK = Block(SCHEMA, {"x": np.arange(360).reshape(120, 3), "t": cases.block(SCHEMA, 120, 1)["t"]})


@pytest.fixture(scope="module", params=["memmap", "hdf5", "lmdb", "zarr"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    from bigconv.stores.memmap import Memmap

    write(folder / "all.mmap", Memmap(), BLOCK, 50)
    bigconv.shard(folder / "all.mmap", folder / "parts", rows=9, to=request.param, workers=0)
    return folder / "parts"


def test_only_what_is_read_is_opened(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    original = OpenedDataset.part
    monkeypatch.setattr(OpenedDataset, "part", lambda self, n: (touched.append(n), original(self, n))[1])
    view = bigconv.open(parts)
    assert (len(view), view.schema) == (120, SCHEMA)
    assert touched == []
    assert cases.same_block(view.take([100, 3, 101, 4]), BLOCK.take(np.array([100, 3, 101, 4])))
    assert sorted(touched) == [0, 11]
    assert repr(view).count("part-") == 0


def test_ten_thousand_parts_and_a_billion_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads the one manifest; taking rows opens the parts that have them; an epoch takes O(1) memory."""
    path, _ = scale.made(tmp_path, 10_000)
    touched: list[int] = []
    original = OpenedDataset.part
    monkeypatch.setattr(OpenedDataset, "part", lambda self, n: (touched.append(n), original(self, n))[1])
    view = bigconv.open(path)
    assert len(view) == 1_000_000_000
    rows = np.array([999_999_999, 0, 500_000_017, 500_000_016, 100_000])
    part, inside = view.whence(rows)
    assert part.tolist() == [9_999, 0, 5_000, 5_000, 1]
    assert inside.tolist() == [99_999, 0, 17, 16, 0]
    assert touched == []
    x = np.asarray(view.take(rows)["x"])[:, 0]
    assert x.tolist() == [(p % 3) * scale.ROWS + i for p, i in zip(part.tolist(), inside.tolist(), strict=True)]
    assert sorted(touched) == [0, 1, 5_000, 9_999]
    tracemalloc.start()
    order = Permutation(len(view), 1, 0)
    some = order.at(np.arange(400_000_000, 400_000_064))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert len(set(some.tolist())) == 64


def test_no_more_files_than_allowed(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fourteen parts through room for a few: what was closed is opened again, blocks given out stay."""
    monkeypatch.setattr(open_parts, "_files_allowed", lambda: 6)
    view = bigconv.open(parts)
    order = np.random.default_rng(0).permutation(120)
    first = next(iter(view.blocks()))
    for batch in np.split(order, 12):
        assert cases.same_block(view.take(batch), BLOCK.take(batch))
    held = view._parts
    assert held is not None
    assert len(held._held) < 14
    assert cases.same_block(first, BLOCK.slice(0, len(first)))
    assert cases.same_block(Block.concat(list(view.blocks())), BLOCK)


def test_pickles_and_workers(parts: Path) -> None:
    view = pickle.loads(pickle.dumps(bigconv.open(parts)))
    assert cases.same_block(view[:], BLOCK)
    loader = DataLoader(StoreDataset(parts, fields=["x"]), batch_size=16, num_workers=2)
    assert np.array_equal(np.concatenate([batch["x"].numpy() for batch in loader]), BLOCK["x"])


def test_streams_windows_and_orders(parts: Path) -> None:
    """Every row once over ranks; windows across parts; runs for windowed orders are the parts."""
    rows: list[int] = []
    for rank in range(3):
        stream = StreamDataset(parts, shuffle=True, seed=1, rank=rank, world_size=3, batch_size=7, fields=["x"])
        rows += [int(x) // 3 for batch in stream for x in batch["x"][:, 0]]
    assert sorted(rows) == list(range(120))
    windows = WindowDataset(parts, "x", length=20, stride=5)
    assert np.array_equal(windows[1]["x"], BLOCK["x"][5:25])
    dataset = StoreDataset(parts)
    order = BatchOrder(dataset, 10, window=40, chunk=4)
    assert sorted(np.concatenate(list(order)).tolist()) == list(range(120))
    mixed = StreamDataset([parts, parts], weights=[1, 3], rows=200, batch_size=20, fields=["x"])
    assert sum(len(batch["x"]) for batch in mixed) == 200


def test_a_part_that_went_after_opening_is_an_error_that_names_it(parts: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(parts, tmp_path / "copy")
    view = bigconv.open(tmp_path / "copy")
    gone = next((tmp_path / "copy").glob("part-00003*"))
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert len(view.take([0, 1])) == 2
    with pytest.raises(IncompleteStore, match=r"part-00003.*\n.*--repair"):
        view.take([0, 30])
    with pytest.raises(IncompleteStore, match=r"part-00003"):
        bigconv.open(tmp_path / "copy")


def test_digests_are_those_of_one_store(parts: Path) -> None:
    whole = open_store(parts.parent / "all.mmap").manifest
    manifest = open_store(parts).manifest
    assert dict(manifest.digests.tables) == dict(whole.digests.tables)
    assert StoreView([parts]).field_bytes("t") == StoreView([parts.parent / "all.mmap"]).field_bytes("t")
