"""Whole batches of row numbers: a sampler for `DataLoader(sampler=..., batch_size=None)`."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sized
from contextlib import nullcontext
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from bigconv.block import Index
from bigconv.errors import UsageError
from bigconv.view.order import CHUNK, Order, epoch_order
from bigconv.view.partition import Lane, Walk
from bigconv.view.table import StoreView


class BatchOrder(Sampler[Any]):
    """Row numbers of each batch as one int64 array, instead of a Python number a row.

    `DataLoader(dataset, sampler=BatchOrder(dataset, 1024), batch_size=None)`: the dataset gets each array whole.
    `rows`: their number, or what has them. The order of an epoch is a pure function of `seed` and `epoch` and takes
    no memory a row; `set_epoch` or the next `iter` moves on.

    `window`, in rows: shuffle chunks of `chunk` rows, and rows within windows of several chunks, instead of all rows,
    for stores that are compressed or larger than memory. `chunk`: by default the rows that the dataset's store has
    compressed together, or else 256. Each chunk is then decoded once an epoch if the dataset's `cache` holds a
    window, and a warning says so if it doesn't. Class counts of batches vary `1 + batch_size * chunk / window` times
    as much as in an exact shuffle where rows lie sorted by class, and no more than in one where they don't.

    Each rank gets its own batches: `rank` and `world_size` are torch.distributed's where it is initialised. Without
    `drop_last` (leave the last, incomplete step out) and `pad` (fill it up with rows of the epoch's start) every row
    comes exactly once over all ranks, and a rank may make one batch less than another.

    `state_dict()` and `load_state_dict()` go on in the middle of an epoch, on any number of ranks too. What a
    DataLoader with workers has fetched ahead counts as read: use torchdata's StatefulDataLoader, or
    `state_dict(batches=n)` with the number of batches the loop has had of this epoch, or since it was resumed.
    """

    def __init__(
        self,
        rows: Sized | int,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        pad: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        window: int | None = None,
        chunk: int | None = None,
    ) -> None:
        self._runs = [rows] if isinstance(rows, int) else runs_of(rows)
        self._dataset = weakref.ref(rows) if hasattr(rows, "announcing") else None  # is told what comes
        self.rows = sum(self._runs)
        self.batch_size, self.shuffle, self.seed, self.drop_last, self.pad = batch_size, shuffle, seed, drop_last, pad
        self.window, self.chunk = windowed(rows, window, chunk)
        self._rank, self._world_size = rank, world_size
        self.epoch = 0
        self._resume: Mapping[str, Any] | None = None
        self._reading: Walk | None = None  # the epoch before `self.epoch`, as it was when its reading began
        self._taken: int | None = None  # its batches given so far; None when all were
        self._start()  # what makes no sense is refused here

    def __len__(self) -> int:
        return len(self._start())

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next `iter` gives. A state that was loaded counts on for its own epoch only."""
        if epoch != self.epoch:
            self._resume = None
        self.epoch, self._reading = epoch, None

    def epoch_order(self, epoch: int) -> Order:
        """The order of an epoch, over all ranks, by position."""
        return epoch_order(self._runs, self.shuffle, self.seed, epoch, window=self.window, chunk=self.chunk)

    def order(self, epoch: int) -> Index:
        """int64 `[rows]`: the rows of an epoch in order, over all ranks."""
        order = self.epoch_order(epoch)
        return order.at(np.arange(len(order), dtype=np.int64))

    def __iter__(self) -> Iterator[Index]:
        # nothing happens before the first batch is asked for: a DataLoader makes iterators that it never uses
        walk, order = self._begin()
        for taken, batch in enumerate(self._announced(walk.batches(order)), walk.taken + 1):
            self._note(walk, taken)
            yield batch
        self._note(walk, None)

    def groups(self, most: int) -> Iterator[tuple[Index, list[int]]]:
        """As `iter`, up to `most` batches at once: int64 `[rows]`, and where in them each batch ends."""
        if type(self).__iter__ is not BatchOrder.__iter__:  # batches that are cut in a way of their own
            batches = iter(self)
            while several := list(islice(batches, most)):
                yield np.concatenate(several), list(accumulate(map(len, several)))
            return
        walk, order = self._begin()
        taken = walk.taken
        for rows, stops in walk.groups(order, most):
            taken += len(stops)
            self._note(walk, taken)
            yield rows, stops
        self._note(walk, None)

    def _begin(self) -> tuple[Walk, Order]:
        """What is walked through now, and its order; the next reading is of the next epoch."""
        epoch, walk = self.epoch, self._next_walk()
        self._resume, self.epoch = None, epoch + 1
        self._reading = walk
        return walk, self.epoch_order(epoch)

    def _note(self, walk: Walk, taken: int | None) -> None:
        if self._reading is walk:  # and no iterator has been made since
            self._taken = taken

    def _announced(self, batches: Iterator[Index]) -> Iterator[Index]:
        """The same batches, those that are gathered at once told to the dataset."""
        dataset: Any = None if self._dataset is None else self._dataset()
        with nullcontext() if dataset is None else dataset.announcing(self.batch_size) as announced:
            if announced is not None:
                while (group := list(islice(batches, announced.together))) and announced.follow(group):
                    yield from group
                yield from group
            yield from batches

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}  # the dataset of another process, or of nobody

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Where the epoch stands, as JSON values. `batches`: how many of this reading count, if not all."""
        walk, epoch = self._next_walk(), self.epoch
        if self._reading is not None and (batches is not None or self._taken is not None):
            walk, epoch = self._reading, self.epoch - 1
            walk = walk.moved(walk.taken + batches if batches is not None else self._taken or 0)
        return {**walk.state(), "epoch": epoch, "order": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next `iter`. Raises `UsageError` for one of another order."""
        hold_against(state, self._identity())
        self.epoch, self._resume, self._reading = int(state["epoch"]), dict(state), None
        self._next_walk()

    def _identity(self) -> dict[str, Any]:
        """What an epoch's order follows from; two orders with the same go on from each other's states."""
        return {
            "rows": self.rows,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "window": self.window,
            "chunk": None if self.window is None else self.chunk,
        }

    def _positions(self) -> int:
        """Positions of an epoch, over all ranks."""
        return self.rows

    def _start(self) -> Walk:
        lane = current_lane(self._rank, self._world_size)
        return Walk.start(self._positions(), self.batch_size, lane, self.drop_last, self.pad)

    def _next_walk(self) -> Walk:
        return self._start() if self._resume is None else self._start().resumed(self._resume)


