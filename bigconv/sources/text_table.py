"""What tables of text records share: spans read at once, and record by record where something is wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from bigconv.block import Block, Index
from bigconv.schema import Schema
from bigconv.sources.base import Reject, Span, origins
from bigconv.sources.filelist import FileList
from bigconv.sources.records import Records, Syntax, extents, line_numbers, lines
from bigconv.sources.table import Layout, Missing, TableFiles, batch_of, cut

PARSE_BYTES = 1 << 20  # 1 MiB: pyarrow's blocks; past it, they no longer fit the cache
Extent = tuple[int, int, int]  # number of a record, its first byte, the byte behind it


class BadRecord(Exception):
    """A record that can be parsed, but not as what it says; or not told from its neighbours."""


@dataclass(frozen=True, eq=False)
class TextTable(ABC):
    """Rows of one table in one or many files of records. A subclass says how bytes become an Arrow table."""

    name: ClassVar[str]
    decodes: ClassVar[bool] = False  # pyarrow has threads of its own
    hints: ClassVar[tuple[str, ...]] = ()

    found: TableFiles
    records: Records
    syntax: Syntax
    layout: Layout

    @abstractmethod
    def parse(self, data: bytes, file: int, threads: bool) -> Any:
        """A `pyarrow.Table` with a row a record. Raises `BadRecord`, `pyarrow.ArrowInvalid` or `UnicodeDecodeError`."""

    def sound(self, data: bytes, file: int, records: Sequence[Extent]) -> tuple[Sequence[Extent], dict[int, str]]:
        """Records that have the right structure, and what is wrong with the others, by number."""
        return records, {}

    def reason(self, error: Exception, file: int) -> str:
        """What is wrong with a record that `parse` refused."""
        return str(error)

    @property
    def schema(self) -> Schema:
        return self.layout.schema

    @property
    def inputs(self) -> int:
        return len(self.records)

    @property
    def files(self) -> FileList:
        return self.found.files

    def plan(self) -> Sequence[Span]:
        return self.records.spans()

    def read(self, span: Span) -> Iterator[Block | Reject]:
        row = span.start
        while row < span.stop:
            number = self.records.number(row)
            first, behind = self.records.row[number : number + 2].tolist()
            stop = min(span.stop, behind)
            yield from self._read(number, row - first, stop - first, behind - first)
            row = stop

    def _read(self, number: int, low: int, high: int, count: int) -> Iterator[Block | Reject]:
        """Records `low` to `high` of the `count` that a span of the plan has."""
        data = self.records.read(self.found, number)
        line = int(self.records.line[number])
        if high - low < count:
            at = [*self.syntax.starts(data).tolist(), len(data)]
            line += lines(data, at[low])
            data = data[at[low] : at[high]]
        file = int(self.records.file[number])
        first = int(self.records.first[number]) + low
        name = self.found.name(file)
        rows, table, bad = self._table(data, file, high - low)

        numbers: list[Index] = []  # of lines, once they are asked for

        def place(row: int) -> str:
            if not numbers:
                numbers.append(line + line_numbers(data, self.syntax.starts(data)))
            return f"line {numbers[0][row]}"

        block = None
        if table is not None:
            try:
                block = self.layout.block(batch_of(table), origins(file, first + rows))
            except Missing as gap:
                row = int(rows[gap.index])
                raise gap.at(f"{name}, {place(row)}, row {first + row}") from None
        done = 0
        for row, reason in sorted(bad.items()):
            upto = int(np.searchsorted(rows, row))
            if block is not None and done < upto:
                yield from cut(block.slice(done, upto))
                done = upto
            yield Reject(name, first + row, "read", f"{place(row)}: {reason}")
        if block is not None and done < len(block):
            yield from cut(block.slice(done, len(block)) if done else block)

    def _table(self, data: bytes, file: int, count: int) -> tuple[Index, Any, dict[int, str]]:
        """Numbers of the records that can be read, int64, a `pyarrow.Table` of them, and why the others can't."""
        try:
            table = self.parse(data, file, threads=parent_process() is None)
            if table.num_rows != count:
                raise BadRecord("records and rows differ")
            return np.arange(count), table, {}
        except (BadRecord, pa.ArrowInvalid, UnicodeDecodeError):
            records, bad = self.sound(data, file, extents(self.syntax.starts(data), len(data)))
        tables, numbers = [], []
        for which, item in salvage(data, records, lambda piece: self.parse(piece, file, threads=False)):
            if isinstance(item, Exception):
                bad[which[0]] = self.reason(item, file)
            else:
                tables.append(item)
                numbers += which
        return np.array(numbers, np.int64), pa.concat_tables(tables) if tables else None, bad

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.found),
            "bytes": int(self.files.sizes.sum()),
            **self.layout.describe(),
        }


def salvage(data: bytes, records: Sequence[Extent], parse: Callable[[bytes], Any]) -> Iterator[tuple[list[int], Any]]:
    """Records of which some can't be read: as many at once as can be.

    Yields the numbers of records with the table that `parse` makes of them, or one number with the error it raises.
    """
    todo = [(0, len(records))] if records else []
    while todo:
        low, high = todo.pop()
        piece = records[low:high]
        try:
            table = parse(b"".join(data[start:stop] for _, start, stop in piece))
            if table.num_rows != len(piece):
                raise BadRecord("more than one value on a line" if table.num_rows else "no value")
        except (BadRecord, pa.ArrowInvalid, UnicodeDecodeError) as error:
            if len(piece) == 1:
                yield [piece[0][0]], error
            else:
                middle = (low + high) // 2
                todo += [(middle, high), (low, middle)]
            continue
        yield [number for number, _, _ in piece], table


def widened(read: Callable[[int], Any], data: bytes) -> Any:
    """`read(block_size)`, with blocks as large as it takes: a record must lie in two of pyarrow's at most."""
    try:
        return read(PARSE_BYTES)
    except pa.ArrowInvalid as error:
        if len(data) < PARSE_BYTES or "straddl" not in str(error):
            raise
        return read(len(data) + 1)
