"""Sliding windows over a stream of items: which they are, by arithmetic alone, and their gathering.

No window is stored anywhere: a window's place follows from its number, and from one count a segment where the stream
has segments (documents, groups) that no window may cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.view.items import ItemStream, Room, first_items, serial
from bigconv.view.row_numbers import numbers
from bigconv.view.segments import Segments
from bigconv.view.table import StoreView

_MOST = 1 << 30  # items: past this a window's span would no longer fit 64 bits
_BYTE_KINDS = ("text", "bytes", "encoded")  # ragged by definition, so a window of them is of kind array


@dataclass(frozen=True)
class Sliding:
    """How windows lie: each has `length` items `dilation` apart, and begins `stride` items after the one before.

    `horizon` further items, in the same rhythm, belong to it as what is to be foretold. `drop_partial=False` adds, at
    the end of a segment, one window with the items that are left over.
    """

    length: int
    stride: int = 1
    horizon: int = 0
    dilation: int = 1
    drop_partial: bool = True

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("stride", 1), ("horizon", 0), ("dilation", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= _MOST:
                raise UsageError(f"{name} must be a whole number from {least} to {_MOST}, got {value!r}")
            object.__setattr__(self, name, int(value))
        if self.horizon and not self.drop_partial:
            raise UsageError("drop_partial=False gives windows without their horizon; leave one of the two out")

    @property
    def span(self) -> int:
        """Items from a window's first to its last, the horizon's among them."""
        return (self.length + self.horizon - 1) * self.dilation + 1

    def counts(self, items: Index) -> Index:
        """int64 `[segments]`: windows in segments of so many items."""
        spare = items - self.span
        full: Index = np.where(spare >= 0, spare // self.stride + 1, 0)
        if self.drop_partial:
            return full
        # one more where it has an item of its own, that is where it begins inside, and the last full one ends before
        left = (full * self.stride < items) & ((full - 1) * self.stride + self.span < items)
        full += left | ((full == 0) & (items > 0))
        return full


class Windows:
    """The windows of all segments, numbered from 0.

    `bounds`: int64 `[segments + 1]`, the first item of each segment and the end of the last.
    """

    def __init__(self, sliding: Sliding, bounds: Index) -> None:
        self.sliding, self.bounds = sliding, bounds
        self._before = np.zeros(len(bounds), np.int64)  # windows in the segments before
        np.cumsum(sliding.counts(np.diff(bounds)), out=self._before[1:])
        self._origin = bounds - self._before * sliding.stride  # first item of each segment's window number 0, so to say
        self._segments = Segments(self._before)

    def __len__(self) -> int:
        return int(self._before[-1])

    def locate(self, windows: Index) -> tuple[Index, Index]:
        """int64 `[windows]` both: segment and first item of windows of these numbers."""
        if len(self.bounds) == 2:
            start = windows * self.sliding.stride
            start += self.bounds[0]
            return np.zeros(len(windows), np.int64), start
        segment = self._segments.of(windows)
        start = self._origin.take(segment)
        start += windows * self.sliding.stride
        return segment, start

    def held(self, segment: Index, start: Index) -> Index:
        """int64 `[windows]`: items that each window has, less than `length` for a partial one."""
        left: Index = (self.bounds[segment + 1] - start - 1) // self.sliding.dilation + 1
        return np.minimum(left, self.sliding.length, out=left)


@dataclass(frozen=True, eq=False)
class _Index:
    """What is worked out of a store when its windows are first asked for."""

    windows: Windows
    streams: dict[str, ItemStream]


class WindowView:
    """Windows over fields of a view, each a row of a table of its own: `[length, *shape]` for every field.

    Over fixed fields an item is a row; over ragged ones it is a value inside a row (a document), which windows don't
    leave unless `cross_documents`. `targets`: fields of which the horizon is given, as `<field>_target`.
    `group`: a field; no window goes from one of its values to the next. `once`: fields given once a window, of its
    document or of the last row before its horizon. With `drop_partial=False`, `length` holds the number of items of
    each window, and the rest is zeros.

    Holds no window and no map: can be pickled, and survives a fork.
    """

    def __init__(
        self,
        view: StoreView,
        fields: Sequence[str],
        sliding: Sliding,
        targets: Sequence[str] = (),
        group: str | None = None,
        once: Sequence[str] = (),
        cross_documents: bool = False,
    ) -> None:
        inputs = [view.schema[name] for name in fields]
        asked = [view.schema[name] for name in targets]
        if not inputs:
            raise UsageError("windows need at least one field")
        ragged = _one_kind([*inputs, *asked])
        if asked and not sliding.horizon:
            raise UsageError("a target needs a horizon: give horizon=1 or more")
        if cross_documents and not ragged:
            raise UsageError(f"cross_documents: rows of {inputs[0].name} have one shape, so they are no documents")
        if group is not None and ragged and not cross_documents:
            raise UsageError("group: windows stay inside a row of a ragged field anyway; it goes with cross_documents")
        if once and cross_documents:
            raise UsageError(f"{once[0]} can't be given once a window: with cross_documents a window has many rows")
        columns = [_windowed(f, f.name, sliding.length) for f in inputs]
        columns += [_windowed(f, f"{f.name}_target", sliding.horizon) for f in asked]
        columns += [view.schema[name] for name in once]
        if not sliding.drop_partial:
            columns.append(Field("length", "int64"))
        self.schema = Schema(tuple(columns))
        self._inputs, self._targets = tuple(f.name for f in inputs), tuple(f.name for f in asked)
        self._once, self._group, self._cross, self._ragged = tuple(once), group, cross_documents, ragged
        self.sliding = sliding
        read = (*self._inputs, *self._targets, *self._once, *(() if group is None else (group,)))
        self._view = view.select(tuple(dict.fromkeys(read)))
        self._count = len(self._index.windows)

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._view.paths

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"WindowView({self._view.told}: {len(self)} windows of {', '.join(self._inputs)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    def close(self) -> None:
        """Let go of maps and files, which are opened again when the windows are read again."""
        self._view.close()

    # -- reading -------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """`windows[i]`: one window as a dict; `windows[a:b]`, `windows[numbers]`: a `Block`."""
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self)), dtype=np.int64))
        if isinstance(key, (int, np.integer)):
            return self.take([int(key)]).row(0)
        return self.take(key)

    def take(self, windows: Sequence[int] | Array, room: Room | None = None) -> Block:
        """Windows in the order given, in writable memory of their own. Raises `RowError` for one that isn't there.

        `room(name, nbytes)`: memory to use, if it has some to give.
        """
        return Block(self.schema, self.columns(windows, room))

    def columns(self, windows: Sequence[int] | Array, room: Room | None = None) -> dict[str, Column]:
        """What `take` gives, by name."""
        index, way = self._index, self.sliding
        segment, start = index.windows.locate(numbers(windows, len(self), "window", self._view.told_shortly))
        rows = segment if self._ragged and not self._cross else None
        held = None if way.drop_partial else index.windows.held(segment, start)
        columns: dict[str, Column] = {}
        for name in self._inputs:
            columns[name] = self._items(index.streams[name], start, held, rows, room)
        for name in self._targets:
            ahead = start + way.length * way.dilation
            key = f"{name}_target"
            there = None if room is None else partial(_named, room, key)
            columns[key] = index.streams[name].take(ahead, way.horizon, way.dilation, rows, there)
        if self._once:
            last = start + ((way.length if held is None else held) - 1) * way.dilation
            for name in self._once:
                columns[name] = self._view.take_field(name, segment if self._ragged else last)
        if held is not None:
            columns["length"] = held
        return columns

    def locate(self, windows: Sequence[int] | Array) -> tuple[Index, Index]:
        """int64 `[windows]` both: the document or group of each window, and its first item.

        Documents are numbered as the rows they are, groups as they come. Items are rows, or the values of a ragged
        field counted through all rows.
        """
        return self._index.windows.locate(numbers(windows, len(self), "window", self._view.told_shortly))

    def _items(
        self, stream: ItemStream, start: Index, held: Index | None, rows: Index | None, room: Room | None
    ) -> Array:
        """`[windows, length, *item]`: items from `start` on, the missing ones of partial windows zero."""
        way = self.sliding
        if held is None or (held == way.length).all():
            return stream.take(start, way.length, way.dilation, rows, room)
        out = np.zeros((len(start), way.length, *stream.field.item_shape), stream.field.dtype)
        full = held == way.length
        out[full] = stream.take(start[full], way.length, way.dilation)
        step = np.arange(way.length)
        there = (step < held[:, None]) & ~full[:, None]
        out[there] = stream.take((start[:, None] + step * way.dilation)[there], 1)[:, 0]
        return out

    # -- where windows lie -----------------------------------------------------------------------------------------

    @cached_property
    def _index(self) -> _Index:
        view, names = self._view, tuple(dict.fromkeys((*self._inputs, *self._targets)))
        records = None
        if self._ragged and not (self._cross and self._group is None and len(names) == 1 and serial(view, names[0])):
            records = first_items(view, names)
        streams = {name: ItemStream(view, name, records) for name in names}
        if self._ragged and not self._cross:
            assert records is not None
            return _Index(Windows(self.sliding, records), streams)
        if self._group is None:
            return _Index(Windows(self.sliding, np.array([0, len(streams[names[0]])])), streams)
        rows = np.append(changes(view, self._group), len(view))
        return _Index(Windows(self.sliding, rows if records is None else records[rows]), streams)


def _named(room: Room, key: str, name: str, nbytes: int) -> Array | None:
    """Memory for a column that isn't called as the field it comes from."""
    return room(key, nbytes)


