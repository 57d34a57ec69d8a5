"""Windows against a loop in plain Python over plain numpy arrays."""

from __future__ import annotations

import itertools
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.block import Block, Ragged
from bigconv.errors import IncompleteStore, RowError, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.memmap import Memmap, MemmapReader
from bigconv.stores.memory import Memory
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases
from bigconv.testing.store_suite import opened, write
from bigconv.view import bound, open_parts, runs
from bigconv.view.memory import overlay_runs
from bigconv.view.table import StoreView
from bigconv.view.windows import Sliding, Windows, WindowView, changes

REPEATABLE = settings(derandomize=True, deadline=None, database=None)
ROWS = 61
SCHEMA = Schema(
    (
        Field("label", "int64", (), "label"),
        Field("x", "float32", (3,)),
        Field("tokens", "uint16", (None,), "tokens"),
        Field("kinds", "uint8", (None, 2)),
        Field("subject", "uint8", (None,), "text"),
        Field("run", "int16"),
        Field("image", "uint8", (None, None, 3)),
    )
)
# chunks of a few items, shards of a few chunks: windows cross both
STORES = {
    "memmap": Memmap(),
    "hdf5": Hdf5(),
    "lmdb": Lmdb(),
    "zarr": Zarr(chunk_bytes=24, shard_bytes=160),
    "wide zarr": Zarr(chunk_bytes=24, shard_bytes=400),
}
SEVERAL = {
    "three stores": {"zarr": (0, 20), "lmdb": (20, 23), "memmap": (23, ROWS)},
    "lmdb shards": {"1.lmdb": (0, 20), "2.lmdb": (20, 23), "3.lmdb": (23, ROWS)},
    "memmap shards": {"1.memmap": (0, 20), "2.memmap": (20, 23), "3.memmap": (23, 23), "4.memmap": (23, ROWS)},
    "zarr shards": {"1.zarr": (0, 23), "2.zarr": (23, ROWS)},
    "unlike zarr shards": {"1.zarr": (0, 23), "2.wide zarr": (23, ROWS)},
}
WAYS = [*STORES, "zarr of many chunks", "decoded", *SEVERAL]


def example_block() -> Block:
    rng = np.random.default_rng(5)
    lengths = rng.choice([0, 0, 1, 2, 5, 9, 40], ROWS)
    tokens = SCHEMA["tokens"]
    names = [b"", b"P1", b"P2", b"P22"]
    subjects = [np.frombuffer(names[i], np.uint8) for i in np.repeat(rng.integers(0, 4, ROWS), 3)[:ROWS]]
    columns: dict[str, Any] = {
        "label": np.arange(ROWS) * 10,
        "x": cases.values("float32", (ROWS, 3), rng),
        "tokens": Ragged.of([rng.integers(0, 60000, n).astype(np.uint16) for n in lengths], tokens),
        "kinds": Ragged.of([rng.integers(0, 255, (n, 2)).astype(np.uint8) for n in lengths], SCHEMA["kinds"]),
        "subject": Ragged.of(subjects, SCHEMA["subject"]),
        "run": np.repeat(rng.integers(0, 3, ROWS), rng.integers(1, 9, ROWS))[:ROWS].astype(np.int16),
        "image": Ragged.of([np.zeros((2, 2, 3), np.uint8)] * ROWS, SCHEMA["image"]),
    }
    return Block(SCHEMA, columns)


BLOCK = example_block()


@pytest.fixture(scope="module", params=WAYS)
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreView]:
    folder = tmp_path_factory.mktemp("windows")
    with pytest.MonkeyPatch.context() as patch:
        if request.param in SEVERAL:
            paths = []
            for number, (name, (a, b)) in enumerate(SEVERAL[request.param].items()):
                paths.append(folder / f"{number}.{name}")
                write(paths[-1], STORES[name.split(".")[-1]], BLOCK.slice(a, b), 16)
            yield StoreView(paths)
            return
        name = {"decoded": "memmap", "zarr of many chunks": "wide zarr"}.get(request.param, request.param)
        write(folder / "store", STORES[name], BLOCK, 16)
        if request.param == "zarr of many chunks":  # too many for their addresses to be kept
            patch.setattr(bound, "KEPT_CHUNKS", 0)
        if request.param == "decoded":  # as a compressed store: nothing to map
            patch.setattr(MemmapReader, "locate", lambda self: None)
        yield StoreView([folder / "store"])


