"""JSON Lines: one object a line, one field a key; keys of objects inside are fields named `outer.inner`.

Types come from a sample: all of up to 16 MiB, of more 32 pieces spread over it. Integers are int64, numbers of which
some have a fraction float64, strings text (dates too), lists of numbers ragged. A key that is absent or null is a
missing value. Lines that don't parse, or don't fit what the sample showed, are rejects by their number. `--dtypes
KEY=DTYPE` settles a type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow

from bigconv.errors import InputError, UsageError
from bigconv.schema import unknown
from bigconv.sniff import looks
from bigconv.sources import table
from bigconv.sources.columns import MAX_DEPTH, Column, Pack, columns_of, parse_dtypes
from bigconv.sources.records import BOM, Records, Syntax, extents
from bigconv.sources.text_table import BadRecord, TextTable, salvage, widened

SAMPLE_BYTES = 16 << 20  # 16 MiB: read in a tenth of a second
SAMPLE_PIECES = 32
_LONG_INTEGER = re.compile(rb"[:,\[]\s*-?[0-9]{16,}\s*[,\]}]")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


@dataclass(frozen=True, eq=False)
class JsonLines(TextTable):
    """Rows of one or many files of JSON lines."""

    name: ClassVar[str] = "jsonl"
    options: ClassVar[tuple[str, ...]] = (*table.OPTIONS, "dtypes")

    arrow_schema: Any  # pyarrow.Schema of what is read
    inferred: tuple[Column, ...]  # numbers with a fraction that nobody said are float64

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        columns: Sequence[str] | None = None,
        pack: Pack = None,
        fill: float | None = None,
        dtypes: Mapping[str, str] | Sequence[str] | None = None,
    ) -> JsonLines:
        """List the files, find their lines, and look at a sample for keys and types.

        `columns`, `pack`, `fill`: see `table.Layout.of`. `dtypes`: column → dtype, `text` or `timestamp`.
        Raises `InputError` when no line is an object, or a column that is wanted has values of different kinds.
        """
        files = table.TableFiles.of(paths, cls.name)
        syntax = Syntax(json=True)
        records = Records.scan(files, [_head(path, files.name(i)) for i, path in enumerate(files.paths)], syntax)
        found = _Shape()
        error: Exception | None = None
        for _, data in records.samples(files, syntax, SAMPLE_BYTES, SAMPLE_PIECES):
            for _, part in salvage(data, extents(syntax.starts(data), len(data)), _infer):
                if isinstance(part, Exception):
                    error = error or part
                else:
                    found.add(part.schema)
        if not found.kinds:
            start = next(records.samples(files, syntax, SAMPLE_BYTES, SAMPLE_PIECES), (0, b""))[1].lstrip()[:64]
            why = f": {looks(start) if start.startswith(b'[') else error}" if error is not None else ""
            raise InputError(f"{files.name(0)}: no line of it is a JSON object with anything in it{why}")
        asked = parse_dtypes(dtypes)
        every = columns_of(pa.schema([(name, _known(kind)) for name, kind in found.kinds.items()]))
        for name in asked:
            if name not in {column.name for column in every}:
                raise UsageError(unknown("column", name, [column.name for column in every][:50]))
        every = tuple(replace(column, type=asked.get(column.name, column.type)) for column in every)
        layout = table.Layout.of(every, columns, pack, fill)
        for column in layout.columns:
            for path, kinds in found.mixed.items():
                if column.path[: len(path)] == path and column.name not in asked:
                    raise InputError(
                        f"column {'.'.join(path)} is {kinds} by turns: that can't be one field.\n"
                        "Write all of it one way, or leave it out: --columns A,B,… names those to take"
                    )
        inferred = tuple(c for c in layout.columns if c.type == pa.float64() and c.name not in asked)
        return cls(files, records, syntax, layout, _schema(layout.columns), inferred)

    def parse(self, data: bytes, file: int, threads: bool) -> Any:
        found = _parse(data, threads, self.arrow_schema)
        self._exact(data, found)
        return found

    def _exact(self, data: bytes, found: Any) -> None:
        """Raise `BadRecord` for an integer that float64 would round."""
        if not self.inferred or not found.num_rows:
            return
        batch = table.batch_of(found)
        for column in self.inferred:
            values = table.reach(batch, column.path).to_numpy(zero_copy_only=False)
            rows = np.flatnonzero(np.abs(values) >= table.EXACT)
            if not len(rows) or not _LONG_INTEGER.search(data):
                continue
            records = extents(self.syntax.starts(data), len(data))
            if len(records) != found.num_rows:
                raise BadRecord("records and rows differ")
            for row in rows.tolist():
                value = json.loads(data[records[row][1] : records[row][2]])
                for name in column.path:
                    value = value[name]
                if isinstance(value, int) and int(float(value)) != value:
                    fits = -1 << 63 <= value < 1 << 64
                    kind = "int64" if value < 0 else "uint64"
                    way = f"--dtypes {column.name}={kind} may hold it" if fits else "as a string in quotes it is kept"
                    raise BadRecord(f"column {column.name}: float64 would round {value}; {way}")

    def reason(self, error: Exception, file: int) -> str:
        text = str(error)
        if isinstance(error, UnicodeDecodeError):
            return f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
        if changed := re.search(r"Column\(/?(.*?)\) changed from (\w+) to (\w+)", text):
            where = f"column {changed[1].replace('/', '.')}" if changed[1] else "a line"
            return f"{where} has {changed[3]} here, where {changed[2]} is expected"
        if unfit := re.search(r"convert JSON to (\S+), couldn't parse:(.*)", text, re.DOTALL):
            return f"{unfit[2][:60]} is no {unfit[1]}; --dtypes COLUMN=float64, if its column has fractions"
        return re.sub(r"^JSON parse error: | in row \d+$", "", text)[:300]


class _Shape:
    """Keys and types seen so far, and what changes its kind from line to line."""

    def __init__(self) -> None:
        self.kinds: dict[str, Any] = {}
        self.mixed: dict[tuple[str, ...], str] = {}

    def add(self, schema: Any) -> None:
        for item in schema:
            kind = _settled(item.type)
            self.kinds[item.name] = self._both(self.kinds.get(item.name, pa.null()), kind, (item.name,))

    def _both(self, a: Any, b: Any, path: tuple[str, ...]) -> Any:
        """The type that holds the values of both; the first, where there is none."""
        if a == b or b == pa.null():
            return a
        if a == pa.null():
            return b
        if {a, b} == {pa.int64(), pa.float64()}:
            return pa.float64()
        if pa.types.is_list(a) and pa.types.is_list(b):
            return pa.list_(self._both(a.value_type, b.value_type, path))
        if pa.types.is_struct(a) and pa.types.is_struct(b):
            inner = {item.name: item.type for item in a}
            for item in b:
                inner[item.name] = self._both(inner.get(item.name, pa.null()), item.type, (*path, item.name))
            return pa.struct(list(inner.items()))
        self.mixed.setdefault(path, f"{_said(a)} and {_said(b)}")
        return a


def _said(kind: Any) -> str:
    if pa.types.is_struct(kind):
        return "an object"
    return "a list" if pa.types.is_list(kind) else str(kind)


def _settled(kind: Any) -> Any:
    """pyarrow takes strings that look like dates for dates: they stay text."""
    return _mapped(kind, lambda leaf: pa.string() if pa.types.is_temporal(leaf) else leaf)


def _known(kind: Any) -> Any:
    """What was never anything but null is a number, as far as anyone knows."""
    return _mapped(kind, lambda leaf: pa.float64() if pa.types.is_null(leaf) else leaf)


def _mapped(kind: Any, leaf: Callable[[Any], Any]) -> Any:
    if pa.types.is_list(kind):
        return pa.list_(_mapped(kind.value_type, leaf))
    if pa.types.is_struct(kind):
        return pa.struct([(item.name, _mapped(item.type, leaf)) for item in kind])
    return leaf(kind)


def _schema(columns: Iterable[Column]) -> Any:
    """The Arrow schema that has these columns and no others."""
    tree: dict[str, Any] = {}
    for column in columns:
        at = tree
        for name in column.path[:-1]:
            at = at.setdefault(name, {})
        at[column.path[-1]] = column.type

    def fields(level: dict[str, Any]) -> list[tuple[str, Any]]:
        return [(name, pa.struct(fields(kind)) if isinstance(kind, dict) else kind) for name, kind in level.items()]

    return pa.schema(fields(tree))


def _parse(data: bytes, threads: bool, schema: Any = None) -> Any:
    """Lines as a `pyarrow.Table`, of the schema's keys, or of all with inferred types."""
    if not data.isascii():
        data.decode()  # pyarrow doesn't look
    parsing = arrow.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
    )
    return widened(
        lambda size: arrow.read_json(
            pa.BufferReader(data), arrow.ReadOptions(use_threads=threads, block_size=size), parsing
        ),
        data,
    )


