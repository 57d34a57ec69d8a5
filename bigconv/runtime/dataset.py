"""`StoreDataset`: one or many stores as a map-style dataset that reads whole batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from bigconv.block import Array, Block
from bigconv.runtime.rows import DictRow, StackedBatch, TupleRow, row_of, selected
from bigconv.schema import Schema
from bigconv.view.table import StoreView

PathLike = str | os.PathLike[str]


class StoreDataset(Dataset[Any]):
    """Rows of one store, or of several with the same fields one after another.

    `path`: a store or a list of them. `fields`: names to read; a tuple makes rows tuples, a list or None dicts.
    `transform(row)` is called for each row in the process that reads it. `batch_transform(batch)` is called once a
    batch with the stacked batch, instead of row by row, and what it returns is the batch.

    `dataset[i]` is one row with writable tensors of the stored dtypes (`()`-shaped fields as numbers, text as `str`);
    `dataset[a:b]` and `dataset[rows]` a stacked batch. Used by a DataLoader, a whole batch is gathered at once,
    and the default collate function takes it over without a copy.

    Holds paths and manifests, nothing open: can be pickled, and used after fork and spawn.
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        fields: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        view = StoreView(paths)
        schema, self._as_tuple = selected(view.schema, fields)
        self._view = view.select(schema.names)
        self.transform, self.batch_transform = transform, batch_transform

    @property
    def schema(self) -> Schema:
        return self._view.schema

    @property
    def view(self) -> StoreView:
        """The same rows for numpy."""
        return self._view

    def __len__(self) -> int:
        return len(self._view)

    def __repr__(self) -> str:
        return f"StoreDataset({', '.join(map(str, self._view.paths))}: {len(self)} rows)"

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self._batch(self._view[key])
        if isinstance(key, (list, np.ndarray)) or (hasattr(key, "ndim") and key.ndim == 1):
            return self._batch(self._view.take(np.asarray(key)))
        row: DictRow | TupleRow = row_of(self._view.take([int(key)]), 0, self._as_tuple)
        return row if self.transform is None else self.transform(row)

    def __getitems__(self, rows: Sequence[int] | Array) -> Any:
        """A whole batch, for the DataLoader; what it returns is for a collate function."""
        batch = StackedBatch(self._view.take(rows), self._as_tuple)
        if self.batch_transform is not None:
            return _Finished(self.batch_transform(batch.stacked()), len(batch))
        if self.transform is not None:
            return [self.transform(row) for row in batch]
        return batch

    def _batch(self, block: Block) -> Any:
        batch = StackedBatch(block, self._as_tuple)
        if self.batch_transform is not None:
            return self.batch_transform(batch.stacked())
        if self.transform is not None:
            from torch.utils.data import default_collate

            return default_collate([self.transform(row) for row in batch])
        return batch.stacked()


class _Finished(StackedBatch):
    """A batch that a `batch_transform` has made: taken over whole by the default collate function."""

    def __init__(self, batch: Any, rows: int) -> None:
        self._done, self._rows = batch, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, i: Any) -> Any:
        return DictRow()

    def stacked(self) -> Any:
        return self._done
