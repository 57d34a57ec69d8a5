"""Sparse matrices as scipy saves them (`scipy.sparse.save_npz`): CSR, CSC, COO. Read by numpy, a piece at a time.

A row of the matrix is a row here, its entries as they are in the file: `indices` (columns, from 0) and `values`. The
number of columns is `length` in the manifest's source, and what `SparseCollate(length=…)` takes. CSC and COO are
brought into the order of rows group by group, each of which takes one more pass over the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Block, Index, Ragged
from bigconv.errors import InputError, SchemaError
from bigconv.schema import Field, Schema, dtype_name
from bigconv.sources import npy
from bigconv.sources.base import SPAN_BYTES, Reject, Span, origins
from bigconv.sources.filelist import FileList
from bigconv.sources.named import NamedFiles
from bigconv.sources.npy import ArrayFile
from bigconv.sources.rowwise import woven
from bigconv.sources.sparse_entries import Csr, Entries, Matrix, Sorted

INT32 = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Sparse:
    """Rows of one or many matrices with the same number of columns, one matrix after another.

    Fields: `indices`, int32 or, where there are more than 2^31 columns, int64 `[entries]`; `values` `[entries]`.
    `first`: int64 `[matrices + 1]`, the first row of each.
    """

    name: ClassVar[str] = "sparse"
    decodes: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()

    found: NamedFiles
    matrices: tuple[Matrix, ...]
    first: Index
    schema: Schema

    @classmethod
    def find(cls, paths: Sequence[Path]) -> Sparse:
        """Read the headers. Raises `InputError` for what scipy doesn't save, and matrices that don't fit together."""
        found = NamedFiles.of(paths, (".npz",), "sparse matrices (.npz)")
        matrices = tuple(_matrix(path) for path in found.paths)
        for matrix, path in zip(matrices, found.paths, strict=True):
            if (matrix.columns, matrix.values) != (matrices[0].columns, matrices[0].values):
                raise InputError(
                    f"{path}: {matrix.columns} columns of {matrix.values}, but {found.paths[0]} has "
                    f"{matrices[0].columns} of {matrices[0].values}"
                )
        index = "int32" if matrices[0].columns <= INT32 + 1 else "int64"
        schema = Schema((Field("indices", index, (None,)), Field("values", matrices[0].values, (None,))))
        return cls(found, matrices, np.cumsum([0, *(m.rows for m in matrices)], dtype=np.int64), schema)

    @property
    def files(self) -> FileList:
        return self.found.files

    @property
    def inputs(self) -> int:
        return int(self.first[-1])

    def plan(self) -> Sequence[Span]:
        """Rows of one matrix, of about `SPAN_BYTES` if all rows were alike."""
        spans = []
        item = sum(f.row_bytes for f in self.schema)
        for matrix, start in zip(self.matrices, self.first.tolist(), strict=False):
            step = max(1, matrix.rows * SPAN_BYTES // (matrix.entries * item + 16 * matrix.rows + 1))
            spans += [Span(start + i, start + min(i + step, matrix.rows)) for i in range(0, matrix.rows, step)]
        return spans

    def read(self, span: Span) -> Iterator[Block | Reject]:
        row = span.start
        while row < span.stop:
            number = int(np.searchsorted(self.first, row, "right")) - 1
            base = int(self.first[number])
            stop = min(span.stop, int(self.first[number + 1])) - base
            low = row - base
            while low < stop:
                high = self._entries(number).near(low, stop)
                yield from self._rows(number, low, high)
                low = high
            row = base + stop

    def _rows(self, number: int, low: int, high: int) -> Iterator[Block | Reject]:
        name, length = self.found.name(number), self.matrices[number].columns
        offsets, indices, values = self._entries(number).rows(low, high)
        rows, bad = np.arange(high - low), {}
        outside = np.flatnonzero((indices < 0) | (indices >= length))
        if len(outside):
            at = np.searchsorted(offsets, outside, "right") - 1
            for entry, row in reversed(list(zip(outside.tolist(), at.tolist(), strict=True))):
                why = f"column {indices[entry]} of a matrix with {length}"
                bad[row] = Reject(name, low + row, "read", why)
            rows = np.delete(rows, list(bad))
        columns = {
            "indices": Ragged(indices.astype(self.schema["indices"].dtype), offsets),
            "values": Ragged(values.astype(self.schema["values"].dtype, copy=False), offsets),
        }
        block = Block(self.schema, columns, origins(number, low + np.arange(high - low)))
        yield from woven(block.take(rows) if bad else block, rows, bad)

    def _entries(self, number: int) -> Entries:
        """The matrix that is at hand; another is closed."""
        at_hand: tuple[int, Entries] | None = self.__dict__.get("_open")
        if at_hand is None or at_hand[0] != number:
            cls = Csr if self.matrices[number].format == "csr" else Sorted
            at_hand = self.__dict__["_open"] = (number, cls(self.matrices[number]))
        return at_hand[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.found),
            "bytes": int(self.files.sizes.sum()),
            "length": self.matrices[0].columns,
        }


def _matrix(path: str) -> Matrix:
    arrays = {str(file.member): file for file in npy.array_files(Path(path))}
    if not {"format", "shape", "data"} <= arrays.keys():
        raise InputError(
            f"{path}: no sparse matrix that scipy saved: it has {', '.join(arrays)}.\n"
            "Arrays are read without --from sparse"
        )
    kind, shape = _small(arrays["format"]), _small(arrays["shape"])
    name = kind.decode("latin1") if isinstance(kind, bytes) else str(kind)
    members = {"csr": ("indices", "indptr"), "csc": ("indices", "indptr"), "coo": ("row", "col")}.get(name)
    if members is None or not set(members) <= arrays.keys():
        raise InputError(f"{path}: a {name[:20]} matrix; save it as CSR: scipy.sparse.save_npz(file, matrix.tocsr())")
    if not isinstance(shape, list) or len(shape) != 2 or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"{path}: damaged: its shape is {shape!r:.80}, expected rows and columns")
    matrix = Matrix(name, shape[0], shape[1], {key: arrays[key] for key in ("data", *members)})
    lengths = {"data": matrix.entries} if len(arrays["data"].shape) == 1 else {"data": -1}
    lengths |= dict.fromkeys(members, lengths["data"])
    if "indptr" in members:
        lengths["indptr"] = 1 + (matrix.rows if name == "csr" else matrix.columns)
    for key, length in lengths.items():
        file = arrays[key]
        if file.shape != (length,) or (key != "data" and np.dtype(file.dtype).kind not in "iu"):
            raise InputError(
                f"{file.where}: damaged: {np.dtype(file.dtype)} {file.shape} doesn't fit a matrix of {shape}"
            )
    try:
        dtype_name(arrays["data"].dtype, arrays["data"].where)
    except SchemaError as error:
        raise InputError(str(error)) from error
    return matrix


def _small(file: ArrayFile) -> Any:
    """The value of an array that should have a few bytes."""
    if file.nbytes > 256:
        raise InputError(f"{file.where}: damaged: {file.nbytes} bytes for what should be a few")
    return np.array(file.open()).tolist()
