"""Parquet and Arrow: pyarrow writes, pyarrow is the oracle; every type, every cut, and files that are damaged."""

from __future__ import annotations

import datetime
import decimal
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from _rows import fields, read, values
from pyarrow import feather, ipc, parquet

from bigconv.conversion.request import Request
from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.sources import batches
from bigconv.sources.arrow import ArrowIpc
from bigconv.sources.base import Reject, Span
from bigconv.sources.parquet import Parquet
from bigconv.testing.source_suite import Made, SourceSuite

Source = type[Parquet] | type[ArrowIpc]


def to_parquet(table: pa.Table, path: Path, rows: int = 1000) -> Path:
    parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=rows)
    return path.with_suffix(".parquet")


def to_file(table: pa.Table, path: Path, rows: int = 1000) -> Path:
    with ipc.new_file(str(path.with_suffix(".arrow")), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path.with_suffix(".arrow")


def to_stream(table: pa.Table, path: Path, rows: int = 1000) -> Path:
    with ipc.new_stream(str(path.with_suffix(".arrows")), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path.with_suffix(".arrows")


def to_feather(table: pa.Table, path: Path, rows: int = 1000) -> Path:
    feather.write_feather(table, str(path.with_suffix(".feather")), compression="lz4", chunksize=rows)
    return path.with_suffix(".feather")


WRITERS: list[tuple[Callable[..., Path], Source]] = [
    (to_parquet, Parquet),
    (to_file, ArrowIpc),
    (to_stream, ArrowIpc),
    (to_feather, ArrowIpc),
]
formats = pytest.mark.parametrize(("write", "source"), WRITERS, ids=[w.__name__ for w, _ in WRITERS])


def sample(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "n": pa.array(rng.integers(0, 99, rows), pa.int32()),
            "x": rng.standard_normal(rows),
            "word": [f"é{i}" * (i % 3) for i in range(rows)],
            "l": [list(range(i % 4)) for i in range(rows)],
        }
    )


def expected(table: pa.Table) -> list[dict[str, Any]]:
    return [
        {"n": np.int32(r["n"]), "x": np.float64(r["x"]), "word": r["word"], "l": np.array(r["l"], np.int64)}
        for r in table.to_pylist()
    ]


class TestParquet(SourceSuite):
    source = "parquet"
    file_a_row = False
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.batches.SPAN_BYTES": 500}

    def make(self, folder: Path) -> Made:
        tables = [sample(30, 1), sample(7, 2), sample(50, 3)]
        for name, table, rows in zip("abc", tables, (10, 100, 50), strict=True):
            to_parquet(table, folder / name, rows)
        return [folder], {}, [row for table in tables for row in expected(table)]


class TestArrow(SourceSuite):
    source = "arrow"
    file_a_row = False
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.batches.SPAN_BYTES": 500}

    def make(self, folder: Path) -> Made:
        tables = [sample(30, 1), sample(7, 2), sample(50, 3)]
        writers = (to_file, to_feather, to_stream)
        paths = [w(t, folder / n, 20) for w, t, n in zip(writers, tables, "abc", strict=True)]
        return paths, {}, [row for table in tables for row in expected(table)]


def arrays() -> dict[str, tuple[pa.Array, str, tuple[int | None, ...], list[Any]]]:
    """Name → array, dtype and shape of its field, and the values that are expected."""
    day, second = datetime.date(2020, 1, 2), datetime.datetime(1970, 1, 1, 0, 0, 3)
    pairs = pa.list_(pa.int16(), 2)
    out: dict[str, Any] = {}
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        info = np.iinfo(name)
        out[name] = (pa.array([info.min, 1, info.max], name), name, (), [info.min, 1, info.max])
    for name in ("float16", "float32", "float64"):
        out[name] = (pa.array(np.array([0.5, -np.inf, -2], name)), name, (), [0.5, -np.inf, -2])
    text = ["a", "", "☃"]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        out[f"text {kind}"[:20]] = (pa.array(text, pa.string()).cast(kind), "uint8", (None,), text)
    raw = [b"a", b"", b"\xff\x00"]
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        out[str(kind)] = (pa.array(raw, kind), "uint8", (None,), [list(r) for r in raw])
    return out | {
        "bool": (pa.array([True, False, True]), "bool", (), [True, False, True]),
        "date32": (pa.array([day] * 3, pa.date32()), "int64", (), [18263] * 3),
        "time32": (pa.array([1, 2, 3], pa.time32("ms")), "int64", (), [1, 2, 3]),
        "time64": (pa.array([1, 2, 3], pa.time64("ns")), "int64", (), [1, 2, 3]),
        "duration": (pa.array([1, 2, 3], pa.duration("us")), "int64", (), [1, 2, 3]),
        "ts ms": (pa.array([second] * 3, pa.timestamp("ms")), "int64", (), [3000] * 3),
        "ts ns zone": (pa.array([second] * 3, pa.timestamp("ns", "UTC")), "int64", (), [3_000_000_000] * 3),
        "decimal": (pa.array([decimal.Decimal("1.25")] * 3), "float64", (), [1.25] * 3),
        "fixed binary": (
            pa.array([b"ab", b"cd", b"ef"], pa.binary(2)),
            "uint8",
            (2,),
            [[97, 98], [99, 100], [101, 102]],
        ),
        "fixed list": (pa.array([[1, 2], [3, 4], [5, 6]], pairs), "int16", (2,), [[1, 2], [3, 4], [5, 6]]),
        "matrix": (
            pa.array([[[1, 2]], [[3, 4]], [[5, 6]]], pa.list_(pairs, 1)),
            "int16",
            (1, 2),
            [[[1, 2]], [[3, 4]], [[5, 6]]],
        ),
        "list": (pa.array([[1.5], [], [2.0, 3.0]]), "float64", (None,), [[1.5], [], [2.0, 3.0]]),
        "large list": (pa.array([[], [1], []], pa.large_list(pa.int8())), "int8", (None,), [[], [1], []]),
        "list of pairs": (
            pa.array([[[1, 2]], [], [[3, 4]]], pa.list_(pairs)),
            "int16",
            (None, 2),
            [[[1, 2]], [], [[3, 4]]],
        ),
        "dictionary": (pa.array([7, 8, 7]).dictionary_encode(), "int64", (), [7, 8, 7]),
    }


@pytest.mark.parametrize("name", arrays())
@formats
def test_every_type(tmp_path: Path, write: Callable[..., Path], source: Source, name: str) -> None:
    array, dtype, shape, rows = arrays()[name]
    found = source.find([write(pa.table({"c": array}), tmp_path / "t", 2)])
    assert fields(found)[0][1:3] == (dtype, shape)
    assert values(found)["c"] == rows
    # slices, whose buffers begin somewhere in the middle
    blocks = [item for i in range(3) for item in found.read(Span(i, i + 1)) if not isinstance(item, Reject)]
    got = [v if isinstance(v, str) else np.asarray(v).tolist() for b in blocks for row in b for v in row.values()]
    assert got == rows


def test_date64(tmp_path: Path) -> None:
    """Parquet has no such type."""
    path = to_file(pa.table({"c": pa.array([datetime.date(1970, 1, 3)], pa.date64())}), tmp_path / "t")
    assert values(ArrowIpc.find([path])) == {"c": [2 * 86_400_000]}


@formats
def test_structs_become_fields(tmp_path: Path, write: Callable[..., Path], source: Source) -> None:
    table = pa.table({"o": [{"a": 1, "in": {"s": "x"}}, {"a": 2, "in": {"s": "y"}}], "b": [True, False]})
    path = write(table, tmp_path / "t")
    assert values(source.find([path])) == {"o.a": [1, 2], "o.in.s": ["x", "y"], "b": [True, False]}
    assert values(source.find([path], columns=["o.in.s"])) == {"o.in.s": ["x", "y"]}
    holes = write(pa.table({"o": [{"a": 1}, None]}), tmp_path / "h")
    with pytest.raises(InputError, match=r"row 1: column o\.a has no value"):
        read(source.find([holes]))
    assert values(source.find([holes], fill=9)) == {"o.a": [1, 9]}


def test_extensions_are_what_they_hold(tmp_path: Path) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    path = to_file(pa.table({"t": tensor}), tmp_path / "t")
    assert values(ArrowIpc.find([path]))["t"] == np.arange(12).reshape(3, 4).tolist()


@formats
def test_what_can_not_be_a_field_is_named(tmp_path: Path, write: Callable[..., Path], source: Source) -> None:
    table = pa.table(
        {
            "ok": [1],
            "words": [["a"]],
            "lists": [[[1]]],
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
            "structs": [[{"x": 1}]],
        }
    )
    path = write(table, tmp_path / "t")
    for name in ("words", "lists", "map", "structs"):
        with pytest.raises(InputError, match=rf"column '{name}' of type .* can't be a field\.\n.* --columns"):
            source.find([path], columns=[name])
    assert values(source.find([path], columns=["ok"])) == {"ok": [1]}


@formats
def test_missing_values(tmp_path: Path, write: Callable[..., Path], source: Source) -> None:
    table = pa.table(
        {
            "i": pa.array([1, None, 3], pa.int16()),
            "f": [0.5, None, np.nan],
            "b": [True, None, False],
            "s": ["x", None, "z"],
            "l": [[1], None, [3]],
            "in": [[1], [2, None], [3]],
            "p": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
            "q": pa.array([[1, 2], [5, None], [3, 4]], pa.list_(pa.int8(), 2)),
            "t": pa.array([5, None, 6], pa.timestamp("ms")),
            "d": pa.array(["u", None, "u"]).dictionary_encode(),
            "none": pa.nulls(3),
        }
    )
    path = write(table, tmp_path / "t", 2)
    for name in table.column_names:
        where = rf"{path.name}, row {0 if name == 'none' else 1}: column {name} has no value here\.\n--fill"
        with pytest.raises(InputError, match=where):
            read(source.find([path], columns=[name]))
    found = values(source.find([path], fill=1))
    assert np.isnan(found["f"].pop())
    assert found == {
        "i": [1, 1, 3],
        "f": [0.5, 1],
        "b": [True, True, False],
        "s": ["x", "", "z"],
        "l": [[1], [], [3]],
        "in": [[1], [2, 1], [3]],
        "p": [[1, 2], [1, 1], [3, 4]],
        "q": [[1, 2], [5, 1], [3, 4]],
        "t": [5, 1, 6],
        "d": ["u", "", "u"],
        "none": [1, 1, 1],
    }
    with pytest.raises(UsageError, match=r"--fill 40000 can't stand in column i, which is int16"):
        read(source.find([path], columns=["i"], fill=40000))


@formats
def test_pack(tmp_path: Path, write: Callable[..., Path], source: Source) -> None:
    table = pa.table(
        {
            "a": pa.array([1, 2], pa.int8()),
            "b": pa.array([0.5, 1.5], pa.float32()),
            "s": ["x", "y"],
            "c": [True, False],
            "big": [2**53 + 1, 1],
        }
    )
    path = write(table, tmp_path / "t")
    found = source.find([path], pack="m=a,b,c", columns=["m", "s"])
    assert fields(found) == [("m", "float32", (3,), "array"), ("s", "uint8", (None,), "text")]
    assert values(found)["m"] == [[1, 0.5, 1], [2, 1.5, 0]]
    assert values(source.find([path], pack={"m": ["big", "a"]}, columns=["m"]))["m"] == [[2**53 + 1, 1], [1, 2]]
    with pytest.raises(InputError, match=r"column big has integers beyond 2\^53"):
        read(source.find([path], pack="m=*"))


@pytest.mark.parametrize("size", [1, 50, 333, 1 << 20])
@formats
def test_spans_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], source: Source, size: int
) -> None:
    monkeypatch.setattr(batches, "SPAN_BYTES", size)
    tables = [sample(40, 1), sample(3, 2), sample(25, 3)]
    paths = [write(table, tmp_path / name, 15) for name, table in zip("abc", tables, strict=True)]
    found = source.find(paths)
    assert found.plan()[-1].stop == found.inputs == 68
    whole = pa.concat_tables(tables).to_pydict()
    assert values(found) == whole
    # what a worker reads that gets every other span, and one that reads from the end
    again = pickle.loads(pickle.dumps(found))
    for span in [*found.plan()[::2], *reversed(found.plan()), Span(10, 60)]:
        blocks = [item for item in again.read(span) if not isinstance(item, Reject)]
        assert [n for block in blocks for n in block["n"]] == whole["n"][span.start : span.stop]
        origin = np.concatenate([block.origin for block in blocks])
        places = [(f, r) for f, t in enumerate(tables) for r in range(len(t))][span.start : span.stop]
        assert [tuple(pair) for pair in origin.tolist()] == places