def current_lane(rank: int | None, world_size: int | None, worker: int = 0, workers: int = 1) -> Lane:
    """Rank and world size as given, or as torch.distributed has them, or one alone. Raises `UsageError`."""
    if (rank is None) != (world_size is None):
        raise UsageError("give rank and world_size together, or neither")
    if rank is not None and world_size is not None:
        return Lane(rank, world_size, worker, workers)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Lane(torch.distributed.get_rank(), torch.distributed.get_world_size(), worker, workers)
    return Lane(worker=worker, workers=workers)


def runs_of(dataset: Sized) -> list[int]:
    """Rows of each store of a dataset; of anything else, its length."""
    runs: list[int] | None = getattr(dataset, "runs", None)
    return [len(dataset)] if runs is None else runs


def windowed(dataset: Any, window: int | None, chunk: int | None) -> tuple[int | None, int]:
    """Window and chunk, both in rows; where no chunk is given, that of the dataset's store. Raises `UsageError`."""
    if (chunk is not None and chunk < 1) or (window is not None and window < 1):
        raise UsageError(f"window and chunk must be positive numbers of rows, got {window} and {chunk}")
    if window is None:
        return None, CHUNK if chunk is None else chunk
    together = int(getattr(dataset, "chunk_rows", 1))
    if together > 1:
        view: StoreView = dataset.view
        nbytes = window * sum(view.field_bytes(f.name) for f in view.schema) // max(1, len(view))
        if nbytes > view.cache_bytes:
            warnings.warn(
                f"a window of {window:,} rows takes {nbytes:,} bytes, and the dataset keeps {view.cache_bytes:,} of "
                f"decoded chunks: they will be decoded again and again.\nGive StoreDataset(cache={nbytes}), or a "
                "smaller window",
                stacklevel=3,
            )
    if chunk is None:
        chunk = together if together > 1 else CHUNK
    return window, chunk


def hold_against(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises `UsageError` when a state is of another order."""
    theirs = state.get("order")
    if not isinstance(theirs, Mapping):
        raise UsageError(f"not a state of a bigconv order: {state!r:.80}")
    for key, own in identity.items():
        if theirs.get(key) != own:
            raise UsageError(f"the state is of another order: {key} was {theirs.get(key)!r} and is {own!r}")
