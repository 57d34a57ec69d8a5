"""Entries of a sparse matrix by rows, from an archive that is read front to back."""

from __future__ import annotations

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import InputError
from bigconv.schema import dtype_name
from bigconv.sources import npy
from bigconv.sources.base import SPAN_BYTES
from bigconv.sources.npy import ArrayFile

GROUP_BYTES = 256 << 20  # 256 MiB of entries that are brought in order at once; larger matrices take several passes
READ_ITEMS = 1 << 20  # 1 Mi items of a member at once
MAX_ROWS = 1 << 27  # of CSC and COO, whose rows have to be counted: 1 GiB of counts


@dataclass(frozen=True)
class Matrix:
    """One file: `format` is csr, csc or coo; `arrays`: those that its entries are in, by name."""

    format: str
    rows: int
    columns: int
    arrays: dict[str, ArrayFile]

    @property
    def entries(self) -> int:
        return self.arrays["data"].shape[0]

    @property
    def values(self) -> str:
        """Canonical dtype of the values."""
        return dtype_name(self.arrays["data"].dtype, self.arrays["data"].where)


class Entries(ABC):
    """Entries of a matrix by rows. `indptr`: int64 `[rows + 1]`, the first entry of each."""

    indptr: Index

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._members = {name: _Member(file) for name, file in matrix.arrays.items()}
        self._item = 8 + np.dtype(matrix.values).itemsize  # bytes of an entry

    def near(self, low: int, high: int, nbytes: int = SPAN_BYTES) -> int:
        """The row up to which rows from `low` have about `nbytes`, at least one."""
        limit = self.indptr[low] + nbytes // self._item
        return min(high, max(low + 1, int(np.searchsorted(self.indptr, limit, "right")) - 1))

    @abstractmethod
    def rows(self, low: int, high: int) -> tuple[Index, Index, Array]:
        """Offsets, columns and values of the entries of rows `low` to `high`."""


class Csr(Entries):
    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix)
        self.indptr = _pointers(self._members["indptr"], matrix.rows, matrix.entries)

    def rows(self, low: int, high: int) -> tuple[Index, Index, Array]:
        offsets = self.indptr[low : high + 1]
        start, stop = int(offsets[0]), int(offsets[-1])
        indices = self._members["indices"].read(start, stop).astype(np.int64)
        return offsets - start, indices, self._members["data"].read(start, stop)


class Sorted(Entries):
    """CSC and COO: rows are counted once, then groups of them picked out and sorted."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix)
        if matrix.rows > MAX_ROWS:
            raise InputError(f"{self._where}: {matrix.format} of {matrix.rows} rows; save it as CSR: matrix.tocsr()")
        self._columns = None
        if matrix.format == "csc":
            self._columns = _pointers(self._members["indptr"], matrix.columns, matrix.entries)
        counts = np.zeros(matrix.rows + 1, np.int64)
        for start, stop in self._chunks():
            rows = self._rows_of(start, stop)
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < matrix.rows:
                raise InputError(f"{self._where}: an entry lies outside of its {matrix.rows} rows")
            held = np.bincount(rows)
            counts[1 : len(held) + 1] += held
        self.indptr = np.cumsum(counts)
        self._low = self._high = 0
        self._group: tuple[Index, Array] = np.empty(0, np.int64), np.empty(0)

    @property
    def _where(self) -> str:
        return self._matrix.arrays["data"].path

    def _chunks(self) -> Iterator[tuple[int, int]]:
        entries = self._matrix.entries
        for start in range(0, max(entries, 1), READ_ITEMS):
            yield start, min(start + READ_ITEMS, entries)

    def _rows_of(self, start: int, stop: int) -> Index:
        return self._members["indices" if self._columns is not None else "row"].read(start, stop).astype(np.int64)

    def _columns_of(self, start: int, stop: int) -> Index:
        if self._columns is None:
            return self._members["col"].read(start, stop).astype(np.int64)
        return np.searchsorted(self._columns, np.arange(start, stop), "right") - 1

    def rows(self, low: int, high: int) -> tuple[Index, Index, Array]:
        if not self._low <= low <= high <= self._high:
            self._collect(low, max(high, self.near(low, self._matrix.rows, GROUP_BYTES)))
        offsets = self.indptr[low : high + 1]
        start, stop = (int(n) for n in offsets[[0, -1]] - self.indptr[self._low])
        return offsets - offsets[0], self._group[0][start:stop], self._group[1][start:stop]

    def _collect(self, low: int, high: int) -> None:
        self._group = np.empty(0, np.int64), np.empty(0)  # the last group goes before this one comes
        pieces: list[tuple[Index, Index, Array]] = []
        for start, stop in self._chunks():
            rows = self._rows_of(start, stop)
            take = np.flatnonzero((rows >= low) & (rows < high))
            columns, values = self._columns_of(start, stop), self._members["data"].read(start, stop)
            pieces.append((rows[take], columns[take], values[take]))
        rows, columns, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        order = np.lexsort((columns, rows))  # stable: entries at the same place keep their order
        self._low, self._high, self._group = low, high, (columns[order], values[order])


class _Member:
    """An array of an archive, read front to back; its CRC-32 is checked at the end."""

    def __init__(self, file: ArrayFile) -> None:
        self._file = file
        self._stream: IO[bytes] | None = None
        self._at = 0

    def read(self, start: int, stop: int) -> Array:
        """Items from and to. Going back starts anew."""
        dtype = np.dtype(self._file.dtype)
        try:
            if self._stream is None or start < self._at:
                self._open()
            while self._at < start:
                step = min(start - self._at, READ_ITEMS)
                self._exactly(step * dtype.itemsize)
                self._at += step
            data = self._exactly((stop - start) * dtype.itemsize)
            self._at = stop
            if stop == self._file.shape[0] and self._stream is not None and self._stream.read(1):
                raise InputError(f"{self._file.where}: damaged: it is longer than its header says")
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise InputError(f"{self._file.where}: damaged: {error}") from error
        except MemoryError as error:
            raise InputError(f"{self._file.where}: {self._file.nbytes} bytes don't fit in memory") from error
        return np.frombuffer(data, dtype)

    def _open(self) -> None:
        if self._stream is not None:
            self._stream.close()
        with zipfile.ZipFile(self._file.path) as archive:
            self._stream = archive.open(f"{self._file.member}.npy")
        npy.read_header(self._stream, self._file.where)
        self._at = 0

    def _exactly(self, nbytes: int) -> bytes:
        assert self._stream is not None
        data = self._stream.read(nbytes)
        if len(data) != nbytes:
            raise InputError(f"{self._file.where}: cut short")
        return data


def _pointers(member: _Member, rows: int, entries: int) -> Index:
    """`indptr`, checked."""
    found = member.read(0, rows + 1).astype(np.int64)
    if found[0] != 0 or found[-1] != entries or (np.diff(found) < 0).any():
        raise InputError(f"{member._file.where}: damaged: it must rise from 0 to {entries}")
    return found
