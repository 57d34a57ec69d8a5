"""CSV as text: its header, its types, and records as Arrow tables."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow

from bigconv.errors import InputError, UsageError
from bigconv.sources.columns import MAX_COLUMNS, field_name
from bigconv.sources.records import BOM, Syntax
from bigconv.sources.table import EXACT, TableFiles
from bigconv.sources.text_table import BadRecord, widened

HEADER_BYTES = 4 << 20  # 4 MiB: 65,536 names of 64 characters
NULLS = ("", "NA", "N/A", "n/a", "#N/A", "NULL", "Null", "null", "None")  # in columns of numbers; nan is a number
LEADING_ZERO = r"^\s*0[0-9xX]"  # pyarrow would read 0x1F as 31
LONG_INTEGER = r"^\s*[+-]?[0-9]{16,}\s*$"  # more digits than float64 is sure to hold
WINDOW = 256 << 10  # bytes that are looked at together: stays in the cache


@dataclass(frozen=True)
class Header:
    """Columns of one file, called as their fields are; records start at byte `start`."""

    columns: tuple[str, ...]
    start: int


@dataclass(frozen=True)
class Dialect:
    """How one table's files are written."""

    delimiter: str
    quote: str | None
    encoding: str

    @classmethod
    def of(cls, files: TableFiles, delimiter: str | None, quote: str, encoding: str) -> Dialect:
        """Check what was asked for, and tell the delimiter from the first line. Raises `UsageError`, `InputError`."""
        try:
            standard = codecs.lookup(encoding).name
            ascii_ = bytes(range(128)).decode(standard) == "".join(map(chr, range(128)))
            plain = ascii_ and (standard == "utf-8" or len(bytes(range(256)).decode(standard, "replace")) == 256)
        except (LookupError, UnicodeError, TypeError):
            plain = False
        if not plain:
            raise UsageError(
                f"--encoding {encoding}: expected utf-8, or one that has a byte a character, such as cp1252 or latin-1"
            )
        mark = None if quote in ("", "none") else quote
        if delimiter is None:
            delimiter = _sniff(_head(files, 0, HEADER_BYTES), mark) if files.name(0).lower()[-4:] != ".tsv" else "\t"
        delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
        for option, value in (("delimiter", delimiter), ("quote", mark)):
            if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n\0" or value == "\0"):
                raise UsageError(f"--{option} {value!r}: expected one ASCII character that is no line end")
        if delimiter == mark:
            raise UsageError("--delimiter and --quote must differ")
        return cls(delimiter, mark, standard)

    @property
    def syntax(self) -> Syntax:
        return Syntax(None if self.quote is None else ord(self.quote), ord(self.delimiter))

    def utf8(self, data: bytes) -> bytes:
        """The same text in UTF-8; bytes that stand for no character stay, and are no UTF-8."""
        if self.encoding == "utf-8":
            return data
        return data.decode(self.encoding, "surrogateescape").encode("utf-8", "surrogateescape")

    def header(self, files: TableFiles, i: int, wanted: str | Sequence[str] | None) -> Header:
        """The columns of a file. `wanted`: names, `none`, `first`, or None. Raises `InputError`."""
        where = files.name(i)
        for size in (HEADER_BYTES >> 6, HEADER_BYTES):
            data = _head(files, i, size)
            start = len(BOM) if data.startswith(BOM) else 0
            at = self.syntax.starts(data[start:])
            if len(at) > 1 or len(data) < size:
                break
        else:
            raise InputError(f"{where}: its first line has more than {HEADER_BYTES >> 20} MiB: not read")
        if not len(at):
            raise InputError(f"{where}: an empty file")
        if len(at) < 2 and self.syntax.open_quote(data[start:]) is not None:
            raise InputError(f"{where}, line 1: a quote is opened and never closed")
        stop = start + int(at[1]) if len(at) > 1 else len(data)
        try:
            text = self.utf8(data[start:stop]).decode()
            cells = next(row for row in csv.reader(io.StringIO(text, newline=""), **self._csv()) if row)
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: the first line is not {self.encoding}; --encoding says what it is") from error
        except (csv.Error, StopIteration) as error:
            raise InputError(f"{where}: the first line can't be read: {error}") from error
        if len(cells) > MAX_COLUMNS:
            raise InputError(f"{where}: more than {MAX_COLUMNS:,} columns: not read")
        if wanted not in (None, "first"):
            numbered = wanted == "none"
            names = [f"column{k}" for k in range(len(cells))] if numbered else wanted
            names = tuple(names.split(",") if isinstance(names, str) else names or ())
            if len(names) != len(cells):
                raise InputError(f"{where}: {len(cells)} values in its first line, but --header has {len(names)} names")
            stop = start
        else:
            names = tuple(cells)
            if wanted is None and all(_is_number(cell) for cell in names):
                raise InputError(
                    f"{where}: its first line is all numbers: {', '.join(names[:4])[:80]}\n"
                    "Without names: --header none, or --header A,B,…; if those are the names: --header first"
                )
        columns = tuple(field_name(name, k) for k, name in enumerate(names))
        if len(set(columns)) < len(columns):
            twice = next(c for k, c in enumerate(columns) if c in columns[:k])
            raise InputError(f"{where}: two columns are called {twice!r}: rename one, or give names by --header")
        return Header(columns, stop)

    def _csv(self) -> dict[str, Any]:
        if self.quote is None:
            return {"delimiter": self.delimiter, "quoting": csv.QUOTE_NONE}
        return {"delimiter": self.delimiter, "quotechar": self.quote}

    def parse(
        self,
        data: bytes,
        columns: Sequence[str],
        types: Mapping[str, Any],
        include: Sequence[str] = (),
        threads: bool = False,
        bad: Any = None,
    ) -> Any:
        """Records in UTF-8 as a `pyarrow.Table` of the columns `include` (all). Types that aren't given are inferred.

        `bad`: is called with records that don't have a value a column; without it, they raise `pyarrow.ArrowInvalid`.
        """
        if data.startswith(BOM):
            data = b"\n" + data  # it is text here, and pyarrow would drop it
        quoted = self.quote is not None and self.quote.encode() in data
        parsing = arrow.ParseOptions(
            delimiter=self.delimiter,
            quote_char=self.quote or False,
            newlines_in_values=quoted,
            invalid_row_handler=bad,
        )
        converting = arrow.ConvertOptions(
            column_types=dict(types),
            include_columns=list(include),
            null_values=list(NULLS),
            true_values=["true", "True", "TRUE"],
            false_values=["false", "False", "FALSE"],
        )
        return widened(
            lambda size: arrow.read_csv(
                pa.BufferReader(data),
                read_options=arrow.ReadOptions(column_names=list(columns), block_size=size, use_threads=threads),
                parse_options=parsing,
                convert_options=converting,
            ),
            data,
        )

    def infer(self, samples: Iterable[tuple[Sequence[str], bytes]]) -> dict[str, Any]:
        """Column → Arrow type that holds all values of the samples without loss.

        `samples`: columns of a file, and whole records of it in UTF-8.
        """
        found: dict[str, Any] = {}
        for columns, data in samples:
            table = self.parse(data, columns, {}, threads=True, bad=_skip)
            kinds = {name: _kind(table.schema.field(name).type) for name in columns}
            numbers = [name for name, kind in kinds.items() if kind in (pa.int64(), pa.float64())]
            for name, values in self.misread(data, columns, table, numbers).items():
                kinds[name] = _unsigned(values) if kinds[name] == pa.float64() else pa.string()
            for name, kind in kinds.items():
                found[name] = _wider(found.get(name, pa.null()), kind)
        return found

    def misread(self, data: bytes, columns: Sequence[str], table: Any, numbers: Sequence[str]) -> dict[str, Any]:
        """Columns of numbers in `table` that lose digits, with their text: leading zeros, integers float64 rounds."""
        kinds = {name: table.schema.field(name).type for name in numbers}
        zero = _zero_led(data, self.delimiter, self.quote)
        long = {name for name, kind in kinds.items() if pa.types.is_float64(kind) and _beyond(table.column(name))}
        suspect = [name for name in numbers if zero or name in long]
        if not suspect:
            return {}
        types = dict.fromkeys(suspect, pa.string())
        text = self.parse(data, columns, types, include=suspect, bad=_skip)
        out = {}
        for name in suspect:
            pattern = f"{LEADING_ZERO}|{LONG_INTEGER}" if name in long else LEADING_ZERO
            if pc.any(pc.match_substring_regex(text.column(name), pattern)).as_py():
                out[name] = text.column(name)
        return out

    def strict(self, data: bytes, columns: Sequence[str], table: Any, numbers: Sequence[str]) -> None:
        """Raise `BadRecord` for what `misread` finds."""
        for name, text in self.misread(data, columns, table, numbers).items():
            pattern = f"{LEADING_ZERO}|{LONG_INTEGER}"
            value = text.filter(pc.match_substring_regex(text, pattern))[0].as_py()
            kind = table.schema.field(name).type
            raise BadRecord(f"column {name}: {value[:60]!r} would lose digits as {kind}; --dtypes {name}=text keeps it")