def windows_of(items: int, way: Sliding) -> list[tuple[int, int]]:
    """First item and number of items of each window of one segment, by walking along it."""
    found = []
    for start in itertools.count(0, way.stride):
        places = [start + k * way.dilation for k in range(way.length + way.horizon)]
        held = sum(p < items for p in places)
        if held == len(places):
            found.append((start, way.length))
        elif way.drop_partial or not held:
            return found
        elif not found or found[-1][0] + way.span < items:
            return [*found, (start, held)]
        else:
            return found
    raise AssertionError


@st.composite
def slidings(draw: st.DrawFn) -> Sliding:
    drop = draw(st.booleans())
    return Sliding(
        draw(st.integers(1, 12)),
        draw(st.integers(1, 15)),
        draw(st.integers(0, 4)) if drop else 0,
        draw(st.integers(1, 4)),
        drop,
    )


# -- arithmetic ----------------------------------------------------------------------------------------------------


@settings(REPEATABLE)
@given(st.lists(st.integers(0, 60), max_size=12), slidings(), st.integers(0, 100))
def test_windows_are_those_of_a_walk(lengths: list[int], way: Sliding, first: int) -> None:
    """Whatever the segments, empty ones among them: each window once, in order, none across a bound."""
    bounds = first + np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    windows = Windows(way, bounds)
    expected = [
        (segment, int(bounds[segment]) + start, held)
        for segment, length in enumerate(lengths)
        for start, held in windows_of(length, way)
    ]
    assert len(windows) == len(expected)
    numbers = np.arange(len(windows))
    segment, start = windows.locate(numbers)
    held = windows.held(segment, start)
    assert list(zip(segment.tolist(), start.tolist(), held.tolist(), strict=True)) == expected
    shuffled = np.random.default_rng(0).permutation(numbers)
    assert np.array_equal(windows.locate(shuffled)[1], start[shuffled])


