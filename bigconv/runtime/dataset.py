"""`StoreDataset`: one or many stores as a map-style dataset that reads whole batches."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from bigconv.block import Array, Index, Ragged
from bigconv.errors import RowError, UsageError
from bigconv.runtime import buffers
from bigconv.runtime.announced import MOST_TOGETHER, TOGETHER_BYTES, Announced
from bigconv.runtime.decoded import decoded
from bigconv.runtime.resident import Resident
from bigconv.runtime.rows import BatchColumn, DictRow, StackedBatch, selected
from bigconv.schema import Schema
from bigconv.view.table import StoreView
from bigconv.view.unpack import CACHE_BYTES

PathLike = str | os.PathLike[str]
RANGED_AHEAD = 4  # batches of a store that is read in place: several answers' time, and little of what is kept
REMOTE_AHEAD = 16  # batches: a few seconds of training, in which a part of 256 MB comes


class StoreDataset(Dataset[Any]):
    """Rows of one store, or of several with the same fields one after another.

    `path`: a store or a list of them. `fields`: names to read; a tuple makes rows tuples, a list or None dicts.
    `transform(row)` is called for each row in the process that reads it. `batch_transform(batch)` is called once a
    batch with the stacked batch, instead of row by row, and what it returns is the batch.
    `decode`: fields of kind `encoded` become pixels, uint8 `[3, height, width]` with the channels last in memory
    (a batch, `[rows, 3, height, width]`, is `torch.channels_last`); False leaves the bytes of the files.
    `in_memory`: read everything now, into memory that all workers share: for compressed stores and slow disks.
    `cache`: bytes of decoded chunks of compressed stores that each process keeps, for orders that come back to them.

    `dataset[i]` is one row with writable tensors of the stored dtypes (`()`-shaped fields as numbers, text as `str`);
    `dataset[a:b]` and `dataset[rows]` a stacked batch. Used by a DataLoader, a whole batch is gathered at once,
    and the default collate function takes it over without a copy; in workers it is gathered into shared memory.

    Holds paths and manifests, nothing open: can be pickled, and used in threads and after fork and spawn.
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        fields: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        decode: bool = True,
        in_memory: bool = False,
        cache: int = CACHE_BYTES,
    ) -> None:
        if cache < 0:
            raise UsageError(f"cache must be 0 or more bytes, got {cache}")
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        view = StoreView(paths)
        schema, self._as_tuple = selected(view.schema, fields)
        self._view = view.select(schema.names)
        self._view.cache_bytes = cache
        self.transform, self.batch_transform = transform, batch_transform
        self._decoded = {f.name for f in schema if decode and f.kind == "encoded"}
        self._in_memory = in_memory
        self._resident = Resident(self._view) if in_memory else None
        self._announced: tuple[Announced, ...] = ()

    @property
    def schema(self) -> Schema:
        """The fields as they are stored."""
        return self._view.schema

    @property
    def view(self) -> StoreView:
        """The same rows for numpy, as they are stored."""
        return self._view

    def __len__(self) -> int:
        return len(self._view)

    def __repr__(self) -> str:
        return f"StoreDataset({self._view.told}: {len(self)} rows)"

    def __getstate__(self) -> dict[str, Any]:
        travels = self._resident is not None and self._resident.can_travel
        return {**self.__dict__, "_resident": self._resident if travels else None, "_announced": ()}

    def __getitem__(self, key: Any) -> Any:
        if self._announced and isinstance(key, np.ndarray) and (batch := self._next_announced(key)) is not None:
            return batch
        if isinstance(key, slice):
            return self._batch(np.arange(*key.indices(len(self)), dtype=np.int64))
        if isinstance(key, list) or getattr(key, "ndim", 0) > 0:
            return self._batch(np.asarray(key))
        row: Any = self._take([operator.index(key)])[0]
        return row if self.transform is None else self._transformed([row], [operator.index(key)])[0]

    def will_need(self, rows: Any) -> None:
        """Have rows fetched that will be read soon, where they come from a slow disk. Numbers in a list or an array."""
        if not self._in_memory and isinstance(rows, (list, np.ndarray)):
            with suppress(RowError):  # of a row that isn't there: whoever reads it will be told
                self._view.will_need(rows)

    @property
    def batches_ahead(self) -> int:
        """How many batches early `will_need` helps: a page comes in a moment, a remote part takes seconds."""
        if self._in_memory or not self._view.remote:
            return 1
        return RANGED_AHEAD if self._view.ranged else REMOTE_AHEAD

    @property
    def runs(self) -> list[int]:
        """Rows of each store, which an order may treat apart."""
        runs: list[int] = np.diff(self._view.starts).tolist()
        return runs

    @property
    def chunk_rows(self) -> int:
        """Rows that are decompressed together; 1 where none are."""
        return 1 if self._in_memory else self._view.chunk_rows

    def together(self, batch_size: int) -> int:
        """How many batches are better gathered at once: 1 where rows differ in size, or are done something to."""
        if self.transform is not None or self.batch_transform is not None or any(f.ragged for f in self.schema):
            return 1
        nbytes = batch_size * sum(f.row_bytes for f in self.schema)
        return max(1, min(MOST_TOGETHER, TOGETHER_BYTES // nbytes)) if nbytes else 1

    def several(self, rows: Index, stops: Sequence[int]) -> list[Any]:
        """Batches of rows, each up to one of `stops`, where `together` says so: all gathered at once.

        Each batch has tensors of its own, which keep the memory of all of them.
        """
        return self._take(rows).cut(stops)

    @contextmanager
    def announcing(self, batch_size: int) -> Iterator[Announced | None]:
        """For an order whose batches will be asked for as `dataset[rows]`; None where announcing them helps nobody."""
        together = self.together(batch_size)
        if together == 1 or get_worker_info() is not None:
            yield None
            return
        announced = Announced(together, self.several)
        self._announced = (*self._announced, announced)
        try:
            yield announced
        finally:
            self._announced = tuple(other for other in self._announced if other is not announced)

    def _next_announced(self, rows: Array) -> Any:
        if get_worker_info() is not None:  # a fork has inherited what the parent was told
            return None
        try:
            for announced in self._announced:
                if (batch := announced.take(rows)) is not None:
                    return batch
        except Exception:  # noqa: BLE001  whoever asks for the batch at fault will be told
            pass
        return None

    def __getitems__(self, rows: Sequence[int] | Array) -> Any:
        """A whole batch, for the DataLoader; what it returns is for a collate function."""
        batch = self._take(rows)
        if self.batch_transform is not None:
            return _Finished(self.batch_transform(batch.stacked()), len(batch))
        if self.transform is not None:
            return self._transformed(batch, rows)
        return batch

    def _batch(self, rows: Array) -> Any:
        batch = self._take(rows)
        if self.batch_transform is not None:
            return self.batch_transform(batch.stacked())
        if self.transform is not None:
            from torch.utils.data import default_collate

            return default_collate(self._transformed(batch, rows))
        return batch.stacked()

    def _transformed(self, batch: Sequence[Any], rows: Sequence[int] | Array) -> list[Any]:
        """Each row through `transform`; an error in it gets a note that names the row."""
        assert self.transform is not None
        done: list[Any] = []
        try:
            for row in batch:
                done.append(self.transform(row))  # noqa: PERF401  what is done tells where it failed
        except Exception as error:
            numbers = np.asarray(rows)
            if numbers.dtype == np.bool_:
                numbers = np.flatnonzero(numbers)
            error.add_note(f"in the transform of {self._told_row(int(numbers[len(done)]))}")
            raise
        return done

    def _told_row(self, row: int) -> str:
        return self._whence(self._view.rows([row]), 0)

    def _take(self, rows: Sequence[int] | Array) -> StackedBatch:
        index = self._view.rows(rows)
        if self._in_memory and self._resident is None:  # unpickled where the memory could not follow
            self._resident = Resident(self._view)
        source = self._resident or self._view
        if source is self._view and len(index) > 1:
            self._view.will_need(index)
        columns: dict[str, BatchColumn] = {}
        for f in self.schema:
            room = None if f.ragged else buffers.room(f.name, len(index) * f.row_bytes)
            out = None if room is None else room.reshape(len(index), f.row_bytes)
            column: BatchColumn = source.take_field(f.name, index, out)
            if f.name in self._decoded and isinstance(column, Ragged):
                column = decoded(f.name, column, lambda i: self._whence(index, i))
            columns[f.name] = column
        return StackedBatch(self.schema, columns, len(index), self._as_tuple)

    def _whence(self, index: Index, i: int) -> str:
        store, row = self._view.whence(index[i : i + 1])
        return f"{self._view.paths[int(store[0])]}, row {int(row[0])}"


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
