"""`StreamDataset`: rows or whole batches of stores, dealt out to ranks and workers, resumable anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from bigconv.errors import UsageError
from bigconv.runtime.dataset import PathLike, StoreDataset
from bigconv.runtime.order import current_lane, hold_against, runs_of, windowed
from bigconv.view.order import Mixed, Order, epoch_order
from bigconv.view.partition import Walk, merge
from bigconv.view.readahead import with_coming

READ_ROWS = 32  # rows gathered at once where they are given one by one: most of the gain of a batch, little held


class StreamDataset(IterableDataset[Any]):
    """Rows of one store or of several, in an order of which every rank and worker reads its own part.

    `path`: a store, a list of them, or a `StoreDataset` (for all that it can do with rows). `fields`, `transform`: as
    `StoreDataset` has them. With `batch_size` whole batches are given, stacked, or made by `collate_fn(rows)` (for
    rows of different sizes); use `DataLoader(stream, batch_size=None)`. Without, single rows.

    `shuffle`: all rows, exactly; with `window`, in rows, chunks of `chunk` rows and rows within windows (see
    `BatchOrder`). `weights`: mix
    the stores in these proportions, each entry of `path` (a store or a list of them) a source of its own; those
    that are used up start over; `rows`: length of an epoch then, else that of all sources.

    `rank`, `world_size`: torch.distributed's where it is initialised. Without `drop_last` and `pad` every row comes
    exactly once over all ranks and workers; `drop_last` leaves the last incomplete step of all ranks out, `pad` fills
    it up with rows of the epoch's start, and ranks are equal. The order follows from `seed` and `set_epoch`, and from
    nothing else: neither the number of workers nor that of ranks changes it.

    `state_dict()`, `load_state_dict()`: torchdata's StatefulDataLoader works with them. With a plain DataLoader and
    workers, `state_dict(batches=n)` is the state after the loop has had `n` batches. `merge` makes one state of
    several ranks' and workers', from which any number of them go on.
    """

    def __init__(
        self,
        path: PathLike | Sequence[Any] | StoreDataset,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        batch_size: int | None = None,
        fields: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        *,
        collate_fn: Callable[[Any], Any] | None = None,
        window: int | None = None,
        chunk: int | None = None,
        drop_last: bool = False,
        pad: bool = False,
        weights: Sequence[float] | None = None,
        rows: int | None = None,
    ) -> None:
        if isinstance(path, StoreDataset):
            if fields is not None or transform is not None:
                raise UsageError("a StoreDataset has its own fields and transform: give them to it")
            self._dataset = path
            sources = [[run] for run in runs_of(path)]
        else:
            given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
            groups = [[one] if isinstance(one, (str, os.PathLike)) else list(one) for one in given]
            self._dataset = StoreDataset([one for group in groups for one in group], fields, transform)
            runs = iter(self._dataset.view.root_runs)  # a sharded directory is one of a group, and has many
            sources = [[rows for _ in group for rows in next(runs)] for group in groups]
        if batch_size is None and (collate_fn is not None or self._dataset.batch_transform is not None):
            raise UsageError("collate_fn and batch_transform need a batch_size")
        self._sources, self._weights, self._rows = sources, _checked_weights(weights, sources, rows), rows
        self.shuffle, self.seed, self.batch_size, self.collate_fn = shuffle, seed, batch_size, collate_fn
        self.window, self.chunk = windowed(self._dataset, window, chunk)
        self.drop_last, self.pad = drop_last, pad
        self._rank, self._world_size = rank, world_size
        # shared memory: set_epoch must reach workers that live on from epoch to epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._resume: Mapping[str, Any] | None = None
        self._reading: Walk | None = None  # as it was when the reading began
        self._reading_epoch = 0
        self._taken = 0
        self.order(0)  # what makes no sense is refused here
        self._hold_rank()
        self._start()

    @property
    def dataset(self) -> StoreDataset:
        """The rows that are streamed, by number."""
        return self._dataset

    @property
    def epoch(self) -> int:
        """The epoch that the next `iter` gives."""
        return int(self._epoch)

    def __len__(self) -> int:
        """Batches, or rows without a `batch_size`, of an epoch on this rank; in a worker, of its own part."""
        return len(self._start())

    def __repr__(self) -> str:
        return f"StreamDataset({self._dataset.view.told}: {self._positions()} rows)"

    def __getstate__(self) -> dict[str, Any]:
        self._hold_rank()  # another process doesn't know torch.distributed's
        return {**self.__dict__, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # a copy that pickle has made isn't shared, one sent to a worker is
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next `iter` gives, in workers too. A loaded state counts on for its own epoch only."""
        if self._resume is not None and epoch != self._resume["epoch"]:
            self._resume = None
        self._epoch.fill_(epoch)
        self._reading = None

    def order(self, epoch: int) -> Order:
        """The order of an epoch, over all ranks and workers, by position."""
        how: dict[str, Any] = {"window": self.window, "chunk": self.chunk}
        if self._weights is None:
            runs = [run for source in self._sources for run in source]
            return epoch_order(runs, self.shuffle, self.seed, epoch, **how)

        def of_source(source: int, turn: int) -> Order:
            return epoch_order(self._sources[source], self.shuffle, self.seed, epoch, source, turn, **how)

        sizes = [sum(source) for source in self._sources]
        return Mixed(sizes, self._weights, self._positions(), of_source, self.seed, epoch)

    def __iter__(self) -> Iterator[Any]:
        walk, epoch = self._next_walk()
        self._resume = None
        self._reading, self._reading_epoch, self._taken = walk, epoch, walk.taken
        return self._read(walk, self.order(epoch))

    def _read(self, walk: Walk, order: Order) -> Iterator[Any]:
        batches = walk.batches(order)
        if self.batch_size is None:
            # one row a step of the walk, gathered some at a time
            for first in range(walk.taken, len(walk), READ_ROWS):
                several = [next(batches) for _ in range(first, min(first + READ_ROWS, len(walk)))]
                for taken, row in enumerate(self._dataset.__getitems__(np.concatenate(several)), first + 1):
                    self._note(walk, taken)
                    yield row
            return
        for taken, (rows, coming) in enumerate(with_coming(batches, self._dataset.batches_ahead), walk.taken + 1):
            if coming is not None:
                self._dataset.will_need(coming)
            whole = (
                self._dataset[rows] if self.collate_fn is None else self.collate_fn(self._dataset.__getitems__(rows))
            )
            self._note(walk, taken)
            yield whole

    def _note(self, walk: Walk, taken: int) -> None:
        if self._reading is walk:  # and no iterator has been made since
            self._taken = taken

    # -- going on later ---------------------------------------------------------------------------------------------

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Where this process's reading stands, as JSON values.

        `batches`: how many the loop has had since it began, where a DataLoader's workers read and this process
        doesn't know.
        """
        if batches is not None and self.batch_size is None:
            raise UsageError("rows that workers batch can't be counted: give StreamDataset the batch_size")
        if self._reading is None:
            walk, epoch = self._next_walk()
            walk = walk.moved(walk.taken + (batches or 0))
        else:
            walk, epoch = self._reading, self._reading_epoch
            walk = walk.moved(self._taken if batches is None else walk.taken + batches)
        return {**walk.state(), "epoch": epoch, "order": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next `iter`. Raises `UsageError` for one of another order.

        In another layout of ranks and workers, all ranks are taken to have made the same number of steps.
        """
        hold_against(state, self._identity())
        epoch = int(state["epoch"])
        self._reading = None
        alone = get_worker_info() is None
        if alone and epoch + 1 == self.epoch and self._start().resumed(state).finished:
            self._resume = None  # a loader loads it late, at the start of the epoch that was set meanwhile
            return
        self._resume = dict(state)
        if alone:
            self._epoch.fill_(epoch)

    @staticmethod
    def merge(states: Sequence[Any]) -> dict[str, Any]:
        """One state, from which any number of ranks and workers go on, of the states of several.

        Of each rank, or of one when all have made the same steps; each as the `state_dict()` of a stream or of a
        StatefulDataLoader gave it. Raises `UsageError` when they don't belong together.
        """
        return merge(states)

    def _identity(self) -> dict[str, Any]:
        return {
            "rows": self._positions(),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "window": self.window,
            "chunk": None if self.window is None else self.chunk,
            "weights": self._weights,
        }

    def _positions(self) -> int:
        """Positions of an epoch, over all ranks."""
        return sum(map(sum, self._sources)) if self._rows is None else self._rows

    def _hold_rank(self) -> None:
        lane = current_lane(self._rank, self._world_size)
        if lane.world_size > 1:
            self._rank, self._world_size = lane.rank, lane.world_size

    def _start(self) -> Walk:
        worker = get_worker_info()
        which = (0, 1) if worker is None else (worker.id, worker.num_workers)
        lane = current_lane(self._rank, self._world_size, *which)
        return Walk.start(self._positions(), self.batch_size or 1, lane, self.drop_last, self.pad)

    def _next_walk(self) -> tuple[Walk, int]:
        if self._resume is None:
            return self._start(), self.epoch
        return self._start().resumed(self._resume), int(self._resume["epoch"])


def _checked_weights(
    weights: Sequence[float] | None, sources: Sequence[Sequence[int]], rows: int | None
) -> list[float] | None:
    if weights is None:
        if rows is not None:
            raise UsageError("rows is the length of a mixed epoch: give weights too")
        return None
    if len(weights) != len(sources):
        raise UsageError(f"{len(weights)} weights for {len(sources)} sources")
    if rows is not None and rows < 1:
        raise UsageError(f"rows must be positive, got {rows}")
    return [float(weight) for weight in weights]
