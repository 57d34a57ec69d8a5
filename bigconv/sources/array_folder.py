"""A folder of arrays: one sample a file, or with `--rows` one sample a row of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block, Column, Ragged
from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources import npy
from bigconv.sources.array_rows import ArrayRows
from bigconv.sources.base import SPAN_BYTES, Reject, Span, origins
from bigconv.sources.filelist import FileList

FIELD = "array"  # of a .npy file; members of an .npz have names of their own
EXTENSIONS = registry.SOURCES["array-folder"].extensions
SPAN_FILES = 256  # so that millions of tiny files are not millions of spans, and a retry is short


@dataclass(frozen=True)
class ArrayFolder:
    """Each `.npy` or `.npz` file below a folder is a row, in bytewise order of the paths."""

    name: ClassVar[str] = "array-folder"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("rows", "axis")
    hints: ClassVar[tuple[str, ...]] = ()

    files: FileList
    schema: Schema

    @classmethod
    def find(cls, paths: Sequence[Path], *, rows: bool = False, axis: int = 0) -> ArrayFolder | ArrayRows:
        """List the files and read every header: the schema must hold for all of them.

        `rows`: files are put together along `axis`, instead of making one row each. Raises `InputError`, `UsageError`.
        """
        if len(paths) != 1 or not paths[0].is_dir():
            raise InputError("a folder of arrays is one folder; name the files themselves to make a field of each")
        files = FileList.below(paths[0], lambda name: name.lower().endswith(EXTENSIONS))
        if not len(files):
            raise InputError(f"{paths[0]}: no .npy or .npz files in it")
        if rows:
            return ArrayRows.of(files, _members, axis)
        if axis:
            raise UsageError("--axis has no meaning where each file is one row: --rows makes a row of each of theirs")
        first: dict[str, npy.ArrayFile] | None = None
        shapes: dict[str, list[int | None]] = {}
        for i in range(len(files)):
            try:
                here = _members(files.path(i))
            except InputError:
                continue  # a damaged file becomes a reject when it is read
            if first is None:
                first = here
                shapes = {name: list(file.shape) for name, file in here.items()}
                continue
            _fits(first, here)
            for name, file in here.items():
                shapes[name] = [a if a == b else None for a, b in zip(shapes[name], file.shape, strict=True)]
        if first is None:
            _members(files.path(0))  # raises, saying why
            raise InputError(f"{paths[0]}: no file in it can be read")
        fields = tuple(npy.field_of(name, file.dtype, shapes[name], file.where) for name, file in first.items())
        return cls(files, Schema(fields))

    @property
    def inputs(self) -> int:
        return len(self.files)

    def plan(self) -> Sequence[Span]:
        spans, start, size = [], 0, 0
        for i, nbytes in enumerate(self.files.sizes.tolist()):
            size += nbytes
            if size >= SPAN_BYTES or i + 1 - start == SPAN_FILES:
                spans.append(Span(start, i + 1))
                start, size = i + 1, 0
        if start < len(self.files):
            spans.append(Span(start, len(self.files)))
        return spans

    def read(self, span: Span) -> Iterator[Block | Reject]:
        rows: list[dict[str, Array]] = []
        first, held = span.start, 0  # files `first` to `i` are read and not yet yielded
        for i in range(span.start, span.stop):
            try:
                row = self._row(i)
            except (InputError, SchemaError) as error:
                if rows:
                    yield self._block(rows, first)
                rows, first, held = [], i + 1, 0
                reason = str(error).removeprefix(self.files.path(i)).lstrip(": ")
                yield Reject(self.files.name(i), 0, "read", reason)
                continue
            rows.append(row)
            held += sum(array.nbytes for array in row.values())
            if held >= SPAN_BYTES:  # compressed files are larger here than on the disk
                yield self._block(rows, first)
                rows, first, held = [], i + 1, 0
        if rows:
            yield self._block(rows, first)

    def _row(self, i: int) -> dict[str, Array]:
        found = _members(self.files.path(i))
        if tuple(found) != self.schema.names:
            raise InputError(f"has the arrays {', '.join(found)} instead of {', '.join(self.schema.names)}")
        row = {}
        for f in self.schema:
            array = np.array(found[f.name].open())  # a copy: a map holds a file descriptor, and a span has many files
            if f.kind == "text" and array.dtype.kind in "US" and array.ndim == 0:
                array = np.frombuffer(npy.utf8(array.item(), found[f.name].where), np.uint8)
            elif array.dtype.newbyteorder("=") != np.dtype(f.dtype):
                raise InputError(f"dtype {array.dtype} instead of {'text' if f.kind == 'text' else f.dtype}")
            Ragged.of([array], f) if f.ragged else _same_shape(array, f)
            row[f.name] = array
        return row

    def _block(self, rows: list[dict[str, Array]], first: int) -> Block:
        columns: dict[str, Column] = {}
        for f in self.schema:
            cells = [row[f.name] for row in rows]
            columns[f.name] = Ragged.of(cells, f) if f.ragged else np.stack(cells).astype(f.dtype, copy=False)
        return Block(self.schema, columns, origins(np.arange(first, first + len(rows))))

    def describe(self) -> dict[str, Any]:
        return {"kind": self.name, "files": len(self.files), "bytes": int(self.files.sizes.sum())}


def _members(path: str) -> dict[str, npy.ArrayFile]:
    return {file.member or FIELD: file for file in npy.array_files(Path(path))}


def _same_shape(array: Array, field: Field) -> None:
    if array.shape != field.shape:
        raise InputError(f"shape {array.shape} instead of {field.shape}")


def _fits(first: dict[str, npy.ArrayFile], here: dict[str, npy.ArrayFile]) -> None:
    where = next(iter(here.values())).path
    expected = next(iter(first.values())).path
    if tuple(first) != tuple(here):
        raise InputError(f"{where} has the arrays {', '.join(here)}, but {expected} has {', '.join(first)}")
    for name, file in here.items():
        other = first[name]
        text = np.dtype(file.dtype).kind in "US" and np.dtype(other.dtype).kind in "US"
        if not text and np.dtype(file.dtype).newbyteorder("=") != np.dtype(other.dtype).newbyteorder("="):
            raise InputError(
                f"mixed dtypes: {file.where} is {np.dtype(file.dtype).name}, "
                f"{other.where} is {np.dtype(other.dtype).name}.\n"
                "Samples of one store have one dtype: convert the odd ones, or keep them in folders of their own."
            )
        if len(file.shape) != len(other.shape):
            raise InputError(
                f"mixed dimensions: {file.where} has shape {file.shape}, {other.where} has {other.shape}.\n"
                "Samples of one store have the same number of axes."
            )
