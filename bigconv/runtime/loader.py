"""`Loader`: batches made by threads of this process, for data that need no Python a row."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, default_collate, default_convert

from bigconv.errors import UsageError
from bigconv.runtime.dataset import StoreDataset
from bigconv.runtime.order import BatchOrder
from bigconv.runtime.prefetch import Prefetch
from bigconv.runtime.threads import threads as torch_threads
from bigconv.view.readahead import with_coming

_Sent = tuple[Any, torch.cuda.Event | None]  # a batch, and when it has arrived on its device
_Made = _Sent | Exception  # or what is raised in its place


class Loader:
    """A DataLoader whose workers are threads: batches stay where they are made, nothing is sent or copied.

    Gathering rows, decoding JPEGs and copying to a device leave Python's lock alone, so threads do them while the
    training step runs. Transforms in pure Python don't: for those take a DataLoader with workers.

    `dataset`: any map-style dataset that may be read in several threads at once; its `__getitems__` is used.
    `shuffle`: an order that follows from `seed` and the epoch, which `set_epoch` or the next `iter` moves on; under
    torch.distributed each rank gets its own batches (`BatchOrder`). `sampler`, `batch_sampler`, `drop_last`,
    `collate_fn` as for a DataLoader; `batch_size=None` gives what the sampler yields to `dataset[...]` as it is.
    `threads`: 0 reads when a batch is asked for. `prefetch`: batches made ahead at most, or 8 MiB of small ones a
    thread: those are gathered several at once, and share memory that is free when all of them are gone.
    `in_order=False`: batches come as they are done. `pin_memory`: in page-locked memory. `device`: copied there, to a
    CUDA device on a stream of its own, out of page-locked memory; the stream that consumes a batch waits for it, the
    host doesn't.

    `state_dict()` and `load_state_dict()` go on after the last batch that came out, with the Loader's own order.

    An error of the dataset is raised where its batch would have come, with the batch's rows in a note. Breaking out of
    the loop ends the threads. Raises `UsageError` for options that contradict each other.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int | None = 1,
        shuffle: bool = False,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        threads: int = 2,
        prefetch: int = 4,
        in_order: bool = True,
        pin_memory: bool = False,
        device: torch.device | str | int | None = None,
        drop_last: bool = False,
        collate_fn: Callable[[Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise UsageError("a Loader reads datasets by row number: use a DataLoader for an IterableDataset")
        if threads < 0 or prefetch < 1:
            raise UsageError(f"threads must be 0 or more and prefetch 1 or more, got {threads} and {prefetch}")
        if sampler is not None and shuffle:
            raise UsageError("a sampler makes the order itself: leave out shuffle")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise UsageError("a batch_sampler makes the batches: leave out batch_size, shuffle, sampler and drop_last")
        if batch_size is None and (sampler is None or drop_last):
            raise UsageError("batch_size=None reads what a sampler yields: give a sampler, and leave out drop_last")
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.threads, self.prefetch, self.in_order = threads, prefetch, in_order
        self.sampler = sampler
        self.batches = batch_sampler  # rows of each batch; None where batches are not made here
        if batch_sampler is None and batch_size is not None:
            if sampler is None:
                self.batches = BatchOrder(dataset, batch_size, shuffle, seed, drop_last)  # type: ignore[arg-type]
            else:
                self.batches = BatchSampler(sampler, batch_size, drop_last)
        self.collate_fn = collate_fn or (default_convert if self.batches is None else default_collate)
        self.pin_memory, self.device = pin_memory, None if device is None else torch.device(device)
        if pin_memory and not torch.cuda.is_available():
            warnings.warn("pin_memory=True has no effect: there is no CUDA device", stacklevel=2)
        self._newest = 0  # number of the iterator that states are of
        self._given = 0  # its batches up to the last that came out, those that failed before it included
        self._start: dict[str, Any] | None = None  # the state it started from

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler if self.batches is None else self.batches)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next `iter` gives, for orders that depend on it."""
        order: Any
        for order in (self.batches, self.sampler):
            if hasattr(order, "set_epoch"):
                order.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the newest iterator stands, as JSON values; after its end, the start of the next epoch."""
        if self._given:
            return self._order().state_dict(batches=self._given)
        return self._start or self._order().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next `iter`."""
        self._order().load_state_dict(state)
        self._newest, self._given, self._start = self._newest + 1, 0, None

    def _order(self) -> BatchOrder:
        if not isinstance(self.batches, BatchOrder):
            raise UsageError("only a Loader's own order, or a BatchOrder as batch_sampler, has a state to save")
        if not self.in_order:
            raise UsageError("with in_order=False nobody can tell which batches are done")
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        ours = isinstance(self.batches, BatchOrder) and self.in_order
        self._newest, self._given, self._start = self._newest + 1, 0, self._order().state_dict() if ours else None
        copy = _Copy(self.pin_memory, self.device)
        together = self.together
        # what a thread announces to the disk is the group after those that are being made
        ahead = max(1, self.threads) if isinstance(self.dataset, StoreDataset) else 0
        tasks = with_coming(self._groups(together), ahead)
        work = partial(self._made, copy)
        if self.threads == 0:
            return _Epoch(self, copy, map(work, tasks))
        prefetch = self.prefetch if together == 1 else max(self.prefetch // together, self.threads + 1)
        return _Epoch(self, copy, Prefetch(tasks, work, self.threads, prefetch, self.in_order))

    @property
    def together(self) -> int:
        """How many batches a thread makes at once."""
        if not isinstance(self.dataset, StoreDataset) or not isinstance(self.batches, BatchOrder):
            return 1
        return self.dataset.together(self.batches.batch_size) if self.collate_fn is default_collate else 1

    def _groups(self, together: int) -> Iterator[_Group]:
        """So many batches at once. What an order or a sampler raises comes after the batches before it."""
        if together == 1:
            source: Iterable[Any] = self.sampler if self.batches is None else self.batches  # type: ignore[assignment]
            yield from map(_Group, count(), source)
            return
        assert isinstance(self.batches, BatchOrder)
        first = 0
        for rows, stops in self.batches.groups(together):
            yield _Group(first, rows, stops)
            first += len(stops)

    def _made(self, copy: _Copy, task: tuple[_Group, _Group | None]) -> list[_Made]:
        group, coming = task
        if isinstance(self.dataset, StoreDataset) and coming is not None:
            self.dataset.will_need(coming.rows)
        if self.threads < 2:
            return self._group(copy, group)
        with torch_threads.alone():
            return self._group(copy, group)

    def _group(self, copy: _Copy, group: _Group) -> list[_Made]:
        if len(group.stops) > 1:
            assert isinstance(self.dataset, StoreDataset)
            try:
                return [copy.send(batch) for batch in self.dataset.several(group.rows, group.stops)]
            except Exception:  # noqa: BLE001  the batch that it belongs to tells
                pass
        made: list[_Made] = []
        for number, rows in enumerate(group.batches, group.first):
            try:
                made.append(copy.send(self._batch(rows)))
            except Exception as error:  # noqa: BLE001  raised where the batch would have come
                error.add_note(f"in batch {number} of a Loader, rows {_glance(rows)}")
                made.append(error)
        return made

    def _batch(self, rows: Any) -> Any:
        if self.batches is None:
            return self.collate_fn(self.dataset[rows])
        if isinstance(rows, np.ndarray):
            if isinstance(self.dataset, StoreDataset) and self.collate_fn is default_collate:
                return self.dataset[rows]  # the same batch, without a detour through its rows
            rows = rows.tolist()  # what other datasets are made for
        whole = getattr(self.dataset, "__getitems__", None)
        return self.collate_fn([self.dataset[row] for row in rows] if whole is None else whole(rows))


class _Epoch(Iterator[Any]):
    def __init__(self, loader: Loader, copy: _Copy, groups: Iterator[list[_Made]]) -> None:
        self._loader, self._copy, self._groups = loader, copy, groups
        self._made: deque[_Made] = deque()
        self._number, self._had = loader._newest, 0

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        if not self._made:
            try:
                self._made.extend(next(self._groups))
            except StopIteration:
                if self._number == self._loader._newest:
                    self._loader._given, self._loader._start = 0, None
                raise
        made = self._made.popleft()
        self._had += 1
        if isinstance(made, Exception):
            try:
                if isinstance(made, StopIteration):  # would end the loop in silence
                    raise RuntimeError("a dataset, a sampler or a collate function raised StopIteration") from made
                raise made
            finally:
                del made  # a cycle with this frame, through the traceback
        batch, arrived = made
        if self._number == self._loader._newest:
            self._loader._given = self._had
        self._copy.receive(batch, arrived)
        return batch


@dataclass(frozen=True)
class _Group:
    """Batches that are made at once. `first`: number of the first one; `rows`: those of all."""

    first: int
    rows: Any
    stops: Sequence[int] = ()  # where in `rows` each batch ends; none: they are one batch, as it was given

    @property
    def batches(self) -> list[Any]:
        """The rows of each."""
        if not self.stops:
            return [self.rows]
        return [self.rows[a:b] for a, b in pairwise([0, *self.stops])]


class _Copy:
    """The way of a batch into page-locked memory and to a device, begun in a thread and ended at the consumer."""

    def __init__(self, pin_memory: bool, device: torch.device | None) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pin: torch.device | None = None
        if device is not None and device.type == "cuda":
            # a thread's own current device is always the first one: the consumer's has to be named
            self._device = self._pin = (
                torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
            )
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        elif pin_memory and torch.cuda.is_available():
            self._pin = torch.device("cuda", torch.cuda.current_device())

    def send(self, batch: Any) -> _Sent:
        if self._pin is not None:
            with torch.cuda.device(self._pin):
                batch = _each(batch, lambda leaf: leaf.pin_memory() if hasattr(leaf, "pin_memory") else leaf)
        if self._stream is None:
            return (batch if self._device is None else self._moved(batch)), None
        with torch.cuda.stream(self._stream):
            return self._moved(batch), self._stream.record_event()

    def _moved(self, batch: Any) -> Any:
        return _each(batch, lambda leaf: leaf.to(self._device, non_blocking=True) if hasattr(leaf, "to") else leaf)

    def receive(self, batch: Any, arrived: torch.cuda.Event | None) -> None:
        if arrived is None:
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(arrived)
        # the memory belongs to the copying stream: it must not be used again before the consumer's work on it is done
        _each(batch, lambda leaf: leaf.record_stream(stream) if isinstance(leaf, torch.Tensor) else None)


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A batch of the same build with its leaves changed."""
    if isinstance(batch, Mapping):
        return {key: _each(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_each(value, change) for value in batch)
    return change(batch)


def _glance(rows: Any) -> str:
    try:
        first = [int(row) for row in rows[:8]]
    except (TypeError, ValueError):
        return repr(rows)[:80]
    return f"{first}" if len(rows) <= 8 else f"{str(first)[:-1]}, … ({len(rows)} rows)"
