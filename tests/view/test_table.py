"""`StoreView` against the block it was written from: indexing, several stores, pickles, forks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bigconv
from bigconv.block import Block
from bigconv.errors import IncompleteStore, NotAStore, RowError, SchemaError, StoreError, UsageError
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.view.opening import open_store
from bigconv.view.table import StoreView

SCHEMA = Schema(
    (
        Field("image", "uint8", (3, 4, 5), "image", "chw"),
        Field("label", "int64", (), "label"),
        Field("tokens", "uint16", (None,), "tokens"),
        Field("sizes", "float32", (None, None)),
        Field("text", "uint8", (None,), "text"),
    )
)
ROWS = 23
BLOCK = cases.block(SCHEMA, ROWS)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The same rows in every format, whole and in three parts, and once in parts of several formats."""
    from bigconv import registry
    from bigconv.testing.store_suite import write

    folder = tmp_path_factory.mktemp("stores")

    def put(name: str, block: Block) -> Path:
        path = folder / name
        write(path, registry.load("store", registry.store_for(path))(), block, 5)
        return path

    cuts = [(0, 9), (9, 10), (10, ROWS)]
    found = {}
    for suffix in (".mmap", ".h5", ".lmdb", ".zarr"):
        found[suffix] = [put(f"whole{suffix}", BLOCK)]
        found[f"parts {suffix}"] = [put(f"part{i}{suffix}", BLOCK.slice(a, b)) for i, (a, b) in enumerate(cuts)]
    found["mixed"] = [found[f"parts {s}"][i] for i, s in enumerate((".lmdb", ".h5", ".zarr"))]
    return found


WAYS = [*(".mmap", ".h5", ".lmdb", ".zarr"), *(f"parts {s}" for s in (".mmap", ".h5", ".lmdb", ".zarr")), "mixed"]


@pytest.fixture(params=WAYS)
def view(request: pytest.FixtureRequest, stores: dict[str, list[Path]]) -> StoreView:
    return StoreView(stores[request.param])


SHARED = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def oracle(rows: list[int]) -> Block:
    return BLOCK.take(np.array(rows, np.int64))


# -- indexing ------------------------------------------------------------------------------------------------------


def test_a_row_is_a_dict(view: StoreView) -> None:
    assert len(view) == ROWS
    for i in (0, 9, 22, -1, -23, np.int8(-2), np.uint64(10), np.int64(3)):
        row = view[i]
        expected = BLOCK.row(int(i) % ROWS)
        assert list(row) == list(SCHEMA.names)
        assert row["text"] == expected["text"]
        assert isinstance(row["text"], str)
        for name in ("image", "label", "tokens", "sizes"):
            assert np.asarray(row[name]).dtype == np.asarray(expected[name]).dtype
            np.testing.assert_array_equal(row[name], expected[name])


def test_slices_are_python_slices(view: StoreView) -> None:
    for key in (
        slice(None),
        slice(3, 12),
        slice(None, None, -1),
        slice(20, 2, -3),
        slice(-5, None),
        slice(0, 100, 7),
        slice(5, 5),
        slice(12, 3),
        slice(-100, 100),
        slice(np.int64(2), np.int64(4)),
    ):
        block = view[key]
        assert isinstance(block, Block)
        assert cases.same_block(block, oracle(list(range(ROWS))[key])), key


def test_lists_of_rows_of_every_kind(view: StoreView) -> None:
    rows = [5, -1, 9, 9, 0, 22, 10]
    expected = oracle([r % ROWS for r in rows])
    for way in (rows, tuple(rows), np.array(rows), np.array(rows, np.int8), [np.int64(r) for r in rows]):
        assert cases.same_block(view.take(way), expected)
        assert cases.same_block(view[way], expected)
    assert cases.same_block(view.take(range(3, 9)), oracle([3, 4, 5, 6, 7, 8]))
    assert cases.same_block(view.take(np.array([3, 4], ">u2")), oracle([3, 4]))
    assert cases.same_block(view.take(np.arange(20)[::-3]), oracle(list(range(20))[::-3]))


