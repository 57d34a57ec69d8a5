"""What stores in columns share: parts as growing files, and slow reading through the plain library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import fsio
from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.digest import raw
from bigconv.errors import SchemaError
from bigconv.schema import Field, Part, Schema


def part_file(part: Part) -> str:
    return part.name.replace("/", ".") + ".npy"


class Columns:
    """The parts of a schema as files that only grow: what memmap is, and what HDF5 starts from."""

    def __init__(self, path: Path, schema: Schema, head: int = 0, state: Mapping[str, Any] | None = None) -> None:
        """Start in a new folder, or go on from what `checkpoint` told."""
        path.mkdir(exist_ok=state is not None)
        self.path, self.schema, self.head, self.rows = path, schema, head, 0
        self._totals = {f.name: 0 for f in schema if f.ragged}
        names = [part_file(part) for part in schema.parts()]
        if len({n.casefold() for n in names}) != len(names):
            raise SchemaError(f"two fields would share a file: {sorted(names)}")
        self.files: dict[str, fsio.AppendFile] = {}
        if state is not None:
            self.rows = int(state["rows"])
            self._totals = {name: int(state["totals"][name]) for name in self._totals}
        for part in schema.parts():
            self.files[part.name] = self._file(part, state)

    def _file(self, part: Part, state: Mapping[str, Any] | None) -> fsio.AppendFile:
        keep = 0 if state is None else self.head + self.items(part) * part.item_bytes
        file = fsio.AppendFile(self.path / part_file(part), keep)
        if state is None:
            file.write(bytes(self.head))
            if part.role == "offsets":
                file.write(np.zeros(1, "<i8").tobytes())
        return file

    def checkpoint(self) -> dict[str, Any]:
        for file in self.files.values():
            file.sync()
        fsio.sync_folder(self.path)
        return {"rows": self.rows, "totals": dict(self._totals)}

    def append(self, block: Block) -> None:
        for f in self.schema:
            column = block.columns[f.name]
            if isinstance(column, Ragged):
                self._write(f"{f.name}/values", column.values)
                self._write(f"{f.name}/offsets", column.offsets[1:] + self._totals[f.name])
                self._totals[f.name] += int(column.offsets[-1])
                if column.shapes is not None:
                    self._write(f"{f.name}/shapes", column.shapes)
            else:
                self._write(f.name, column)
        self.rows += len(block)

    def _write(self, part: str, array: Array) -> None:
        self.files[part].write(raw(array))

    def items(self, part: Part) -> int:
        """How many items of a part have been written."""
        return part_items(part, self.rows, self._totals.get(part.field, 0))

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def part_items(part: Part, rows: int, total: int) -> int:
    """Items of a part in a store of `rows` rows whose ragged field has `total` items."""
    return {"rows": rows, "offsets": rows + 1, "shapes": rows, "values": total}[part.role]


def take_column(f: Field, get: Callable[[str], Any], rows: Index) -> Column:
    """Rows of one field from the plain arrays `get(part name)`, one row after another.

    `get` gives, for a part's name, anything with numpy's slicing (numpy, h5py or zarr).
    """
    if not f.ragged:
        source = get(f.name)
        out = np.empty((len(rows), *f.item_shape), f.dtype)
        for i, row in enumerate(rows.tolist()):
            out[i] = source[row]
        return out
    values, offsets = get(f"{f.name}/values"), get(f"{f.name}/offsets")
    shapes = get(f"{f.name}/shapes") if f.has_shapes else None
    cells = []
    for row in rows.tolist():
        a, b = (int(n) for n in offsets[row : row + 2])
        cell = np.asarray(values[a:b])
        cells.append(cell if shapes is None else cell.reshape(tuple(np.asarray(shapes[row]).tolist())))
    return Ragged.of(cells, f)
