"""What files of record batches share: rows from any row onward, without reading what comes after, or before twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from bigconv.block import Block, Index
from bigconv.errors import InputError
from bigconv.schema import Schema
from bigconv.sources import table
from bigconv.sources.base import SPAN_BYTES, Reject, Span, origins
from bigconv.sources.columns import Column, Pack, columns_of
from bigconv.sources.filelist import FileList

MAX_PIECES = 65_536  # of one group, 512 GiB: what a damaged file says of its size must not fill the memory with spans


@dataclass(frozen=True)
class Group:
    """Rows that lie together in a file: a row group of Parquet, a record batch of Arrow."""

    file: int
    number: int  # in its file
    rows: int
    nbytes: int  # in memory, about


@dataclass(frozen=True, eq=False)
class BatchTable(ABC):
    """Rows of one table in one or many files of groups. A subclass says how a file is opened.

    Spans are rows, cut where groups end. Rows are decoded from the start of their group on, and an iterator is kept
    that goes on where the last span ended, so spans read in order decode each row once.
    """

    name: ClassVar[str]
    decodes: ClassVar[bool] = False  # pyarrow has threads of its own
    options: ClassVar[tuple[str, ...]] = table.OPTIONS
    hints: ClassVar[tuple[str, ...]] = ()

    found: table.TableFiles
    groups: tuple[Group, ...]
    layout: table.Layout

    @classmethod
    @abstractmethod
    def look(cls, path: str) -> tuple[Any, list[tuple[int, int]]]:
        """The Arrow schema of a file, and rows and bytes of each group."""

    @abstractmethod
    def batches(self, path: str, first: int, rows: int) -> Iterator[Any]:
        """`pyarrow.RecordBatch`es of about `rows` rows from the group numbered `first` to the end of the file."""

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        columns: Sequence[str] | None = None,
        pack: Pack = None,
        fill: float | None = None,
    ) -> Any:
        """Read what the files say about themselves. `columns`, `pack`, `fill`: see `table.Layout.of`.

        Raises `InputError` when the files aren't one table, `UsageError` for options that make no sense.
        """
        files = table.TableFiles.of(paths, cls.name)
        groups: list[Group] = []
        first: Any = None
        known: tuple[Column, ...] = ()
        for i, path in enumerate(files.paths):
            with reading(files.name(i)):
                schema, sizes = cls.look(path)
                schema = schema.remove_metadata()
                found = columns_of(schema)
            first, known = (schema, found) if first is None else (first, known)
            _same(first, schema, files.name(0), files.name(i))
            groups += [Group(i, k, rows, nbytes) for k, (rows, nbytes) in enumerate(sizes) if rows]
        return cls(files, tuple(groups), table.Layout.of(known, columns, pack, fill))

    @property
    def schema(self) -> Schema:
        return self.layout.schema

    @property
    def inputs(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def files(self) -> FileList:
        return self.found.files

    def plan(self) -> Sequence[Span]:
        """Small groups together, large ones cut evenly, about `SPAN_BYTES` each."""
        spans, start, stop, size = [], 0, 0, 0
        for group in self.groups:
            stop, size = stop + group.rows, size + group.nbytes
            if size >= SPAN_BYTES:
                step = max(1, -(-(stop - start) // min(MAX_PIECES, -(-size // SPAN_BYTES))))
                spans += [Span(i, min(i + step, stop)) for i in range(start, stop, step)]
                start, size = stop, 0
        return [*spans, Span(start, stop)] if start < stop else spans

    def read(self, span: Span) -> Iterator[Block | Reject]:
        row = span.start
        while row < span.stop:
            batch, file, inside = self._next(row, span.stop - row)
            name = self.found.name(file)
            try:
                with reading(name):
                    batch.validate(full=True)  # offsets and UTF-8, as the file has them
                yield from table.cut(self.layout.block(batch, origins(file, np.arange(inside, inside + len(batch)))))
            except table.Missing as gap:
                raise gap.at(f"{name}, row {inside + gap.index}") from None
            row += len(batch)

    def _next(self, row: int, limit: int) -> tuple[Any, int, int]:
        """A batch of at most `limit` rows that starts at `row`, its file, and its first row there."""
        state: _Cursor | None = self.__dict__.get("_open")
        if state is None or not state.reaches(row):
            state = self.__dict__["_open"] = _Cursor(self, row)
        return state.take(row, limit)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.found),
            "bytes": int(self.files.sizes.sum()),
            **self.layout.describe(),
        }


class _Cursor:
    """A place in a table, and the batch that is being used up."""

    def __init__(self, source: BatchTable, row: int) -> None:
        self._source = source
        rows = np.array([group.rows for group in source.groups], np.int64)
        self._starts: Index = np.concatenate([[0], np.cumsum(rows)])
        self._files = np.array([group.file for group in source.groups], np.int64)
        self._enter(int(np.searchsorted(self._starts, row, "right")) - 1)

    def _enter(self, group: int) -> None:
        """Start at a group."""
        here = self._source.groups[group]
        self.row = int(self._starts[group])
        self._file = here.file
        self._base = int(self._starts[np.searchsorted(self._files, here.file)])  # the file's first row
        self._end = int(self._starts[np.searchsorted(self._files, here.file, "right")])  # behind its last
        rows = max(1, here.rows * SPAN_BYTES // max(SPAN_BYTES, here.nbytes))
        self._name = self._source.found.name(here.file)
        with reading(self._name):
            self._batches = self._source.batches(self._source.found.paths[here.file], here.number, rows)
        self._batch: Any = None

    def reaches(self, row: int) -> bool:
        """Whether going on is no more work than starting again at the row's group."""
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        return self.row <= row <= self._end and (row == self._end or self._starts[group] <= self.row)

    def take(self, row: int, limit: int) -> tuple[Any, int, int]:
        if row == self._end:
            self._enter(int(np.searchsorted(self._starts, row, "right")) - 1)
        while True:
            if self._batch is None or not len(self._batch):
                with reading(self._name):
                    self._batch = next(self._batches, None)
                if self._batch is None:
                    raise InputError(f"{self._name}: the file has changed since it was listed")
            skip = min(row - self.row, len(self._batch))
            self._batch, self.row = self._batch.slice(skip), self.row + skip
            if len(self._batch):
                break
        batch = self._batch.slice(0, limit)
        self._batch, self.row = self._batch.slice(len(batch)), self.row + len(batch)
        return batch, self._file, row - self._base


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Arrow's own errors about a file, as ours: it raises OSError for bad data, too."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    """What an error of Arrow means for a file; Arrow's own words are what `--debug` shows."""
    said = str(error).partition("\n")[0][:300]
    if "size is 0 bytes" in said or "Tried reading schema message, was null" in said:
        return "an empty file"
    if "magic bytes" in said or "Not an Arrow file" in said or "too small to be" in said or "Expected to read" in said:
        return "not of its format, or cut short: the mark at its end is missing. Copy or download it again"
    if any(word in said for word in ("Corrupt", "decompress", "Decompress", "zlib", "ZSTD", "LZ4", "Unexpected end")):
        return "damaged: the values of a column can't be unpacked"
    return f"can't be read: {said or type(error).__name__}"


def _same(first: Any, schema: Any, name: str, other: str) -> None:
    if schema.equals(first):
        return
    for a in first:
        at = schema.get_field_index(a.name)
        kind = schema.field(at).type if at >= 0 else "missing"
        if kind != a.type:
            raise InputError(f"column {a.name!r} is {a.type} in {name}, but {kind} in {other}")
    if len(schema) != len(first):
        raise InputError(f"{other} has {len(schema)} columns, {name} has {len(first)}")