@pytest.mark.parametrize("nothing", [[], (), np.array([], np.int64), np.array([], np.float64), range(0), slice(4, 4)])
def test_no_rows(view: StoreView, nothing: object) -> None:
    block = view[nothing]
    assert len(block) == 0
    block.validate()
    assert cases.same_block(block, oracle([]))


def test_masks(view: StoreView) -> None:
    mask = np.arange(ROWS) % 3 == 0
    for way in (mask, mask.tolist()):
        assert cases.same_block(view[way], oracle(np.flatnonzero(mask).tolist()))
    assert len(view[np.zeros(ROWS, bool)]) == 0
    for wrong in (mask[:-1], np.ones(ROWS + 1, bool), np.ones((ROWS, 1), bool), np.array([], bool)):
        with pytest.raises(RowError, match="a mask of shape"):
            view[wrong]


@pytest.mark.parametrize("row", [ROWS, -ROWS - 1, 10**9, -(10**18)])
def test_rows_that_are_not_there(view: StoreView, row: int) -> None:
    """An IndexError, as of a list, which ends a `for` over the old protocol; it names row, rows and store."""
    for act in (lambda: view[row], lambda: view.take([0, row]), lambda: view[np.array([row, 0])]):
        with pytest.raises(IndexError, match=f"row {row} of {ROWS} rows: .*(whole|part0)"):
            act()


@pytest.mark.parametrize("row", [[2**63], [2**70], np.array([2**64 - 1], np.uint64), [-(2**70)]], ids=str)
def test_rows_beyond_64_bits(stores: dict[str, list[Path]], row: object) -> None:
    with pytest.raises(RowError):
        StoreView(stores[".mmap"]).take(row)


@pytest.mark.parametrize(
    "rows", [[0.0], [1.5], ["a"], [None], [[1]], np.array(3), np.zeros((2, 2), int), "image", {1, 2}, 1.0, None, ...]
)
def test_what_is_no_row_number(stores: dict[str, list[Path]], rows: object) -> None:
    with pytest.raises(RowError, match="list of integers"):
        StoreView(stores[".mmap"])[rows]


@given(st.sampled_from(WAYS), st.lists(st.integers(-ROWS, ROWS - 1), max_size=60))
@settings(SHARED, max_examples=120)
def test_take_is_what_numpy_takes(stores: dict[str, list[Path]], way: str, rows: list[int]) -> None:
    assert cases.same_block(StoreView(stores[way]).take(rows), oracle([r % ROWS for r in rows]))


@given(st.sampled_from(WAYS), st.slices(ROWS))
@settings(SHARED, max_examples=60)
def test_slices_are_what_a_list_slices(stores: dict[str, list[Path]], way: str, key: slice) -> None:
    assert cases.same_block(StoreView(stores[way])[key], oracle(list(range(ROWS))[key]))


@given(st.sampled_from(WAYS), st.integers(0, ROWS + 3), st.integers(0, ROWS + 3), st.integers(1, 9))
@settings(SHARED, max_examples=60)
def test_blocks_are_the_rows_in_order(
    stores: dict[str, list[Path]], way: str, start: int, stop: int, rows: int
) -> None:
    view = StoreView(stores[way])
    blocks = list(view.blocks(start, stop, rows))
    assert all(0 < len(block) <= rows for block in blocks)
    expected = list(range(ROWS))[start:stop]
    assert sum(map(len, blocks)) == len(expected)
    if expected:
        assert cases.same_block(Block.concat(blocks), oracle(expected))


def test_iterating_gives_rows(view: StoreView) -> None:
    assert [row["text"] for row in view] == [row["text"] for row in BLOCK]
    assert [row["label"] for row in view] == [row["label"] for row in BLOCK]


# -- fields --------------------------------------------------------------------------------------------------------


def test_select(view: StoreView) -> None:
    some = view.select(["text", "label"])
    assert some.schema.names == ("text", "label")
    assert list(some[0]) == ["text", "label"]
    assert len(some) == ROWS
    taken = some.take([3, 1])
    assert cases.same(taken["label"], oracle([3, 1])["label"])
    with pytest.raises(SchemaError, match="unknown field 'image'"):
        taken["image"]
    assert view.schema.names == SCHEMA.names  # unchanged
    assert cases.same_block(view.take([2]), oracle([2]))
    with pytest.raises(SchemaError, match="Did you mean 'label'"):
        view.select(["lable"])


