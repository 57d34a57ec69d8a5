"""`WindowDataset`: sliding windows over the rows of a store, or over the items inside its documents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from bigconv.block import Array
from bigconv.errors import UsageError
from bigconv.runtime import buffers
from bigconv.runtime.dataset import PathLike, StoreDataset
from bigconv.runtime.rows import StackedBatch
from bigconv.schema import Schema
from bigconv.view.windows import Sliding, WindowView


class WindowDataset(StoreDataset):
    """Windows of `length` items, each beginning `stride` items after the one before, its items `dilation` apart.

    `field`: a name, or several of which each sample has the same window; a tuple of names makes samples tuples, else
    they are dicts. Over fixed fields an item is a row (a time step); several paths are one long table. Over ragged
    fields an item is a value inside a row (a token of a document), and windows never leave their document, unless
    `cross_documents` makes one stream of all.

    `horizon`: the next items in the same rhythm, given as `<field>_target`, `[horizon, *shape]`, of every field or of
    those that `target` names. `group`: a field, often an id; no window holds rows from both sides of a change of it.
    `once`: fields given once a window: those of its document, or of the last row before its horizon.
    `drop_partial=False`: where items are left at the end of a document, a group or the table, one window more has
    them, the rest of it zeros; `length` then tells how many items each window has.

    `transform(sample)` and `batch_transform(batch)` as for `StoreDataset`, and as there `dataset[i]` is one sample and
    a DataLoader's batch, `[batch, length, *shape]`, is gathered at once and taken over without a copy.

    An index and no copies: nothing is held for a window, and at most 100 bytes for a document or a group (in LMDB, 8
    more for each further field).
    Raises `SchemaError` or `UsageError` for fields or options that don't go together.
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        field: str | Sequence[str],
        length: int,
        stride: int = 1,
        horizon: int = 0,
        group: str | None = None,
        *,
        dilation: int = 1,
        target: str | Sequence[str] | None = None,
        once: str | Sequence[str] = (),
        cross_documents: bool = False,
        drop_partial: bool = True,
        transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        sliding = Sliding(length, stride, horizon, dilation, drop_partial)
        super().__init__(path, None, transform, batch_transform, decode=False)
        fields = _names(field)
        if target is None:
            target = fields if horizon else ()
        self._windows = WindowView(self._view, fields, sliding, _names(target), group, _names(once), cross_documents)
        self._as_tuple = isinstance(field, tuple)
        if not len(self):
            what = f"{sliding.span} items that a window{' and its horizon take' if horizon else ' takes'}"
            warnings.warn(f"{self!r}: no document, group or table here has the {what}", stacklevel=2)

    @property
    def schema(self) -> Schema:
        """The fields of a sample."""
        return self._windows.schema

    @property
    def windows(self) -> WindowView:
        """The same windows for numpy, and where each lies."""
        return self._windows

    def __len__(self) -> int:
        return len(self._windows)

    def __repr__(self) -> str:
        return f"WindowDataset({self._view.told}: {len(self)} windows of {self._windows.sliding.length})"

    def will_need(self, rows: Any) -> None:
        """Windows follow on one another in the file, where the kernel reads ahead by itself."""

    @property
    def runs(self) -> list[int]:
        """Orders are of windows, which are no rows of a store."""
        return [len(self)]

    @property
    def chunk_rows(self) -> int:
        """Orders are of windows, whose chunks are no chunks of rows."""
        return 1

    def _told_row(self, row: int) -> str:
        return f"window {row} of {self._view.told}"

    def _take(self, rows: Sequence[int] | Array) -> StackedBatch:
        columns = self._windows.columns(rows, buffers.room)
        return StackedBatch(self._windows.schema, columns, len(next(iter(columns.values()))), self._as_tuple)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        return (names,)
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"fields are given by their names, got {names!r:.100}")
    return tuple(names)
