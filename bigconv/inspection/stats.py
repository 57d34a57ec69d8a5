"""`--stats`: one pass over all rows, field by field, in memory that does not grow with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bigconv import decode
from bigconv.block import Array, Column, Ragged
from bigconv.class_counts import Distinct, named, told
from bigconv.inspection.fields import channel_axis
from bigconv.inspection.moments import Numbers, Summary
from bigconv.inspection.rows import Rows
from bigconv.schema import Field

MANY_CLASSES = 10_000  # values of a label that are counted one by one
MASK_VALUES = 256
FEW_VALUES = 64  # of integers that aren't labels: a choice's, not a measurement's
BINS = 24

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Channel:
    """One channel of images: its number and its pixels."""

    number: int
    values: Summary


@dataclass(frozen=True)
class FieldStats:
    """What all rows of a field have in common.

    `values`: of all numbers, None where the bytes are no numbers (text, files). `lengths`: of the rows, in `unit`;
    `extents`: smallest and largest, axis by axis, where more than the length varies. `counts`: how often each value
    comes, where they are few; `formats`: of image files as they are. `histogram`: of a sample of the values.
    """

    field: Field
    rows: int
    values: Summary | None
    channels: tuple[Channel, ...] = ()
    lengths: Summary | None = None
    unit: str = ""
    empty: int = 0
    extents: tuple[tuple[int, int], ...] = ()
    counts: tuple[tuple[int, int], ...] | None = None
    formats: tuple[tuple[str, int], ...] = ()
    histogram: tuple[int, ...] = ()

    def named_counts(self) -> list[tuple[str, int]]:
        """Counts by class name where there are names; classes without a row too."""
        return [(str(value) if name is None else name, n) for value, name, n in named(self.field, self.counts or ())]

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"field": self.field.name, "rows": self.rows}
        if self.values is not None:
            out |= summary_json(self.values)
        if self.channels:
            out["channels"] = [{"channel": c.number, **summary_json(c.values)} for c in self.channels]
        if self.lengths is not None:
            out["lengths"] = {"unit": self.unit, "empty": self.empty, **summary_json(self.lengths)}
        if self.extents:
            out["extents"] = [list(pair) for pair in self.extents]
        if self.counts is not None:
            out["counts"] = told(self.field, self.counts)
        if self.formats:
            out["formats"] = dict(self.formats)
        if self.histogram:
            out["histogram"] = list(self.histogram)
        return out


def summary_json(summary: Summary) -> dict[str, Any]:
    """Numbers as JSON can hold them: what isn't finite by its name."""
    return {key: plain(value) for key, value in asdict(summary).items()}


def plain(value: Any) -> Any:
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def stats(rows: Rows, progress: Progress | None = None) -> list[FieldStats]:
    """Read all rows once. `progress` is told the number of rows of each block."""
    making = {f.name: _Making(f) for f in rows.schema}
    for block in rows.blocks():
        for name, column in block.columns.items():
            making[name].update(column)
        if progress is not None:
            progress(len(block))
    return [one.finish() for one in making.values()]


class _Making:
    """The statistics of one field so far."""

    def __init__(self, f: Field) -> None:
        self._field, self._rows = f, 0
        bytes_only = f.kind in ("text", "bytes", "encoded")
        self._values = None if bytes_only else Numbers(f.dtype)
        self._axis = channel_axis(f)
        channels = f.shape[self._axis] if self._axis is not None else None
        self._channels = [Numbers(f.dtype) for _ in range(channels or 0)]
        self._lengths = Numbers("int64") if f.ragged else None
        self._empty = 0
        self._low: Array | None = None  # int64 [ndim], of has_shapes
        self._high: Array | None = None
        whole = np.dtype(f.dtype).kind in "biu" and not bytes_only
        pixels = f.kind in ("image", "video", "audio", "volume", "tokens")
        limit = MANY_CLASSES if f.kind == "label" or f.shape == () else MASK_VALUES if f.kind == "mask" else FEW_VALUES
        self._distinct = Distinct(limit) if whole and not pixels else None
        self._formats: Counter[str] = Counter()

    def update(self, column: Column) -> None:
        self._rows += len(column)
        values = column.values if isinstance(column, Ragged) else column
        if isinstance(column, Ragged):
            self._add_lengths(column)
        if self._channels:
            self._add_channels(column)
        elif self._values is not None:
            self._values.update(values)
            if self._distinct is not None:
                self._distinct.update(values)
        if self._field.kind == "encoded":
            self._add_encoded(column)

    def _add_lengths(self, column: Ragged) -> None:
        assert self._lengths is not None
        lengths = column.lengths
        self._empty += int((lengths == 0).sum())
        self._lengths.update(characters(column) if self._field.kind == "text" else lengths)
        if column.shapes is not None and len(column.shapes):
            self._extend(column.shapes)

    def _extend(self, shapes: Array) -> None:
        low, high = shapes.min(axis=0), shapes.max(axis=0)
        self._low = low if self._low is None else np.minimum(low, self._low)
        self._high = high if self._high is None else np.maximum(high, self._high)

    def _add_channels(self, column: Column) -> None:
        """Channel by channel; the values of all are put together at the end."""
        assert self._axis is not None
        if isinstance(column, Ragged) and self._axis == -1:  # channels are the innermost: all rows at once
            self._split(column.values.reshape(-1, len(self._channels)), -1)
        elif isinstance(column, Ragged):
            for row in column:
                self._split(row, self._axis)
        else:
            self._split(column, self._axis)

    def _split(self, values: Array, axis: int) -> None:
        for number, channel in enumerate(self._channels):
            channel.update(np.take(values, number, axis=axis))

    def _add_encoded(self, column: Column) -> None:
        for row in column:
            data = bytes(row)
            try:
                self._extend(np.array([decode.probe(data)], np.int64))
                self._formats[decode.format_of(data[:16]) or "unknown"] += 1
            except decode.DecodeError:
                self._formats["damaged"] += 1

    def finish(self) -> FieldStats:
        f, values = self._field, self._values
        for channel in self._channels:
            assert values is not None
            values.merge(channel)
        histogram = values.kept.histogram(BINS) if values is not None else None
        if histogram is None and self._lengths is not None and values is None:
            histogram = self._lengths.kept.histogram(BINS)
        return FieldStats(
            field=f,
            rows=self._rows,
            values=None if values is None else values.summary(),
            channels=tuple(Channel(i, channel.summary()) for i, channel in enumerate(self._channels)),
            lengths=None if self._lengths is None else self._lengths.summary(),
            unit=_unit(f),
            empty=self._empty,
            extents=() if self._low is None or self._high is None else _pairs(self._low, self._high),
            counts=None if self._distinct is None else self._distinct.pairs(),
            formats=tuple(sorted(self._formats.items())),
            histogram=tuple(histogram or ()),
        )


def _unit(f: Field) -> str:
    if not f.ragged:
        return ""
    return {"text": "characters", "bytes": "bytes", "encoded": "bytes", "tokens": "tokens"}.get(f.kind, "values")


def _pairs(low: Array, high: Array) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))


def characters(column: Ragged) -> Array:
    """int64 `[rows]`: characters of each row of UTF-8; all bytes but those that continue one."""
    starts = (column.values & 0xC0) != 0x80
    total = np.concatenate([[0], np.cumsum(starts, dtype=np.int64)])
    return np.diff(total[column.offsets])
