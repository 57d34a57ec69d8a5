"""Record batches as blocks: which columns make which fields, and their values as numpy has them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bigconv import registry
from bigconv.block import Array, Block, Index, Ragged
from bigconv.block import Column as Values
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema, unknown
from bigconv.sources.base import SPAN_BYTES, OnlySome
from bigconv.sources.columns import (
    Column,
    Pack,
    array_type,
    field_of,
    is_number,
    pack_of,
    packed_field,
    parse_pack,
    plain,
)
from bigconv.sources.filelist import FileList

EXACT = 2**53  # float64 holds every integer up to here
OPTIONS = ("columns", "pack", "fill")  # of every kind of table


@dataclass(frozen=True, eq=False)
class TableFiles:
    """The files of one table, and where they are."""

    files: FileList
    paths: tuple[str, ...]

    @classmethod
    def of(cls, paths: Sequence[Path], source: str) -> TableFiles:
        """Those below one folder that `source` reads, or files named one by one. Raises `InputError`."""
        if len(paths) == 1 and paths[0].is_dir():
            extensions = registry.SOURCES[source].extensions
            files = FileList.below(paths[0], lambda name: name.lower().endswith(extensions))
            if not len(files):
                raise InputError(f"{paths[0]}: no {' or '.join(extensions)} files in it")
            return cls(files, tuple(files.path(i) for i in range(len(files))))
        odd = next((path for path in paths if not path.is_file()), None)
        if odd is not None:
            raise InputError(f"{odd}: not a file. A table is one folder, or files named one by one")
        return cls(FileList.named(paths), tuple(os.fspath(path) for path in paths))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """Path relative to the source, as messages show it."""
        return self.files.name(i)


class Missing(InputError):
    """No value where one is needed. `index`: row of the batch."""

    def __init__(self, column: str, index: int, where: str = "") -> None:
        super().__init__(
            f"{where}column {column} has no value here.\n--fill NUMBER puts one in place of all that are missing"
        )
        self.column, self.index = column, index

    def at(self, where: str) -> Missing:
        return Missing(self.column, self.index, f"{where}: ")


@dataclass(frozen=True)
class Layout:
    """Which columns make which fields. `members`: for each field one column, or those that are packed in it."""

    members: tuple[tuple[Column, ...], ...]
    packed: tuple[bool, ...]
    fill: float | None
    schema: Schema = field(compare=False)

    @classmethod
    def of(
        cls,
        found: Sequence[Column],
        columns: Sequence[str] | None = None,
        pack: Pack = None,
        fill: float | str | None = None,
    ) -> Layout:
        """Choose, order and pack. `columns`: the fields wanted, packs included, in this order (all, in the file's
        order); `pack`: field → numeric columns that make its rows, or `*`: all numeric ones that are neither in
        `columns` nor in another pack. Columns that are packed are no fields of their own. `fill`: a number;
        as text, where a recipe has `nan`.

        Raises `UsageError` for what makes no sense, `InputError` for columns that can't be fields.
        """
        known = {column.name: column for column in found}
        packs = parse_pack(pack)
        listed = list(dict.fromkeys(columns)) if columns is not None else None
        for name in [*(listed or []), *(name for names in packs.values() for name in names)]:
            if name not in known and name not in packs and name != "*":
                raise UsageError(unknown("column", name, tuple(known)[:50]))
        taken = {name for names in packs.values() for name in names}
        members: dict[str, tuple[Column, ...]] = {}
        for name, names in packs.items():
            if names == ("*",):
                apart = {*taken, *(listed or [])}
                names = tuple(c.name for c in found if is_number(c.type) and c.name not in apart)
                if not names:
                    raise InputError(f"--pack {name}=*: no numeric column is left for it")
                taken |= set(names)
            members[name] = tuple(known[n] for n in names)
        clash = next((name for name in packs if name in known and name not in taken), None)
        if clash is not None:
            raise UsageError(f"--pack {clash}: there is a column of that name; call the pack something else")
        if listed is None:
            order = [c.name if c.name not in taken else pack_of(c, members) for c in found]
        else:
            order = [*listed, *(name for name in packs if name not in listed)]
        fields, chosen, packed = [], [], []
        for name in dict.fromkeys(order):
            packed.append(name in members)
            chosen.append(members.get(name) or (known[name],))
            fields.append(packed_field(name, chosen[-1]) if packed[-1] else _field(known[name], found))
        number = float(fill) if isinstance(fill, str) else fill
        return cls(tuple(chosen), tuple(packed), number, Schema(tuple(fields)))

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: Arrow types of what is read, what is packed, and with what holes are filled."""
        told: dict[str, Any] = {"columns": {column.name: str(column.type) for column in self.columns}}
        names = [[column.name for column in columns] for columns in self.members]
        packs = {f.name: of for f, of, packed in zip(self.schema, names, self.packed, strict=True) if packed}
        if packs:
            told["pack"] = packs
        return told if self.fill is None else {**told, "fill": str(self.fill)}  # JSON has no nan

    @property
    def columns(self) -> tuple[Column, ...]:
        """What has to be read, each once, in the order of the fields."""
        return tuple(dict.fromkeys(c for columns in self.members for c in columns))

    def block(self, batch: Any, origin: Index) -> Block:
        """A block of a `pyarrow.RecordBatch`, whose top level has at least the columns that are needed.

        `origin`: int64 `[rows, 2]`. Raises `Missing`, and `InputError` for integers that a pack's dtype can't hold.
        """
        out: dict[str, Values] = {}
        for f, columns, packed in zip(self.schema, self.members, self.packed, strict=True):
            if not packed:
                out[f.name] = self._column(f, columns[0], batch)
                continue
            rows: Array = np.empty((batch.num_rows, len(columns)), f.dtype)
            for i, column in enumerate(columns):
                values = self._values(column, reach(batch, column.path), column.type)
                if rows.dtype.kind == "f" and values.dtype.kind in "iu" and values.dtype.itemsize == 8:
                    _fits(column, values)
                rows[:, i] = values
            out[f.name] = rows
        return Block(self.schema, out, origin)

    def _column(self, f: Field, column: Column, batch: Any) -> Values:
        array = _unwrapped(reach(batch, column.path))
        kind = plain(column.type)
        if not f.ragged:
            return self._values(column, array, column.type)
        if array.null_count and self.fill is None:
            raise Missing(column.name, _first_null(array))
        if f.kind in ("text", "bytes"):
            array = array.cast(pa.large_binary())
            if array.null_count:
                array = array.fill_null(b"")
            _, ends, data = array.buffers()
            at = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1] if len(array) else [0]
            offsets = np.asarray(at, np.int64)
            whole = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
            return Ragged(whole[offsets[0] : offsets[-1]], offsets - offsets[0])
        lengths = np.asarray(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        try:
            return Ragged(self._values(column, array.flatten(), kind.value_type), offsets)
        except Missing as gap:  # an item of a list, not the list
            raise Missing(column.name, int(np.searchsorted(offsets, gap.index, "right")) - 1) from None

    def _values(self, column: Column, array: Any, arrow: Any) -> Array:
        """Values of a fixed size, `[rows, *shape]`."""
        kind, array = plain(arrow), _unwrapped(array)
        if array.null_count and self.fill is None:
            raise Missing(column.name, _first_null(array))
        dtype, shape = array_type(kind)
        if not shape:
            return self._numbers(column, array, np.dtype(dtype))
        whole = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
        array = array.drop_null() if array.null_count else array
        if pa.types.is_fixed_size_binary(kind):
            start = array.offset * kind.byte_width
            data = np.frombuffer(array.buffers()[1], np.uint8) if len(array) else np.empty(0, np.uint8)
            flat: Array = data[start : start + len(array) * kind.byte_width]
        else:
            try:
                flat = self._values(column, array.flatten(), kind.value_type)
            except Missing as gap:
                raise Missing(column.name, gap.index // kind.list_size) from None
        flat = flat.reshape(len(array), *shape)
        if whole.all():
            return flat
        out: Array = np.full((len(whole), *shape), self._filler(column, np.dtype(dtype)), dtype)
        out[whole] = flat
        return out

    def _numbers(self, column: Column, array: Any, dtype: np.dtype[Any]) -> Array:
        kind = array.type
        if pa.types.is_null(kind):
            return np.full(len(array), self._filler(column, dtype), dtype)
        if pa.types.is_decimal(kind):
            array = array.cast(pa.float64())
        elif pa.types.is_temporal(kind):
            array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
        if not array.null_count:
            return np.asarray(array.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)
        valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
        out: Array = np.full(len(array), self._filler(column, dtype), dtype)
        out[valid] = array.drop_null().to_numpy(zero_copy_only=False)
        return out

    def _filler(self, column: Column, dtype: np.dtype[Any]) -> Any:
        assert self.fill is not None
        try:
            number = int(self.fill) if dtype.kind in "iub" and self.fill == int(self.fill) else self.fill
            filler = np.array([number]).astype(dtype)[0] if dtype.kind == "f" else np.array([number], dtype)[0]
            if filler == number or (dtype.kind == "f"):
                return filler
        except (OverflowError, ValueError):
            pass
        wider = f".\n--dtypes {column.name}=float64 makes room in CSV and JSON lines" if dtype.kind in "iu" else ""
        raise UsageError(f"--fill {self.fill} can't stand in column {column.name}, which is {dtype}{wider}")


def _field(column: Column, found: Sequence[Column]) -> Field:
    """Raises `OnlySome`, which names the columns that can be fields."""
    try:
        return field_of(column)
    except InputError as error:
        raise OnlySome(str(error), [other.name for other in found if _can_be(other)]) from error


def _can_be(column: Column) -> bool:
    try:
        return bool(field_of(column))
    except InputError:
        return False


def batch_of(table: Any) -> Any:
    """A whole `pyarrow.Table`, which has rows, as one batch."""
    return table.combine_chunks().to_batches(max_chunksize=len(table))[0]


def cut(block: Block) -> Iterator[Block]:
    """The same rows in blocks of about `SPAN_BYTES`: numbers may take more bytes than their text."""
    rows = max(1, len(block) * SPAN_BYTES // max(SPAN_BYTES, block.nbytes))
    for start in range(0, len(block), rows):
        yield block if rows >= len(block) else block.slice(start, min(start + rows, len(block)))


def _unwrapped(array: Any) -> Any:
    """The same values without dictionaries and extensions."""
    while True:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif isinstance(array, pa.ExtensionArray):
            array = array.storage
        else:
            return array


def reach(batch: Any, path: tuple[str, ...]) -> Any:
    """A column by its path; a member of a struct that is missing is missing too."""
    array = batch.column(batch.schema.get_field_index(path[0]))
    for name in path[1:]:
        array = _unwrapped(array)
        array = array.flatten()[array.type.get_field_index(name)]
    return array


def _first_null(array: Any) -> int:
    return int(np.flatnonzero(np.asarray(array.is_null().to_numpy(zero_copy_only=False)))[0])


def _fits(column: Column, values: Array) -> None:
    if len(values) and (int(values.max()) > EXACT or int(values.min()) < -EXACT):
        raise InputError(
            f"column {column.name} has integers beyond 2^53, which float64 can't hold: keep it out of the pack"
        )
