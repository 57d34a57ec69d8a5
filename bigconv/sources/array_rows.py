"""`--rows`: the arrays of a folder one after another, along their rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.errors import InputError
from bigconv.schema import Schema
from bigconv.sources import npy
from bigconv.sources.base import SPAN_BYTES, Reject, Span, even_spans, origins
from bigconv.sources.filelist import FileList

Members = Callable[[str], dict[str, npy.ArrayFile]]


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Rows of all files below a folder, in bytewise order of the paths.

    `first`: int64 `[files + 1]`, the first row of each. Rows of another shape than those of other files make a field
    ragged.
    """

    name: ClassVar[str] = "array-folder"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("rows", "axis")
    hints: ClassVar[tuple[str, ...]] = ()

    files: FileList
    members: Members
    axis: int
    first: Index
    schema: Schema

    @classmethod
    def of(cls, files: FileList, members: Members, axis: int) -> ArrayRows:
        """Read every header: fields must be those of the first file. `members`: the arrays of a file, by field.

        Raises `InputError`.
        """
        first = [0]
        known: dict[str, npy.ArrayFile] = {}
        shapes: dict[str, list[int | None]] = {}
        for i in range(len(files)):
            here = members(files.path(i))
            known = known or here
            if tuple(here) != tuple(known):
                raise InputError(f"{files.path(i)}: has the arrays {', '.join(here)} instead of {', '.join(known)}")
            rows = {name: _extent(file, axis) for name, file in here.items()}
            if len(set(rows.values())) > 1:
                told = ", ".join(f"{n} in {name}" for name, n in rows.items())
                raise InputError(f"{files.path(i)}: its arrays need equal rows along axis {axis}: {told}")
            first.append(first[-1] + next(iter(rows.values())))
            for name, file in here.items():
                shape = [n for at, n in enumerate(file.shape) if at != axis % len(file.shape)]
                before = shapes.setdefault(name, list(shape))
                if len(before) != len(shape) or not _same_type(known[name].dtype, file.dtype):
                    raise InputError(
                        f"{file.where}: rows of {np.dtype(file.dtype)} {shape}, but {known[name].where} has "
                        f"{np.dtype(known[name].dtype)} {list(known[name].shape)}"
                    )
                shapes[name] = [a if a == b else None for a, b in zip(before, shape, strict=True)]
        fields = tuple(npy.field_of(name, file.dtype, shapes[name], file.where) for name, file in known.items())
        return cls(files, members, axis, np.array(first, np.int64), Schema(fields))

    @property
    def inputs(self) -> int:
        return int(self.first[-1])

    def plan(self) -> list[Span]:
        row = max(1, int(self.files.sizes.sum()) // max(1, self.inputs))
        return even_spans(self.inputs, max(1, SPAN_BYTES // row))

    def read(self, span: Span) -> Iterator[Block | Reject]:
        row = span.start
        while row < span.stop:
            number = int(np.searchsorted(self.first, row, "right")) - 1
            base = int(self.first[number])
            stop = min(span.stop, int(self.first[number + 1]))
            yield from self._read(number, row - base, stop - base)
            row = stop

    def _read(self, number: int, start: int, stop: int) -> Iterator[Block | Reject]:
        try:
            columns: dict[str, Column] = {}
            arrays = self._arrays(number)
            for f in self.schema:
                cells = arrays[f.name][start:stop]
                if f.ragged and f.kind != "text":
                    columns[f.name] = Ragged.of([np.asarray(cell) for cell in cells], f)
                else:
                    columns[f.name] = npy.column_of(cells, f)
            yield Block(self.schema, columns, origins(number, np.arange(start, stop)))
        except InputError as error:
            why = str(error).removeprefix(self.files.path(number)).lstrip(": ")
            for row in range(start, stop):
                yield Reject(self.files.name(number), row, "read", why)

    def _arrays(self, number: int) -> dict[str, Array]:
        """The arrays of a file with rows in front; those of another file are closed."""
        at_hand: tuple[int, dict[str, Array]] | None = self.__dict__.get("_open")
        if at_hand is None or at_hand[0] != number:
            path = self.files.path(number)
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise InputError(error.strerror or str(error)) from error
            if size != self.files.sizes[number]:
                raise InputError(f"changed since it was listed with {int(self.files.sizes[number])} bytes")
            arrays = {name: np.moveaxis(file.open(), self.axis, 0) for name, file in self.members(path).items()}
            at_hand = self.__dict__["_open"] = (number, arrays)
        return at_hand[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def describe(self) -> dict[str, Any]:
        told = {"kind": self.name, "files": len(self.files), "bytes": int(self.files.sizes.sum())}
        return {**told, "rows": self.inputs, "axis": self.axis}


def _extent(file: npy.ArrayFile, axis: int) -> int:
    if not -len(file.shape) <= axis < len(file.shape):
        raise InputError(f"{file.where}: no axis {axis} in an array of shape {file.shape}")
    return file.shape[axis]


def _same_type(one: str, other: str) -> bool:
    a, b = np.dtype(one), np.dtype(other)
    return (a.kind in "US" and b.kind in "US") or a.newbyteorder("=") == b.newbyteorder("=")