def test_a_large_row_group_is_not_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each row is decoded once, a span's worth at a time."""
    monkeypatch.setattr(batches, "SPAN_BYTES", 1 << 16)
    path = to_parquet(pa.table({"x": np.arange(200_000)}), tmp_path / "t", 200_000)
    asked: list[int] = []
    plain = Parquet.batches

    def counting(self: Parquet, path: str, first: int, rows: int) -> Any:
        for batch in plain(self, path, first, rows):
            asked.append(len(batch))
            yield batch

    monkeypatch.setattr(Parquet, "batches", counting)
    source = Parquet.find([path], pack="m=*")
    assert len(source.plan()) > 10
    assert [row[0] for row in values(source)["m"]] == list(range(200_000))
    assert sum(asked) == 200_000
    assert max(asked) * 8 <= 1 << 17


def test_a_large_row_group_through_a_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigconv.sources.parquet.LARGE_GROUP", 1)
    table = sample(1000)
    assert values(Parquet.find([to_parquet(table, tmp_path / "t", 300)])) == table.to_pydict()


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
def test_codecs_and_encodings(tmp_path: Path, codec: str) -> None:
    table = pa.table({"x": np.arange(999) % 7, "s": [f"{i % 3}" for i in range(999)]})
    for options in ({"use_dictionary": True}, {"use_dictionary": False, "data_page_version": "2.0"}):
        parquet.write_table(table, tmp_path / "t.parquet", compression=codec, write_page_checksum=True, **options)
        assert values(Parquet.find([tmp_path / "t.parquet"])) == table.to_pydict()