def _infer(data: bytes) -> Any:
    if _deep(data):
        raise BadRecord(f"values nested more than {MAX_DEPTH} deep")
    return _parse(data, threads=True)


def _deep(data: bytes) -> bool:
    """Whether lines are nested so deep that inferring their type might overflow the stack."""
    if _nesting(data, closing=False) <= MAX_DEPTH:
        return False
    return _nesting(_STRING.sub(b"", data), closing=True) > MAX_DEPTH


def _nesting(data: bytes, closing: bool) -> int:
    """Most brackets that any line opens; with `closing`, that are open at once."""
    if not data:
        return 0
    array = np.frombuffer(data, np.uint8)
    steps = (array | 32 == ord("{")).astype(np.int8)  # [ and { differ in that bit, and so do ] and }
    if closing:
        steps -= array | 32 == ord("}")
    starts = np.concatenate([[0], np.flatnonzero(array[:-1] == ord("\n")) + 1])
    depth = np.cumsum(steps, dtype=np.int32)
    before = np.where(starts > 0, depth[starts - 1], 0)
    return int((np.maximum.reduceat(depth, starts) - before).max())


def _head(path: str, name: str) -> int:
    """The byte at which the lines start."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(len(BOM))
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name}: UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8")
    return len(BOM) if head == BOM else 0