def test_fields_when_opened(stores: dict[str, list[Path]]) -> None:
    view = bigconv.open(stores[".h5"][0], fields=["label"])
    assert view.schema.names == ("label",)
    with pytest.raises(SchemaError, match="unknown field 'nothing'"):
        bigconv.open(stores[".h5"][0], fields=["nothing"])
    for fields in ([], ["label", "label"]):
        with pytest.raises(SchemaError):
            bigconv.open(stores[".h5"][0], fields=fields)


def test_sizes(view: StoreView) -> None:
    for f in SCHEMA:
        column = BLOCK[f.name]
        values = column if isinstance(column, np.ndarray) else column.values
        assert view.field_bytes(f.name) == values.nbytes


# -- memory --------------------------------------------------------------------------------------------------------


def test_what_is_taken_is_writable_and_its_own(view: StoreView) -> None:
    first = view.take([1, 2])
    for column in first.columns.values():
        values = column if isinstance(column, np.ndarray) else column.values
        values[...] = 0
    view[3]["image"][...] = 0
    assert cases.same_block(view.take([1, 2, 3]), oracle([1, 2, 3]))


def test_runs_can_not_be_written_through(view: StoreView) -> None:
    """Blocks in order may be views of the map: writing is an error, never a changed store or a crash."""
    for block in view.blocks():
        for column in block.columns.values():
            values = column if isinstance(column, np.ndarray) else column.values
            if values.size and not values.flags.owndata and not values.flags.writeable:
                with pytest.raises(ValueError, match="read-only"):
                    values[...] = 0
    assert cases.same_block(view[:], BLOCK)


def test_arrays_outlive_the_view(stores: dict[str, list[Path]]) -> None:
    with StoreView(stores[".mmap"]) as view:
        blocks = list(view.blocks())
        row = view[5]
    del view
    assert cases.same_block(Block.concat(blocks), BLOCK)
    np.testing.assert_array_equal(row["image"], BLOCK["image"][5])


def test_closing_is_not_the_end(view: StoreView) -> None:
    for _ in range(3):
        assert cases.same_block(view.take([4]), oracle([4]))
        view.close()
        view.close()


def test_no_descriptor_is_left(stores: dict[str, list[Path]]) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts file descriptors in /proc")

    def use() -> int:
        for way in WAYS:
            with StoreView(stores[way]) as view:
                view.take([1, 2])
        return len(os.listdir("/proc/self/fd"))

    before = use()
    assert use() == before


# -- several stores ------------------------------------------------------------------------------------------------


def test_paths_of_any_kind(stores: dict[str, list[Path]]) -> None:
    paths = stores["mixed"]
    for given_ in (paths, tuple(paths), list(map(str, paths)), [str(paths[0]), *paths[1:]]):
        assert len(bigconv.open(given_)) == ROWS
    assert len(bigconv.open(str(paths[0]))) == 9
    assert bigconv.open(paths).paths == tuple(paths)
    assert str(paths[0]) in repr(bigconv.open(paths))


def test_the_same_store_twice(stores: dict[str, list[Path]]) -> None:
    view = StoreView(stores[".zarr"] * 2)
    assert len(view) == 2 * ROWS
    assert cases.same_block(view.take([0, ROWS, 2 * ROWS - 1]), oracle([0, 0, ROWS - 1]))


