"""The value of one row in an LMDB store: what lies where in it, and how rows of all sizes get there at once.

    record = head | payload | payload | …

The head has a constant size. For each field in the schema's order it holds the row itself (fixed fields), or its byte
count, int64, and where several axes vary its shape, int64 `[ndim]` (ragged ones). Payloads are the bytes of the ragged
fields in the same order. All little-endian.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from bigconv.block import Array, Block, Index, Ragged
from bigconv.digest import little_endian
from bigconv.errors import SchemaError
from bigconv.schema import Field, Schema

LOOP_BYTES = (
    32768  # items this large: a copy each costs nothing against their bytes, and numpy's void types end at 2 GiB
)


class Record:
    """Where each field lies in a value: `places` (bytes behind its start), `shapes` and `lengths` of ragged ones."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self.head_bytes = schema, 0
        self.places: dict[str, int] = {}
        self.shapes: dict[str, int | None] = {}
        for f in schema:
            if f.ragged and f.row_bytes == 0:
                raise SchemaError(
                    f"field {f.name}: LMDB records count bytes, and its items have none; use another store"
                )
            self.places[f.name] = self.head_bytes
            self.head_bytes += 8 if f.ragged else f.row_bytes
            if f.ragged:
                self.shapes[f.name] = self.head_bytes if f.has_shapes else None
                self.head_bytes += 8 * len(f.shape) if f.has_shapes else 0
        self.ragged = tuple(f for f in schema if f.ragged)
        self.lengths = tuple(self.places[f.name] for f in self.ragged)

    def sizes(self, block: Block) -> Index:
        """int64 `[rows]`: bytes of each value."""
        total = np.full(len(block), self.head_bytes, np.int64)
        for f in self.ragged:
            total += _ragged(block, f).lengths * f.row_bytes
        return total

    def put(self, block: Block, room: Array, at: Index) -> None:
        """Write the values of all rows into `room`, uint8 `[bytes]`, from the bytes `at` on, int64 `[rows]`."""
        payload = at + self.head_bytes
        for f in self.schema:
            column, place = block.columns[f.name], at + self.places[f.name]
            if not isinstance(column, Ragged):
                scatter(room, place, little_endian(column))
                continue
            nbytes = column.lengths * f.row_bytes
            scatter(room, place, little_endian(nbytes))
            if column.shapes is not None:
                scatter(room, place + 8, little_endian(column.shapes))
            source = little_endian(column.values).reshape(-1).view(np.uint8)
            _copy_runs(room, payload, source, column.offsets * f.row_bytes)
            payload = payload + nbytes

    def decode(self, value: bytes | memoryview, f: Field) -> Array:
        """One field of one row. Raises `ValueError` or `TypeError` when the value doesn't fit the schema."""
        lengths = [int(n) for at in self.lengths for n in np.ndarray(1, "<i8", value, at)]
        if min(lengths, default=0) < 0 or self.head_bytes + sum(lengths) != len(value):
            raise ValueError(f"{len(value)} bytes do not fit a head of {self.head_bytes} and payloads of {lengths}")
        dtype = np.dtype(f.dtype).newbyteorder("<")
        if not f.ragged:
            return np.ndarray(f.item_shape, dtype, value, self.places[f.name])
        number = self.ragged.index(f)
        if lengths[number] % f.row_bytes:
            raise ValueError(f"{lengths[number]} bytes are not a number of items of {f.row_bytes}")
        shape = (-1, *f.item_shape)
        if (at := self.shapes[f.name]) is not None:
            shape = tuple(np.ndarray(len(f.shape), "<i8", value, at).tolist())
            if any(m < 0 or n not in (None, m) for n, m in zip(f.shape, shape, strict=True)):
                raise ValueError(f"shape {shape}")
        flat: Array = np.ndarray(
            lengths[number] // dtype.itemsize, dtype, value, self.head_bytes + sum(lengths[:number])
        )
        return flat.reshape(shape)


def scatter(room: Array, at: Index, items: Array) -> None:
    """Copy the bytes of contiguous `items`, `[rows, *shape]`, into `room`, uint8 `[bytes]`: row `i` to byte `at[i]`."""
    raw = items.reshape(-1).view(np.uint8)
    nbytes = raw.size // len(at) if len(at) else 0
    if nbytes >= LOOP_BYTES:
        for row, start in enumerate(at.tolist()):
            room[start : start + nbytes] = raw[row * nbytes : (row + 1) * nbytes]
    elif nbytes:
        # every byte of the room as the start of an item: one indexed copy then puts all rows in their places
        anywhere: Array = np.ndarray(room.size - nbytes + 1, f"V{nbytes}", room, strides=(1,))
        anywhere[at] = raw.view(f"V{nbytes}")


def _copy_runs(room: Array, at: Index, source: Array, offsets: Index) -> None:
    """Copy `source[offsets[i]:offsets[i + 1]]` to byte `at[i]` of `room`, for all `i`; both uint8 `[bytes]`."""
    bounds = offsets.tolist()
    runs = map(source.data.__getitem__, map(slice, bounds[:-1], bounds[1:]))
    places = map(slice, at.tolist(), (at + np.diff(offsets)).tolist())
    deque(map(room.data.__setitem__, places, runs), maxlen=0)  # a loop in C


def _ragged(block: Block, f: Field) -> Ragged:
    column = block.columns[f.name]
    if not isinstance(column, Ragged):
        raise SchemaError(f"field {f.name}: expected a Ragged")
    return column
