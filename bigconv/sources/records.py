"""Records of text files: where each one starts, in spans that can be read apart from one another.

A record is a line that isn't blank; where quotes are in use, line ends inside quotes belong to the record. A quote
opens only at the start of a field, and a doubled one inside quotes is a quote (RFC 4180, and what pyarrow's reader
does), so `5" pipe` is plain text. Line ends are LF, CRLF or CR.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import InputError
from bigconv.sources.base import SPAN_BYTES, Span
from bigconv.sources.table import TableFiles

MAX_RECORD = 64 << 20  # 64 MiB: a longer record is a file that isn't what its name says, or a quote never closed
BOM = b"\xef\xbb\xbf"
_LF, _CR = 10, 13


@dataclass(frozen=True)
class Syntax:
    """What ends a record. `quote`: one byte, None where there are none; `json`: lines of white space are blank."""

    quote: int | None = None
    delimiter: int = ord(",")
    json: bool = False

    def starts(self, data: bytes) -> Index:
        """int64 `[records]`: the byte at which each record starts."""
        ends = self._ends(data)
        at: Index = np.flatnonzero(ends[:-1] & ~ends[1:]) + 1
        if len(data) and not ends[0]:
            at = np.concatenate([np.zeros(1, np.int64), at])
        if self.json and len(at):
            array = np.frombuffer(data, np.uint8)
            odd = [i for i in np.flatnonzero(array[at] <= 32).tolist() if not _line(data, int(at[i])).strip()]
            at = np.delete(at, odd)
        return at

    def cut(self, data: bytes, last: bool = False) -> tuple[int, int]:
        """The byte behind the last line end outside quotes (of the `last` piece of a file, behind all), and the records
        up to there; `(0, 0)` when there is none."""
        ends = self._ends(data)
        whole = len(data)
        if not last:
            if data[-1:] == b"\r":
                ends[-1] = False  # its LF may be still to come
            whole -= int(np.argmax(ends[::-1])) if ends.any() else whole
        ends = ends[:whole]
        if not whole:
            return 0, 0
        fresh = ~ends[1:]
        fresh &= ends[:-1]
        if self.json:
            low = np.frombuffer(data, np.uint8, whole) <= 32
            if (low[0] and not ends[0]) or (low[1:] & fresh).any():
                return whole, len(self.starts(data[:whole]))
        return whole, int(np.count_nonzero(fresh)) + (not ends[0])

    def open_quote(self, data: bytes) -> int | None:
        """The byte of a quote that is never closed."""
        if self.quote is None or data.find(self.quote) < 0:
            return None
        edges = self._quotes(data, np.frombuffer(data, np.uint8))
        return int(edges[-1]) if len(edges) % 2 else None

    def _ends(self, data: bytes) -> Array:
        """bool `[bytes]`: which are line ends outside quotes."""
        array = np.frombuffer(data, np.uint8)
        ends: Array = array == _LF
        if data.find(b"\r") >= 0:
            ends |= array == _CR
        if self.quote is None or data.find(self.quote) < 0:
            return ends
        edges = self._quotes(data, array)
        at = np.flatnonzero(ends)
        ends[at[np.searchsorted(edges, at) % 2 == 1]] = False
        return ends

    def _quotes(self, data: bytes, array: Array) -> Index:
        """Where quotes open and close, in turn. All quotes of most files do, and that can be told for all at once."""
        assert self.quote is not None
        at: Index = np.flatnonzero(array == self.quote)
        opens = at[::2]
        before = array[np.maximum(opens - 1, 0)]
        fits = (before == self.delimiter) | (before == _LF) | (before == _CR) | (opens == 0)
        fits[1:] |= opens[1:] - 1 == at[1::2][: len(opens) - 1]  # a doubled quote: closed, and opened again
        if fits.all():
            return at
        quote, field = re.escape(bytes([self.quote])), re.escape(bytes([self.delimiter]))
        quoted = re.compile(rb"(?:\A|(?<=[\r\n" + field + rb"]))Q(?:[^Q]++|QQ)*+(Q?)".replace(b"Q", quote))
        edges: list[int] = []
        for match in quoted.finditer(data):
            edges += [match.start(), match.end() - 1] if match[1] else [match.start()]
        return np.array(edges, np.int64)


@dataclass(frozen=True, eq=False)
class Records:
    """Spans of whole records over many files; the unit of a `Span` is the record.

    `file`, `start`, `stop`: int64 `[spans]`, the bytes of each span; `row`: int64 `[spans + 1]`, its first record in
    all files together; `first`: int64 `[spans]`, that record's number in its file; `line`: the line it is on, from 1.
    """

    file: Index
    start: Index
    stop: Index
    row: Index
    first: Index
    line: Index

    @classmethod
    def scan(cls, files: TableFiles, heads: Sequence[int], syntax: Syntax) -> Records:
        """One quick pass over all files. `heads`: the byte at which each file's records start.

        Raises `InputError` for a quote that is never closed, and for records beyond `MAX_RECORD`.
        """
        table: list[tuple[int, int, int, int, int]] = []
        counts: list[int] = []
        for number, head in enumerate(heads):
            first = 0
            for start, stop, count, line in _scan(files.paths[number], files.name(number), head, syntax):
                if count:
                    table.append((number, start, stop, first, line))
                    counts.append(count)
                first += count
        file, start_, stop_, first_, line_ = np.array(table, np.int64).reshape(-1, 5).T.copy()
        return cls(file, start_, stop_, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), first_, line_)

    def __len__(self) -> int:
        return int(self.row[-1])

    def spans(self) -> list[Span]:
        rows = self.row.tolist()
        return [Span(a, b) for a, b in pairwise(rows)]

    def number(self, row: int) -> int:
        """Which span of the plan a record is in."""
        return int(np.searchsorted(self.row, row, "right")) - 1

    def read(self, files: TableFiles, number: int, limit: int | None = None) -> bytes:
        """The bytes of a span, or as many of the first as `limit`. Raises `InputError` when the file has changed."""
        size = int(self.stop[number] - self.start[number])
        size = size if limit is None else min(size, limit)
        name = files.name(int(self.file[number]))
        try:
            with open(files.paths[int(self.file[number])], "rb") as stream:
                stream.seek(int(self.start[number]))
                data = stream.read(size)
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}") from error
        if len(data) != size:
            raise InputError(f"{name}: the file has changed since it was listed")
        return data

    def samples(self, files: TableFiles, syntax: Syntax, nbytes: int, pieces: int) -> Iterator[tuple[int, bytes]]:
        """`(span, whole records)`: all there is, up to `nbytes` in all; of more, `pieces` evenly spread."""
        count = len(self.file)
        if int((self.stop - self.start).sum()) <= nbytes:
            yield from ((i, self.read(files, i)) for i in range(count))
            return
        for i in np.unique(np.linspace(0, count - 1, pieces).astype(int)).tolist():
            data = self.read(files, i, nbytes // min(pieces, count))
            whole = len(data) if len(data) == self.stop[i] - self.start[i] else syntax.cut(data)[0]
            yield i, data[:whole] if whole else self.read(files, i)


def _scan(path: str, name: str, pos: int, syntax: Syntax) -> Iterator[tuple[int, int, int, int]]:
    """`(start, stop, records, line)` of one file, `SPAN_BYTES` at a time."""
    try:
        with open(path, "rb") as stream:
            line = 1 + lines(stream.read(pos))
            while True:
                stream.seek(pos)
                size, data = SPAN_BYTES, stream.read(SPAN_BYTES)
                whole, count = syntax.cut(data, len(data) < size)
                while not whole and len(data) == size:
                    if size >= MAX_RECORD:
                        unclosed = ": a quote that is never closed?" if syntax.open_quote(data) is not None else ""
                        raise InputError(f"{name}, line {line}: a record of more than {MAX_RECORD >> 20} MiB{unclosed}")
                    size *= 2
                    data += stream.read(size - len(data))
                    whole, count = syntax.cut(data, len(data) < size)
                if len(data) < size:
                    opened = syntax.open_quote(data)
                    if opened is not None:
                        raise InputError(
                            f"{name}, line {line + lines(data[:opened])}: a quote is opened and never closed.\n"
                            "--quote none reads quotes as any other character"
                        )
                if whole:
                    yield pos, pos + whole, count, line
                    line += lines(data, whole)
                    pos += whole
                if len(data) < size:
                    return
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error


def lines(data: bytes, stop: int | None = None) -> int:
    """Line ends up to the byte `stop`, inside quotes too."""
    array = np.frombuffer(data, np.uint8)[:stop]
    returns = data.count(b"\r", 0, stop) - data.count(b"\r\n", 0, stop) if b"\r" in data else 0
    return int(np.count_nonzero(array == _LF)) + returns


def line_numbers(data: bytes, starts: Index) -> Index:
    """int64 `[records]`: how many line ends there are before each record."""
    array = np.frombuffer(data, np.uint8)
    ends: Array = array == _LF
    if b"\r" in data:
        returns = np.flatnonzero(array == _CR)
        ends[returns[array[np.minimum(returns + 1, len(array) - 1)] != _LF]] = True
    return np.searchsorted(np.flatnonzero(ends), starts).astype(np.int64)


def _line(data: bytes, start: int) -> bytes:
    ends = [e for e in (data.find(b"\n", start), data.find(b"\r", start)) if e >= 0]
    return data[start : min(ends, default=len(data))]


def extents(starts: Index, size: int) -> list[tuple[int, int, int]]:
    """Number, first byte and byte behind each record."""
    stops = [*starts[1:].tolist(), size]
    return list(zip(range(len(starts)), starts.tolist(), stops, strict=True))
