"""Decoded chunks: each once, in bounded memory, by many threads, in windows and over forks; and read-ahead."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bigconv
from bigconv.block import Block, Ragged
from bigconv.errors import IncompleteStore
from bigconv.schema import Field, Schema
from bigconv.stores import frames
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases
from bigconv.testing.store_suite import write
from bigconv.view import readahead
from bigconv.view.memory import LOWEST
from bigconv.view.readahead import STRETCH, ReadAhead, stretches, with_coming
from bigconv.view.table import StoreView
from bigconv.view.unpack import Cache, Frames, Hold
from bigconv.view.windows import Sliding, WindowView

SCHEMA = Schema((Field("x", "int32", (25,)), Field("tokens", "uint16", (None,), "tokens"), Field("label", "int64")))
ROWS = 200
BLOCK = cases.block(SCHEMA, ROWS)
STORES = {".h5": Hdf5("lz4", 8), ".zarr": Zarr(100, 9000, "zstd", 8), ".lmdb": Lmdb("lz4")}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The same rows whole, and in two parts."""
    folder = tmp_path_factory.mktemp("packed")
    found = {}
    for suffix, store in STORES.items():
        found[suffix] = [folder / f"{name}{suffix}" for name in ("whole", "first", "last")]
        for path, piece in zip(found[suffix], (BLOCK, BLOCK.slice(0, 77), BLOCK.slice(77, ROWS)), strict=True):
            write(path, store, piece, 30)
    return found


@pytest.fixture(params=STORES)
def paths(request: pytest.FixtureRequest, stores: dict[str, list[Path]]) -> list[Path]:
    return stores[request.param]


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of each frame that is decoded."""
    seen: list[int] = []
    original = frames.unpack

    def counted(frame: memoryview, out: np.ndarray) -> None:
        seen.append(len(out))
        original(frame, out)

    monkeypatch.setattr(frames, "unpack", counted)
    yield seen


# -- each chunk once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_a_chunk_is_decoded_once_a_batch_and_kept(
    stores: dict[str, list[Path]], unpacked: list[int], suffix: str
) -> None:
    view = bigconv.open(stores[suffix][0], ["x"])
    rows = [3, 9, 5, 3, 8, 15, 199, 0]
    assert cases.same_block(view.take(rows), Block(view.schema, {"x": BLOCK["x"][rows]}))
    assert unpacked == [800] * 3  # chunks 0, 1 and 24
    view.take([7, 12, 193])
    assert len(unpacked) == 3
    view.close()
    view.take([7])
    assert len(unpacked) == 4


def test_records_are_decoded_once_for_all_fields(stores: dict[str, list[Path]], unpacked: list[int]) -> None:
    view = bigconv.open(stores[".lmdb"][0])
    view.take([5, 1, 5])
    assert len(unpacked) == 2


def test_lengths_of_records_need_no_decoding(stores: dict[str, list[Path]], unpacked: list[int]) -> None:
    view = bigconv.open(stores[".lmdb"][0])
    assert view.lengths("tokens", np.arange(ROWS)).tolist() == BLOCK["tokens"].lengths.tolist()
    assert unpacked == []


@pytest.mark.parametrize("cache_bytes", [0, 1, 801, 2000, 5000, 1 << 20])
def test_any_cache_gives_the_same_rows(paths: list[Path], cache_bytes: int) -> None:
    """A cache smaller than a chunk, than a batch, than a row's values: only slower."""
    order = np.random.default_rng(3).integers(0, ROWS, 300)
    for some in (paths[:1], paths[1:]):
        view = StoreView(some)
        view.cache_bytes = cache_bytes
        assert cases.same_block(view.take(order), BLOCK.take(order))
        cache = view._open().cache
        assert cache._bytes <= cache_bytes
        assert cache._bytes == sum(len(array) for array, _ in cache._held.values())