@settings(REPEATABLE)
@given(st.lists(st.sampled_from([0, 1, 3, 1000, 100_000]), min_size=1, max_size=300), st.integers(1, 50))
def test_documents_of_very_different_sizes(lengths: list[int], stride: int) -> None:
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    windows = Windows(Sliding(3, stride), bounds)
    some = np.unique(np.linspace(0, max(0, len(windows) - 1), 50).astype(np.int64))[: len(windows)]
    segment, start = windows.locate(some)
    counts = [max(0, (n - 3) // stride + 1) for n in lengths]
    owner = np.searchsorted(np.cumsum(counts), some, side="right")
    assert np.array_equal(segment, owner)
    assert np.array_equal(start, bounds[owner] + (some - (np.cumsum(counts) - counts)[owner]) * stride)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be a whole number from 1 to 1073741824, got 0"),
        ({"length": 5, "stride": 0}, "stride .* from 1 .* got 0"),
        ({"length": 5, "horizon": -1}, "horizon .* from 0 .* got -1"),
        ({"length": 5, "dilation": 1.5}, "dilation .* got 1.5"),
        ({"length": True}, "length .* got True"),
        ({"length": 10**30}, "length must be"),
        ({"length": 5, "horizon": 1, "drop_partial": False}, "without their horizon"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sliding(**options)


# -- against numpy -------------------------------------------------------------------------------------------------


def segments(kind: str) -> list[tuple[int, int]]:
    """Bounds of the segments that windows stay in."""
    offsets = BLOCK["tokens"].offsets.tolist()
    runs = [list(rows) for _, rows in itertools.groupby(range(ROWS), lambda i: subject(i))]
    if kind == "documents":
        return list(itertools.pairwise(offsets))
    if kind == "stream":
        return [(0, offsets[-1])]
    if kind == "grouped stream":
        return [(offsets[rows[0]], offsets[rows[-1] + 1]) for rows in runs]
    if kind == "grouped rows":
        return [(rows[0], rows[-1] + 1) for rows in runs]
    return [(0, ROWS)]


def subject(row: int) -> bytes:
    return bytes(BLOCK["subject"][row])


OPTIONS: dict[str, dict[str, Any]] = {
    "documents": {},
    "stream": {"cross_documents": True},
    "grouped stream": {"cross_documents": True, "group": "subject"},
    "grouped rows": {"group": "subject"},
    "rows": {},
}


@pytest.mark.parametrize("kind", OPTIONS)
@settings(REPEATABLE, max_examples=15)
@given(data=st.data())
def test_every_window_is_numpys(view: StoreView, kind: str, data: st.DataObject) -> None:
    """All windows, shuffled, of two fields at once: bit by bit what slicing the plain arrays gives."""
    way = data.draw(slidings())
    names = ("x", "run") if "rows" in kind else ("tokens", "kinds")
    plain = {n: c.values if isinstance(c := BLOCK[n], Ragged) else c for n in names}
    windows = WindowView(view, names, way, names[:1] if way.horizon else (), **OPTIONS[kind])
    expected = [(a + start, held) for a, b in segments(kind) for start, held in windows_of(b - a, way)]
    assert len(windows) == len(expected)
    order = np.random.default_rng(1).permutation(len(expected))
    block = windows.take(order)
    for name in names:
        got = block[name]
        assert got.dtype == plain[name].dtype
        assert got.flags.writeable
        for row, number in enumerate(order):
            start, held = expected[number]
            there = plain[name][start : start + held * way.dilation : way.dilation][:held]
            assert got[row, :held].tobytes() == there.tobytes()
            assert not got[row, held:].any()
    if way.horizon:
        target = block[f"{names[0]}_target"]
        assert target.shape[:2] == (len(order), way.horizon)
        for row, number in enumerate(order):
            start = expected[number][0] + way.length * way.dilation
            assert target[row].tobytes() == plain[names[0]][start :: way.dilation][: way.horizon].tobytes()
    if not way.drop_partial:
        assert block["length"].tolist() == [expected[n][1] for n in order]


@pytest.mark.parametrize("cross", [False, True])
def test_every_byte_of_large_batches_is_written(view: StoreView, cross: bool) -> None:
    """Batches that threads may share, into memory that held something else: nothing of it is left."""
    values, given = BLOCK["tokens"].values, []

    def room(name: str, nbytes: int) -> np.ndarray:
        given.append(np.full(nbytes, 0xAB, np.uint8))
        return given[-1]

    length = len(values) - 3 if cross else 37
    windows = WindowView(view, ["tokens"], Sliding(length), cross_documents=cross)
    numbers = np.arange(-(-300_000 // length)) * 7 % len(windows)
    got = windows.take(numbers, room)["tokens"]
    _, start = windows.locate(numbers)
    assert np.array_equal(got, values[start[:, None] + np.arange(length)])
    assert len(given) == 1
    assert np.shares_memory(got, given[0])


@pytest.mark.parametrize("stores", ["one lmdb", "memmaps"])
def test_windows_up_to_the_end_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stores: str) -> None:
    """Windows are copied as if each lay in one piece: those that would then end behind their file are not."""
    field = Field("t", "uint8", (None,))
    # as records all on one page, which is filled from its end on: the first rows lie last
    rows = [np.arange(n, dtype=np.uint8) for n in (900, 0, 3, 1200, 90, 1500, 1)]
    parts = [rows] if stores == "one lmdb" else [rows[:1], rows[1:5], rows[5:6], rows[6:]]
    for number, part in enumerate(parts):
        block = Block(Schema((field,)), {"t": Ragged.of(part, field)})
        write(tmp_path / str(number), Lmdb() if stores == "one lmdb" else Memmap(), block, 4)
    values, heads = np.concatenate(rows), []

    def spied(out: np.ndarray, at: np.ndarray, starts: np.ndarray, nbytes: np.ndarray, item: int) -> None:
        heads.extend(((at % out.shape[1] == 0) & (nbytes > 0)).nonzero()[0])
        overlay_runs(out, at, starts, nbytes, item)

    monkeypatch.setattr(runs, "overlay_runs", spied)
    view = StoreView([tmp_path / str(number) for number in range(len(parts))])
    for length in (2, 100, 1600, 3000, len(values)):
        got = WindowView(view, ["t"], Sliding(length), cross_documents=True)[:]["t"]
        assert np.array_equal(got, np.lib.stride_tricks.sliding_window_view(values, length))
    assert heads


@pytest.mark.parametrize(("store", "other"), [(Lmdb(), Lmdb(compress="lz4")), (Zarr(), Zarr(compress="lz4"))])
@pytest.mark.parametrize("cross", [False, True])
def test_shards_that_lie_otherwise_when_they_are_opened_again(
    tmp_path: Path, store: Any, other: Any, cross: bool
) -> None:
    """As parts of a remote store do when their local copies had to go."""

    def written(stores: Any) -> None:
        for number, (a, b) in enumerate([(0, 20), (20, ROWS)]):
            shutil.rmtree(tmp_path / str(number), ignore_errors=True)
            write(tmp_path / str(number), stores[number], BLOCK.slice(a, b), 16)

    written([store, store])
    windows = WindowView(StoreView([tmp_path / "0", tmp_path / "1"]), ["tokens"], Sliding(9), cross_documents=cross)
    expected = windows[:]["tokens"]
    for stores in ([other, store], [other, other], [store, store]):
        windows.close()
        written(stores)
        assert np.array_equal(windows[:]["tokens"], expected)


def test_shards_are_opened_once_and_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How shards are gathered is kept while all are open, and never keeps one open that was closed."""
    block = Block(Schema((Field("x", "int64"),)), {"x": np.arange(40)})
    for number in range(4):
        write(tmp_path / str(number), Memmap(), block.slice(10 * number, 10 * number + 10), 4)
    view = StoreView([tmp_path / str(number) for number in range(4)])
    windows = WindowView(view, ["x"], Sliding(15))
    expected = np.lib.stride_tricks.sliding_window_view(np.arange(40), 15)
    assert np.array_equal(windows[:]["x"], expected)
    assert windows._view.gathers("x") is windows._view.gathers("x")
    windows.close()
    monkeypatch.setattr(open_parts, "_files_allowed", lambda: 5)  # a store has two
    assert np.array_equal(windows[:]["x"], expected)
    parts = windows._view._open()
    assert len(parts._held) == 2
    assert not parts.gathers


def test_fields_once_a_window(view: StoreView) -> None:
    """The document's label and text; over rows, those of the last row before the horizon."""
    documents = WindowView(view, ["tokens"], Sliding(3, 2), once=("label", "subject"))
    block = documents[:]
    row, start = documents.locate(np.arange(len(documents)))
    assert block["label"].tolist() == (row * 10).tolist()
    assert [bytes(s) for s in block["subject"]] == [subject(i) for i in row]
    assert np.array_equal(block["tokens"][:, 0], BLOCK["tokens"].values[start])
    over_rows = WindowView(view, ["x"], Sliding(4, 3, horizon=2, dilation=2), ("x",), once=("label",))
    assert over_rows[:]["label"].tolist() == [(start + 6) * 10 for start, _ in windows_of(ROWS, over_rows.sliding)]
    rest = WindowView(view, ["x"], Sliding(50, 50, drop_partial=False), once=("label",))
    assert rest[:]["label"].tolist() == [490, 600]


def test_changes_of_a_group(view: StoreView) -> None:
    for name in ("run", "subject", "x", "image"):
        plain = [row[name] for row in BLOCK]
        differ = [
            i for i in range(ROWS) if i == 0 or np.asarray(plain[i]).tobytes() != np.asarray(plain[i - 1]).tobytes()
        ]
        assert changes(view, name).tolist() == (
            differ if name != "subject" else [i for i in range(ROWS) if i == 0 or plain[i] != plain[i - 1]]
        )


def test_one_window_and_slices(view: StoreView) -> None:
    windows = WindowView(view, ["x"], Sliding(5, 2))
    x = BLOCK["x"]
    assert windows[-1]["x"].tobytes() == x[56:61].tobytes()
    assert len(windows[3:3]) == 0
    assert len(windows[2:9:3]) == 3
    assert np.array_equal(windows[np.array([4])]["x"].view(np.uint32), x[8:13][None].view(np.uint32))
    with pytest.raises(RowError, match="window 29 of 29 windows"):
        windows[29]
    with pytest.raises(RowError, match="window -30 of 29"):
        windows.take([0, -30])


def test_memory_and_pickle(view: StoreView) -> None:
    """What travels to a worker is paths, whatever the number of documents, and it reads the same there."""
    windows = WindowView(view, ["tokens"], Sliding(2))
    expected = windows[:]
    size = len(pickle.dumps(windows))
    assert size < 12_000
    again = pickle.loads(pickle.dumps(windows))
    assert np.array_equal(again[:]["tokens"], expected["tokens"])
    assert len(pickle.dumps(again)) <= size + 100


def test_batches_are_their_own(view: StoreView) -> None:
    windows = WindowView(view, ["tokens"], Sliding(4, 1), cross_documents=True)
    first = windows.take([5, 5, 6])
    first["tokens"][0] = 0
    assert np.array_equal(first["tokens"][1], BLOCK["tokens"].values[5:9])
    assert np.array_equal(windows.take([5])["tokens"][0], BLOCK["tokens"].values[5:9])


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "options", "error", "message"),
    [
        (["tokns"], {}, SchemaError, "Did you mean 'tokens'"),
        ([], {}, UsageError, "at least one field"),
        (["x", "tokens"], {}, SchemaError, r"over rows \(as of x\) or inside them \(as of tokens\)"),
        (["tokens", "x"], {}, SchemaError, r"over rows \(as of x\) or inside them \(as of tokens\)"),
        (["image"], {}, SchemaError, "image: rows vary in more than the first axis"),
        (["x", "x"], {}, SchemaError, "field names must differ"),
        (["tokens"], {"group": "run"}, UsageError, "stay inside a row"),
        (["x"], {"group": "rum"}, SchemaError, "Did you mean 'run'"),
        (["x"], {"cross_documents": True}, UsageError, "no documents"),
        (["x"], {"targets": ("x",)}, UsageError, "a target needs a horizon"),
        (["x"], {"once": ("x",)}, SchemaError, "field names must differ"),
        (["tokens"], {"cross_documents": True, "once": ("label",)}, UsageError, "label can't be given once"),
        (["tokens", "subject"], {}, SchemaError, r"row \d+: tokens has \d+ items and subject \d"),
    ],
)
def test_what_does_not_go_together(
    view: StoreView, fields: list[str], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        WindowView(view, fields, Sliding(3), **options)


def test_no_window_fits(view: StoreView) -> None:
    for windows in (WindowView(view, ["x"], Sliding(62)), WindowView(view, ["tokens"], Sliding(41))):
        assert len(windows) == 0
        assert len(windows[:]) == 0
        with pytest.raises(RowError, match="window 0 of 0"):
            windows[0]


@pytest.mark.parametrize("name", STORES)
def test_items_of_no_bytes(tmp_path: Path, name: str) -> None:
    schema = Schema((Field("x", "float32", (0, 3)), Field("y", "int8")))
    block = Block(schema, {"x": np.empty((7, 0, 3), np.float32), "y": np.arange(7, dtype=np.int8)})
    write(tmp_path / "s", STORES[name], block, 4)
    windows = WindowView(StoreView([tmp_path / "s"]), ["x", "y"], Sliding(3, 2), group="x")
    assert windows[:]["x"].shape == (3, 3, 0, 3)
    assert windows[:]["y"].tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]


def test_no_rows(tmp_path: Path) -> None:
    manifest = write(tmp_path / "s", Memory(), BLOCK.slice(0, 0), 4)
    view = StoreView.of([opened(tmp_path / "s", Memory(), manifest)])
    for name, options in (("x", {"group": "run"}), ("x", {}), ("tokens", {}), ("tokens", {"cross_documents": True})):
        windows = WindowView(view, [name], Sliding(1, drop_partial=False), **options)
        assert len(windows[:]) == len(windows) == 0


def test_offsets_that_skip_values_are_refused(tmp_path: Path) -> None:
    """A stream counts values from the first one: offsets that say otherwise are damage, never other tokens."""
    field = Field("t", "uint8", (None,))
    block = Block(Schema((field,)), {"t": Ragged.of([np.arange(9, dtype=np.uint8)] * 3, field)})
    write(tmp_path / "s", Memmap(), block, 4)
    file = tmp_path / "s" / "t.offsets.npy"
    raw = bytearray(file.read_bytes())
    raw[4096:4104] = (4).to_bytes(8, "little")
    file.write_bytes(raw)
    with pytest.raises(IncompleteStore, match="offsets count 23 values of 27; run inspect --verify"):
        WindowView(StoreView([tmp_path / "s"]), ["t"], Sliding(2))


@pytest.mark.parametrize("length", [-1, 2**59, 2**40])
def test_lengths_that_can_not_be(tmp_path: Path, length: int) -> None:
    """A damaged length in a record: an error, never an address out of the file."""
    field = Field("t", "uint64", (None,))
    block = Block(Schema((field,)), {"t": Ragged.of([np.arange(9, dtype=np.uint64) + 1000] * 3, field)})
    write(tmp_path / "s", Lmdb(), block, 4)
    file = tmp_path / "s" / "data.mdb"
    raw = file.read_bytes()
    record = (72).to_bytes(8, "little") + np.arange(1000, 1009, dtype="<u8").tobytes()
    assert raw.count(record) == 3
    changed = (length * 8 % 2**64).to_bytes(8, "little")
    file.write_bytes(raw.replace(record, changed + record[8:]))
    with pytest.raises(IncompleteStore, match="run inspect --verify"):
        WindowView(StoreView([tmp_path / "s"]), ["t"], Sliding(9))[:1000]


def test_another_file_than_the_one_that_was_looked_at(tmp_path: Path) -> None:
    """Where records lie is worked out once: a process that maps a shorter file later says so."""
    field = Field("t", "uint8", (None,))
    for name, rows in (("s", 2000), ("other", 1)):
        block = Block(Schema((field,)), {"t": Ragged.of([np.arange(9, dtype=np.uint8)] * rows, field)})
        write(tmp_path / name, Lmdb(), block, 1000)
    windows = WindowView(StoreView([tmp_path / "s"]), ["t"], Sliding(2))
    assert windows[0]["t"].tolist() == [0, 1]
    other = StoreView([tmp_path / "other"]).gathers("t")
    found = windows._index.streams["t"]._runs
    assert found is not None
    with pytest.raises(IncompleteStore, match="points out of the file; run inspect --verify"):
        found.copy(other, np.zeros(1, np.int64), 2, np.zeros(1, np.int64), None)


def test_a_store_that_is_gone(tmp_path: Path) -> None:
    field = Field("t", "uint8", (None,))
    block = Block(Schema((field,)), {"t": Ragged.of([np.arange(9, dtype=np.uint8)] * 3, field)})
    write(tmp_path / "s", Memmap(), block, 4)
    windows = WindowView(StoreView([tmp_path / "s"]), ["t"], Sliding(2))
    state = pickle.dumps(windows)
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(IncompleteStore):
        pickle.loads(state).take([0])