@formats
def test_damage_is_named(tmp_path: Path, write: Callable[..., Path], source: Source) -> None:
    """Every length, and a flipped byte: an error that names the file, or the rows as they were; no crash."""
    table = sample(20)
    path = write(table, tmp_path / "t", 7)
    data = path.read_bytes()
    for length in range(0, len(data), 41):
        path.write_bytes(data[:length])
        if write is to_stream:  # a stream may end after any batch
            try:
                found = source.find([path])
                assert values(found)["n"] == table["n"].to_pylist()[: found.inputs]
            except InputError as error:
                assert "t." in str(error)
            continue
        with pytest.raises(InputError, match=path.name):
            read(source.find([path]))
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 150).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            read(source.find([path], columns=["n", "word", "l"], fill=0))
        except (InputError, SchemaError, UsageError) as error:
            assert str(error)


def test_bytes_that_are_no_utf8_are_no_text(tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    for write, source in WRITERS[:2]:
        with pytest.raises(InputError, match=r"t\.\w+: can't be read"):
            read(source.find([write(pa.table({"s": wrong}), tmp_path / "t")]))


@formats
def test_files_of_one_table_have_equal_schemas(tmp_path: Path, write: Callable[..., Path], source: Source) -> None:
    a = write(pa.table({"x": [1], "y": ["a"]}), tmp_path / "a")
    for name, other in (("x", {"x": [1.5], "y": ["a"]}), ("y", {"x": [1]})):
        b = write(pa.table(other), tmp_path / "b")
        with pytest.raises(InputError, match=rf"column '{name}' is .* in {a.name}, but .* in {b.name}"):
            source.find([a, b])
    with pytest.raises(InputError, match=r"has 3 columns"):
        source.find([a, write(pa.table({"x": [1], "y": ["a"], "z": [0]}), tmp_path / "b")])


@formats
def test_empty_tables(tmp_path: Path, write: Callable[..., Path], source: Source) -> None:
    empty, full = write(sample(5).slice(0, 0), tmp_path / "e"), write(sample(5), tmp_path / "f")
    assert source.find([empty]).inputs == 0
    assert values(source.find([empty, full, empty])) == sample(5).to_pydict()
    with pytest.raises(InputError, match="no rows"):
        Request((empty,), tmp_path / "out.h5", from_=source.name).run()


def test_names_that_clash(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(InputError, match="two columns are called 'a'"):
        ArrowIpc.find([to_file(table, tmp_path / "t")])


def test_a_thousand_columns(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).standard_normal((1000, 50))
    path = to_parquet(pa.table({f"c{i}": column for i, column in enumerate(numbers)}), tmp_path / "t")
    block, _ = read(Parquet.find([path], pack="m=*"))
    assert block is not None
    np.testing.assert_array_equal(block["m"], numbers.T)


@formats
def test_converted(tmp_path: Path, write: Callable[..., Path], source: Source, suffix: str) -> None:
    import bigconv

    table = sample(100)
    path = write(table, tmp_path / "t", 30)
    Request((path,), tmp_path / f"out{suffix}").run()
    view = bigconv.open(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(view[0:100]["x"], table["x"].to_numpy())
    assert view[98]["word"] == table["word"][98].as_py()
    np.testing.assert_array_equal(view[99]["l"], [0, 1, 2])


def test_description(tmp_path: Path) -> None:
    table = pa.table({"when": pa.array([1], pa.timestamp("ms", "UTC")), "n": [1]})
    told = Parquet.find([to_parquet(table, tmp_path / "t")], fill=0).describe()
    assert told["columns"] == {"when": "timestamp[ms, tz=UTC]", "n": "int64"}
    assert told["fill"] == "0"
    assert str(tmp_path) not in json.dumps(told)
