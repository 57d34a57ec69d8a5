"""Pieces of large text files, cut at line ends, that can be read apart. A line ends with LF or CRLF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bigconv.block import Index, Ragged
from bigconv.errors import InputError
from bigconv.sources.base import SPAN_BYTES, Span
from bigconv.sources.named import NamedFiles

MAX_LINE = 64 << 20  # 64 MiB: a longer line is a file that isn't what its name says
BOM = b"\xef\xbb\xbf"
UTF16 = "UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8"


@dataclass(frozen=True, eq=False)
class Lines:
    """Pieces of about `SPAN_BYTES`, whose rows are numbered through all files; the unit of a `Span` is the row.

    `file`, `start`, `stop`: int64 `[pieces]`, the bytes of each; `line`: int64 `[pieces]`, number of its first line,
    from 1; `row`: int64 `[pieces + 1]`, its first row.
    """

    file: Index
    start: Index
    stop: Index
    line: Index
    row: Index

    @classmethod
    def scan(cls, files: NamedFiles, rows: Callable[[int, bytes, int], int] | None = None) -> Lines:
        """One quick pass. `rows(file, piece, line)`: how many rows a piece makes, by default one a line.

        Raises `InputError` for lines beyond `MAX_LINE`, and for UTF-16.
        """
        table: list[tuple[int, int, int, int]] = []
        counts: list[int] = []
        for number, path in enumerate(files.paths):
            for start, data, line in _pieces(path, files.name(number)):
                count = newlines(data) if rows is None else rows(number, data, line)
                if count:
                    table.append((number, start, start + len(data), line))
                    counts.append(count)
        file, start_, stop, line_ = np.array(table, np.int64).reshape(-1, 4).T.copy()
        return cls(file, start_, stop, line_, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    def __len__(self) -> int:
        return int(self.row[-1])

    def spans(self) -> list[Span]:
        return [Span(a, b) for a, b in pairwise(self.row.tolist())]

    def within(self, span: Span) -> Iterator[tuple[int, int, int, int]]:
        """Piece, its rows from and to, and the number in its file of its first row, for all that a span covers."""
        row = span.start
        while row < span.stop:
            number = int(np.searchsorted(self.row, row, "right")) - 1
            first, behind = self.row[number : number + 2].tolist()
            stop = min(span.stop, behind)
            of_file = int(self.row[np.searchsorted(self.file, self.file[number])])
            yield number, row - first, stop - first, first - of_file
            row = stop

    def read(self, files: NamedFiles, number: int) -> bytes:
        """The bytes of a piece. Raises `InputError` when the file has changed."""
        file, size = int(self.file[number]), int(self.stop[number] - self.start[number])
        try:
            with open(files.paths[file], "rb") as stream:
                stream.seek(int(self.start[number]))
                data = stream.read(size)
        except OSError as error:
            raise InputError(f"{files.name(file)}: {error.strerror}") from error
        if len(data) != size:
            raise InputError(f"{files.name(file)}: the file has changed since it was listed")
        return data


def _pieces(path: str, name: str) -> Iterator[tuple[int, bytes, int]]:
    """First byte, bytes and first line of each piece of a file."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(len(BOM))
            if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{name}: {UTF16}")
            at, line = len(BOM) if head == BOM else 0, 1
            while True:
                stream.seek(at)
                size, data = SPAN_BYTES, stream.read(SPAN_BYTES)
                while len(data) == size and b"\n" not in data:
                    if size >= MAX_LINE:
                        raise InputError(f"{name}, line {line}: more than {MAX_LINE >> 20} MiB: not a text of lines")
                    size = min(2 * size, MAX_LINE)
                    data += stream.read(size - len(data))
                whole = data if len(data) < size else data[: data.rindex(b"\n") + 1]
                if whole:
                    yield at, whole, line
                    line += newlines(whole)
                    at += len(whole)
                if len(data) < size:
                    return
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error


def newlines(data: bytes) -> int:
    """Lines of a piece; the last may lack its end."""
    return data.count(b"\n") + (0 if data.endswith(b"\n") or not data else 1)


def split(data: bytes) -> Ragged:
    """The lines of a piece without their ends, uint8."""
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array == 10)
    starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
    keep = array != 10
    returns = ends[ends > 0] - 1
    keep[returns[array[returns] == 13]] = False
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])
    offsets = total[np.append(starts, len(data)) if starts[-1] < len(data) else starts]
    return Ragged(array[keep], offsets)