def _head(files: TableFiles, i: int, size: int) -> bytes:
    try:
        with open(files.paths[i], "rb") as stream:
            data = stream.read(size)
    except OSError as error:
        raise InputError(f"{files.name(i)}: {error.strerror}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{files.name(i)}: UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8")
    return data


def _sniff(data: bytes, quote: str | None) -> str:
    """The delimiter of which the first line has most, outside quotes; a comma if there is none."""
    line = data.removeprefix(BOM).lstrip(b"\r\n").splitlines()[:1] or [b""]
    text = re.sub(rb"Q[^Q]*Q".replace(b"Q", re.escape(quote.encode())), b"", line[0]) if quote else line[0]
    return max(",;\t|", key=lambda c: text.count(c.encode()))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _skip(row: Any) -> str:
    return "skip"


def _kind(inferred: Any) -> Any:
    """What columns are read as; null where nothing is known."""
    if any(test(inferred) for test in (pa.types.is_null, pa.types.is_int64, pa.types.is_float64, pa.types.is_boolean)):
        return inferred
    return pa.string()


def _wider(a: Any, b: Any) -> Any:
    """The type that holds the values of both."""
    if a == b or b == pa.null():
        return a
    if a == pa.null():
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    return pa.string()


def _unsigned(text: Any) -> Any:
    """uint64 for a column of digits that only that holds, else text."""
    digits = text.filter(pc.invert(pc.is_in(text, pa.array(NULLS))))
    if pc.any(pc.match_substring_regex(digits, LEADING_ZERO)).as_py():
        return pa.string()
    try:
        pc.utf8_trim_whitespace(digits).cast(pa.uint64())
    except pa.ArrowInvalid:
        return pa.string()
    return pa.uint64()


def _beyond(column: Any) -> bool:
    """Whether any number is so large that not every integer of its size is a float64."""
    return any(bool((np.abs(c.to_numpy(zero_copy_only=False)) >= EXACT).any()) for c in column.chunks)


def _zero_led(data: bytes, delimiter: str, quote: str | None) -> bool:
    """Whether a cell may start with 0 and another digit (or x): then, and only then, it is worth a closer look."""
    array = np.frombuffer(data, np.uint8)
    fronts = [ord(c) for c in ("\n", "\r", " ", "\t", delimiter, quote) if c is not None and c.encode() in data]
    for start in range(0, len(array), WINDOW):
        piece = array[max(0, start - 1) : start + WINDOW + 1]
        led = piece[:-1] == ord("0")
        led &= (piece[1:] - ord("0") < 10) | ((piece[1:] | 32) == ord("x"))
        if start == 0 and led[:1].any():
            return True
        front = np.zeros(len(piece), bool)
        for byte in fronts:
            front |= piece == byte
        if (led[1:] & front[:-2]).any():
            return True
    return False