def changes(view: StoreView, name: str) -> Index:
    """int64: the rows, 0 among them, whose value of a field is not bit by bit that of the row before."""
    found, at = [np.empty(0, np.int64)], 0
    before: Column | None = None
    for block in view.select([name]).blocks():
        column = block[name]
        both = column if before is None else _joined(before, column)
        # the row before the block's first stands in front, so that it is compared as all others are
        differs = _differs(both)
        found.append(np.flatnonzero(np.append(True, differs) if before is None else differs) + at)
        at += len(block)
        before = column[len(column) - 1 :]
    return np.concatenate(found)


def _joined(before: Column, column: Column) -> Column:
    if isinstance(before, Ragged) and isinstance(column, Ragged):
        return Ragged.concat([before, column])
    assert not isinstance(before, Ragged)
    assert not isinstance(column, Ragged)
    return np.concatenate([before, column])


def _differs(column: Column) -> Array:
    """bool `[rows - 1]`: whether each row but the first differs from the one before."""
    if not isinstance(column, Ragged):
        raw = _bytes(column)
        return np.asarray((raw[1:] != raw[:-1]).any(1))
    lengths = column.lengths
    differs: Array = lengths[1:] != lengths[:-1]
    if column.shapes is not None:
        differs |= (column.shapes[1:] != column.shapes[:-1]).any(1)
    alike = np.flatnonzero(~differs)
    mine, other = column.take(alike + 1), column.take(alike)
    unequal = (_bytes(mine.values) != _bytes(other.values)).any(1)
    owner = np.repeat(np.arange(len(alike)), mine.lengths)
    differs[alike] = np.bincount(owner[unequal], minlength=len(alike)) > 0
    return differs


def _bytes(values: Array) -> Array:
    """uint8 `[items, bytes]`."""
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    rows: Array = raw.reshape(len(values), raw.size // max(1, len(values)))
    return rows


def _windowed(field: Field, name: str, length: int) -> Field:
    kind = "array" if field.kind in _BYTE_KINDS else field.kind
    return field.with_(name=name, shape=(length, *field.item_shape), kind=kind)


def _one_kind(fields: Sequence[Field]) -> bool:
    """Whether the fields are ragged: all of them, or none. Raises `SchemaError`."""
    for f in fields:
        if f.has_shapes:
            raise SchemaError(f"field {f.name}: rows vary in more than the first axis, so there is none for windows")
        if f.ragged != fields[0].ragged:
            fixed, other = (f, fields[0]) if fields[0].ragged else (fields[0], f)
            raise SchemaError(
                f"windows go over rows (as of {fixed.name}) or inside them (as of {other.name}), not both at once"
            )
    return fields[0].ragged
