"""Arrays named on the command line: `.npy` files and the members of `.npz` archives, one field each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Array, Block, Column
from bigconv.errors import InputError
from bigconv.schema import Schema
from bigconv.sources.base import SPAN_BYTES, Reject, Span, even_spans, origins
from bigconv.sources.filelist import FileList, told
from bigconv.sources.npy import ArrayFile, array_files, column_of, field_of


@dataclass(frozen=True)
class Arrays:
    """One field an array, rows along `axis`."""

    name: ClassVar[str] = "arrays"
    decodes: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("axis",)

    hints: ClassVar[tuple[str, ...]] = ()

    arrays: tuple[ArrayFile, ...]
    files: FileList
    names: tuple[str, ...]
    axis: int
    schema: Schema

    @classmethod
    def find(cls, paths: Sequence[Path], *, axis: int = 0) -> Arrays:
        """Read the headers. Raises `InputError` when rows differ or names clash."""
        files: dict[str, ArrayFile] = {}
        for path in paths:
            for file in array_files(path):
                name = file.member or path.stem
                if name in files:
                    raise InputError(f"{files[name].where} and {file.where} would both be field {name!r}")
                files[name] = file
        fields, rows = [], {}
        for name, file in files.items():
            if not -len(file.shape) <= axis < len(file.shape):
                raise InputError(f"{file.where}: no axis {axis} in an array of shape {file.shape}")
            at = axis % len(file.shape)
            rows[file.where] = file.shape[at]
            fields.append(field_of(name, file.dtype, file.shape[:at] + file.shape[at + 1 :], file.where))
        if len(set(rows.values())) > 1:
            (a, n), *others = rows.items()
            b, m = next(pair for pair in others if pair[1] != n)
            raise InputError(
                f"arrays named one by one make one field each, and need equal rows along axis {axis}: "
                f"{a} has {n}, {b} has {m}.\nTo read files one after another, name their folder with --rows"
            )
        return cls(tuple(files.values()), FileList.named(paths), tuple(files), axis, Schema(tuple(fields)))

    @property
    def inputs(self) -> int:
        return self.arrays[0].shape[self.axis]

    def plan(self) -> Sequence[Span]:
        row = sum(np.dtype(f.dtype).itemsize * int(np.prod(f.shape)) // max(1, self.inputs) for f in self.arrays)
        return even_spans(self.inputs, max(1, SPAN_BYTES // max(1, row)))

    def read(self, span: Span) -> Iterator[Block | Reject]:
        arrays = self._opened()
        columns: dict[str, Column] = {}
        for field, array in zip(self.schema, arrays, strict=True):
            columns[field.name] = column_of(array[span.start : span.stop], field)
        # every file has a part of each row, so the first stands for all
        yield Block(self.schema, columns, origins(0, np.arange(span.start, span.stop)))

    def _opened(self) -> list[Array]:
        held: list[Array] | None = self.__dict__.get("_open")
        if held is None:
            held = [np.moveaxis(file.open(), self.axis, 0) for file in self.arrays]
            self.__dict__["_open"] = held
        return held

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "axis": self.axis,
            "files": [
                {"path": told(f.path), "member": f.member, "dtype": f.dtype, "shape": list(f.shape)}
                for f in self.arrays
            ],
        }