def test_whence(stores: dict[str, list[Path]]) -> None:
    store, inside = StoreView(stores["mixed"]).whence(np.array([0, 8, 9, 10, 22]))
    assert store.tolist() == [0, 0, 1, 2, 2]
    assert inside.tolist() == [0, 8, 0, 0, 12]


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one store"):
        bigconv.open([])
    with pytest.raises(NotAStore, match="missing: no such file or folder"):
        bigconv.open(tmp_path / "missing")
    (tmp_path / "missing.partial").mkdir()
    with pytest.raises(NotAStore, match=r"missing: not there yet: \S*missing\.partial holds work .*\nThe command that"):
        bigconv.open(tmp_path / "missing")
    (tmp_path / "out.h5").write_bytes(b"no store")
    with pytest.raises(NotAStore, match=r"out\.h5: not a store"):
        bigconv.open(tmp_path / "out.h5")
    (tmp_path / "raw").mkdir()
    with pytest.raises(NotAStore, match="bigconv convert"):
        bigconv.open(tmp_path / "raw")


def test_names_that_the_system_refuses(tmp_path: Path) -> None:
    """Too long, or with a NUL: an error of ours, not a traceback."""
    for name in ("x" * 300, "x\0y", "x" * 5000):
        with pytest.raises(StoreError):
            open_store(tmp_path / name)


def test_a_store_of_another_format_inside(stores: dict[str, list[Path]], tmp_path: Path) -> None:
    """A manifest from elsewhere makes no store of these files."""
    import shutil

    shutil.copytree(stores[".mmap"][0], tmp_path / "a.mmap")
    shutil.copy(stores[".lmdb"][0] / "manifest.json", tmp_path / "a.mmap" / "manifest.json")
    with pytest.raises(IncompleteStore):
        open_store(tmp_path / "a.mmap")


# -- processes and threads -----------------------------------------------------------------------------------------


def test_pickles(view: StoreView) -> None:
    """Small, before and after reading, and readable again."""
    raw = pickle.dumps(view)
    view.take([1])
    assert len(pickle.dumps(view)) <= len(raw) + 50
    again = pickle.loads(pickle.dumps(view))
    assert again.schema == view.schema
    assert cases.same_block(again.take([7, 3]), oracle([7, 3]))
    picked = pickle.loads(pickle.dumps(view.select(["label"])))
    assert picked.schema.names == ("label",)


def test_pickles_do_not_hold_rows(stores: dict[str, list[Path]], make_store) -> None:
    schema = Schema((Field("x", "uint8", (1000,)),))
    view = StoreView([make_store(cases.block(schema, 2000), ".mmap")])
    view.take([1])
    assert len(pickle.dumps(view)) < 20_000


def _child(view: StoreView, rows: list[int], connection: object) -> None:
    connection.send((cases.same_block(view.take(rows), oracle(rows)), cases.same_block(view[:], BLOCK)))
    connection.close()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.parametrize("way", [".h5", ".lmdb", "mixed"])
def test_fork_after_reading(stores: dict[str, list[Path]], way: str) -> None:
    """As a DataLoader's workers: what the parent has open isn't used by the child, and both read on."""
    view = StoreView(stores[way])
    assert cases.same_block(view.take([0, 1]), oracle([0, 1]))
    context = multiprocessing.get_context("fork")
    ends = []
    for rows in ([22, 3], [4, 4, 9]):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(view, rows, there))
        process.start()
        there.close()
        ends.append((process, here))
    assert cases.same_block(view.take([5, 6]), oracle([5, 6]))
    for process, here in ends:
        assert here.poll(60)
        assert here.recv() == (True, True)
        process.join(60)
        assert process.exitcode == 0
    assert cases.same_block(view[:], BLOCK)


def test_in_a_fresh_process(stores: dict[str, list[Path]], tmp_path: Path) -> None:
    """Pickled here, read there, from another working directory."""
    view = StoreView(stores["mixed"])
    (tmp_path / "view").write_bytes(pickle.dumps(view))
    program = "import pickle; v = pickle.load(open('view', 'rb')); print(v.take([22, 0])['label'].tolist())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.stdout == f"{oracle([22, 0])['label'].tolist()}\n", result.stderr


def test_threads_share_a_view(view: StoreView) -> None:
    wrong = [0] * 4
    start = threading.Barrier(4)

    def run(seed: int) -> None:
        start.wait()
        for rows in np.random.default_rng(seed).integers(0, ROWS, (20, 9)):
            wrong[seed] += not cases.same_block(view.take(rows), BLOCK.take(rows))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0] * 4