def test_batches_are_gathered_in_bounded_memory(tmp_path: Path) -> None:
    """400 chunks of 100 kB each in one batch, 4 MB of cache: nowhere near the 40 MB of all of them."""
    import tracemalloc

    x = np.arange(400 * 10 * 1250, dtype=np.int64).reshape(4000, 1250)
    write(
        tmp_path / "a.zarr",
        Zarr(compress="lz4", chunk=10),
        Block(Schema((Field("x", "int64", (1250,)),)), {"x": x}),
        500,
    )
    view = bigconv.open(tmp_path / "a.zarr")
    view.cache_bytes = 4_000_000
    rows = np.random.default_rng(0).permutation(np.arange(0, 4000, 10))
    tracemalloc.start()
    taken = view.take(rows)["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(taken, x[rows])
    assert peak < taken.nbytes + 3 * 4_000_000


def test_many_threads(paths: list[Path]) -> None:
    """Batches that share chunks, in a cache that holds few of them."""
    view = StoreView(paths[1:])
    view.cache_bytes = 4000
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(12):
            order = rng.integers(0, ROWS, 40)
            if not cases.same_block(view.take(order), BLOCK.take(order)):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_no_chunk_by_two_threads_at_once() -> None:
    """The second waits for the first; where the first fails, it tries itself."""
    begun, go, decoded = threading.Event(), threading.Event(), []

    class Slow(Frames):
        def decode(self, numbers, into):  # type: ignore[no-untyped-def]
            decoded.append(threading.current_thread().name)
            begun.set()
            assert go.wait(30)
            if len(decoded) == 1:
                raise IncompleteStore("the first one fails")
            into(0, 8)[:] = 7

    cache, part = Cache(100), Slow("part", lambda numbers: (numbers, numbers), 8)
    results: dict[str, object] = {}

    def ask(name: str) -> None:
        try:
            hold: Hold = []
            cache.decoded(part, np.array([5]), hold)
            results[name] = hold[0].tolist()
        except IncompleteStore as error:
            results[name] = str(error)

    threads = [threading.Thread(target=ask, args=(name,), name=name) for name in ("one", "two")]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    assert decoded == ["one"]
    go.set()
    for thread in threads:
        thread.join(30)
    assert results == {"one": "the first one fails", "two": [7] * 8}
    assert decoded == ["one", "two"]
    assert cache._busy == set()


def _take(view: StoreView, queue: multiprocessing.Queue) -> None:
    order = np.arange(ROWS)[::-1]
    queue.put(cases.same_block(view.take(order), BLOCK.take(order)))


@pytest.mark.parametrize("method", ["fork"])
def test_after_a_fork(paths: list[Path], method: str) -> None:
    """The parent has decoded with its threads before; the child has none of them."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    view = StoreView(paths[:1])
    view.take(np.arange(ROWS))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_take, args=(view, queue))
    process.start()
    assert queue.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0


# -- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2])
def test_windows_over_rows_and_documents(paths: list[Path], parts: int) -> None:
    view = StoreView(paths[:1] if parts == 1 else paths[1:])
    over_rows = WindowView(view, ["x"], Sliding(30, 7))
    starts = np.arange(len(over_rows)) * 7
    assert np.array_equal(over_rows[:]["x"], np.stack([BLOCK["x"][a : a + 30] for a in starts]))
    inside = WindowView(view, ["tokens"], Sliding(3))
    expected = [row[a : a + 3] for row in BLOCK["tokens"] for a in range(len(row) - 2)]
    assert np.array_equal(inside[:]["tokens"], np.stack(expected))
    across = WindowView(view, ["tokens"], Sliding(50, 20), cross_documents=True)
    flat = BLOCK["tokens"].values
    assert np.array_equal(across[:]["tokens"], np.stack([flat[a : a + 50] for a in range(0, len(flat) - 49, 20)]))


def test_rows_that_cross_chunks(tmp_path: Path) -> None:
    """Ragged rows of several chunks each, and of none."""
    field = Field("x", "float64", (None,))
    rows = [np.arange(n, dtype=float) + n for n in (0, 30_000, 1, 0, 9_000, 8192, 0)]
    for suffix, store in STORES.items():
        write(tmp_path / f"a{suffix}", store, Block(Schema((field,)), {"x": Ragged.of(rows, field)}), 3)
        for cache_bytes in (100, 1 << 20):
            view = bigconv.open(tmp_path / f"a{suffix}")
            view.cache_bytes = cache_bytes
            for order in ([1, 0, 4, 1], [6], [5, 2, 3, 1]):
                assert cases.same(view.take(order)["x"], Ragged.of([rows[i] for i in order], field))


def test_rows_compressed_together(stores: dict[str, list[Path]]) -> None:
    assert bigconv.open(stores[".h5"][0]).select(["x"]).chunk_rows == 8
    assert bigconv.open(stores[".lmdb"][0]).chunk_rows == 1
    whole = bigconv.open(stores[".zarr"][0])
    assert whole.select(["x"]).chunk_rows == 8
    per_row = BLOCK["tokens"].lengths.mean()
    assert whole.select(["tokens"]).chunk_rows == int(200 / per_row)  # 400 bytes of values a chunk
    assert whole.chunk_rows == -(-int(200 / per_row) // 8) * 8


# -- read-ahead ------------------------------------------------------------------------------------------------------


def test_stretches_are_whole_pages_without_overlap() -> None:
    page = mmap.PAGESIZE
    starts = np.array([5 * page + 7, 100 * page, 5 * page, 6 * page - 1, 101 * page - 1, 3 * page])
    nbytes = np.array([10, 1, page, 2, 1, page])
    assert stretches(starts, nbytes).tolist() == [[3 * page, page], [5 * page, 2 * page], [100 * page, page]]


def test_what_is_asked_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "MOST_BYTES", 10 * mmap.PAGESIZE)
    starts = np.arange(100, 200, 2) * mmap.PAGESIZE
    assert stretches(starts, np.full(50, 1))[:, 1].sum() == 10 * mmap.PAGESIZE


def test_many_stretches_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one by one, where the kernel doesn't take several; either way it says when one isn't mapped."""
    calls = readahead._calls()
    if calls is None:
        pytest.skip("no madvise here")
    memory = mmap.mmap(-1, 6000 * mmap.PAGESIZE)
    start = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    pairs = stretches(start + np.arange(0, 6000, 2) * mmap.PAGESIZE, np.full(3000, 10))
    bad = np.append(pairs, [[mmap.PAGESIZE, mmap.PAGESIZE]], 0)
    assert len(pairs) == 3000
    assert [calls[0](pairs), calls[0](bad)] == [True, False]

    def refused(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused)
    assert [calls[0](pairs), calls[0](bad)] == [True, False]


def test_asks_for_what_is_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at a few pages; seldom while all are there; and not for a while once somebody had to wait."""
    faults, there, looked, now = [0], [True], [0], [0.0]
    usage = lambda _: type("Usage", (), {"ru_majflt": faults[0]})  # noqa: E731
    monkeypatch.setattr(readahead.resource, "getrusage", usage)

    def mincore(address: int, length: int, state: int) -> int:
        assert (address % mmap.PAGESIZE, length) == (0, 1)
        looked[0] += 1
        now[0] += 20e-6
        ctypes.c_ubyte.from_address(state).value = there[0]
        return 0

    monkeypatch.setattr(readahead, "_calls", lambda: (lambda *_: 0, mincore))
    monkeypatch.setattr(readahead.time, "perf_counter", lambda: now[0])
    ahead = ReadAhead()
    sample = [(np.array([8 * mmap.PAGESIZE + 5]), np.array([10]))]

    def asked(batches: int, seconds: float) -> list[bool]:
        """Of batches that take so long each."""
        found = []
        for _ in range(batches):
            found.append(ahead.wanted(lambda: sample))
            now[0] += seconds
        return found

    assert not any(asked(100, 60e-6))
    assert looked[0] == 3  # 6 ms
    there[0] = False
    assert not all(asked(20, 100e-6))  # what was there a moment ago is believed for 2 ms
    assert all(asked(20, 100e-6))
    there[0], looked[0] = True, 0
    assert not any(asked(20, 5e-3))
    assert looked[0] == 20  # slow batches are all looked at
    faults[0] = 1
    assert asked(STRETCH + 3, 60e-6) == [True] * (STRETCH + 1) + [False] * 2


@pytest.mark.parametrize("packed", [True, False])
def test_every_kind_of_field_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """All addresses are of mapped memory, for the kernel says so where one isn't."""
    compress = "lz4" if packed else "none"
    schema = Schema((*SCHEMA.fields, Field("none", "uint8", (0,)), Field("image", "uint8", (None, None, 3))))
    block = cases.block(schema, 60)
    stores = {".h5": Hdf5(compress), ".zarr": Zarr(500, 9000, compress), ".lmdb": Lmdb(compress)}
    results: list[bool] = []
    original = readahead._calls()
    if original is None:
        pytest.skip("no madvise here")

    def told(pairs: np.ndarray) -> bool:
        assert pairs[:, 0].min() >= LOWEST
        results.append(original[0](pairs))
        return results[-1]

    monkeypatch.setattr(readahead, "_calls", lambda: (told, lambda *_: 0))  # mincore: nothing is there
    for suffix, store in stores.items():
        for part, (a, b) in enumerate([(0, 20), (20, 60)]):
            write(tmp_path / f"{part}{suffix}", store, block.slice(a, b), 9)
        view = StoreView([tmp_path / f"0{suffix}", tmp_path / f"1{suffix}"])
        view.will_need(np.array([59, 3, 20, 19, 3]))
        assert len(results) >= 4
        assert all(results)
        assert cases.same_block(view.take([59, 3]), block.take(np.array([59, 3])))
        results.clear()


def test_items_with_what_comes() -> None:
    assert list(with_coming("abcd", 1)) == [("a", "b"), ("b", "c"), ("c", "d"), ("d", None)]
    assert list(with_coming("abc", 2)) == [("a", "c"), ("b", None), ("c", None)]
    assert list(with_coming("ab", 5)) == [("a", None), ("b", None)]
    assert list(with_coming("", 2)) == []

    def failing() -> Iterator[str]:
        yield from "abc"
        raise OSError("no more")

    given = with_coming(failing(), 2)
    assert [next(given)[0] for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(OSError, match="no more"):
        next(given)
