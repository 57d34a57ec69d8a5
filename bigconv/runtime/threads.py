"""Copies of a batch's rows shared among torch's threads, wherever that is quicker than one thread alone.

One thread copies rows at a third to a half of what memory gives. torch keeps threads for its own operations, as many
as `torch.set_num_threads` allows, and they stand idle while a batch is gathered in the process that trains. They help
only where there are cores for them: on a machine that is busy otherwise each copy would wait for the slowest of them.
So both ways are timed as they are used, the quicker one is taken, and the other is tried again now and then.

A DataLoader's workers have one thread by torch's own setting, and a forked process has none of its parent's threads
(and would wait for them for ever): there rows are copied alone, as they are in the threads of a `Loader`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from bigconv.block import Array, Index
from bigconv.view import memory

FIRST, SOON, SELDOM = 4, 16, 1024  # copies until the other way is tried: at first, after a change, when it keeps losing
TRIES = 3  # copies of a trial, of which the quickest counts: threads that have slept begin slowly
BETTER = 0.95  # of the cost in use: what is hardly quicker isn't worth the other cores
WORSE = 1.5  # times the cost it had: something has changed, so the other way is tried at once
WAKING = 500e-6  # seconds: threads that sleep take up to so long to begin, so one slow copy of a trial says nothing yet
SMOOTH = 0.25  # weight of the newest copy in the cost
_NARROW = 1 << 15  # bytes: wider rows are copied in pieces, or their count times their width would overflow


@dataclass
class _Pace:
    """Which way is quicker lately, for batches of about one size. Costs are in seconds a byte."""

    shared: bool = False  # the way in use: by several threads, or by one
    cost: float = 0.0  # of the way in use, smoothed
    usual: float = 0.0  # what it was when the way was chosen
    left: int = FIRST  # copies until the next trial; 0 during one
    every: int = SOON
    trial: list[float] = field(default_factory=list)

    def choose(self) -> bool:
        """Whether to share the next copy."""
        return self.shared if self.left else not self.shared

    def note(self, shared: bool, seconds: float, nbytes: int) -> None:
        cost = seconds / nbytes
        if shared != self.shared:
            self.trial.append(cost)
            if len(self.trial) == TRIES or (cost > WORSE * self.cost and seconds > WAKING):
                self._decide(min(self.trial))
            return
        self.cost = cost * SMOOTH + (self.cost or cost) * (1 - SMOOTH)
        self.usual = self.usual or self.cost
        self.left = 0 if self.cost > WORSE * self.usual else max(0, self.left - 1)

    def _decide(self, cost: float) -> None:
        if cost < BETTER * self.cost:
            self.shared, self.cost, self.every = not self.shared, cost, SOON
        else:
            self.every = min(2 * self.every, SELDOM)
        self.usual, self.left, self.trial = self.cost, self.every, []


class _Threads:
    """What `bigconv.view.memory` asks when it copies many bytes."""

    def __init__(self) -> None:
        self._paces: dict[tuple[int, int], _Pace] = {}  # by bytes of a row, and how many rows about
        self._here = threading.local()
        self._pid = os.getpid()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In this thread, rows are copied by it alone: it is one of several that read."""
        self._here.alone = True
        try:
            yield
        finally:
            self._here.alone = False

    def copy(
        self, source: Array | None, index: Index, nbytes: int, out: Array | None, alone: memory.Copy, twice: bool
    ) -> Array:
        """Rows `index` of `source`, uint8 `[items, nbytes]` in one piece, into uint8 `[rows, nbytes]`.

        With no `source` they are anywhere: at places, in bytes from `memory.LOWEST` on. `alone` copies them in one
        thread, with numpy; `twice`: it has to copy everything a second time to get it there.
        """
        width = _width(nbytes)
        if not width:
            return alone(out)
        if torch.get_num_threads() == 1:
            return _indexed(source, index, nbytes, width, out) if twice else alone(out)
        if getattr(self._here, "alone", False) or os.getpid() != self._pid:
            return alone(out)
        size = nbytes, len(index).bit_length()
        pace = self._paces.get(size)
        if pace is None:
            pace = self._paces.setdefault(size, _Pace())
        shared = pace.choose()
        start = time.perf_counter()
        out = _indexed(source, index, nbytes, width, out) if shared else alone(out)
        pace.note(shared, time.perf_counter() - start, len(index) * nbytes)
        return out


def _indexed(source: Array | None, index: Index, nbytes: int, width: int, out: Array | None) -> Array:
    """By torch, with as many threads as it has."""
    out = np.empty((len(index), nbytes), np.uint8) if out is None else out
    if source is not None and width == nbytes:  # rows one after another: torch looks up less for each
        table = _table(source.__array_interface__["data"][0] - memory.LOWEST, len(source), nbytes)
    else:
        table = _rows(width)
        if source is not None:
            index = index * nbytes + (source.__array_interface__["data"][0] - memory.LOWEST)
        if width != nbytes:
            index = (index[:, None] + np.arange(0, nbytes, width)).reshape(-1)
    torch.index_select(table, 0, torch.from_numpy(index), out=torch.from_numpy(out.reshape(-1, width)))
    return out


@lru_cache(maxsize=64)
def _width(nbytes: int) -> int:
    """Bytes of the pieces, all equal, in which rows are copied; 0 where there are none of a good size."""
    return next((nbytes // n for n in range(nbytes // _NARROW + 1, nbytes // 1024 + 2) if nbytes % n == 0), 0)


class _AddressSpace:
    __array_interface__ = {  # noqa: RUF012  numpy's protocol
        "data": (memory.LOWEST, False),  # never written to; torch would warn of memory that can't be
        "shape": (memory.SPAN,),
        "strides": (1,),
        "typestr": "|u1",
        "version": 3,
    }


@lru_cache(maxsize=1)
def _everything() -> torch.Tensor:
    return torch.from_numpy(np.asarray(_AddressSpace()))


@lru_cache(maxsize=64)
def _rows(width: int) -> torch.Tensor:
    """All that is mapped, as rows of `width` bytes that start at every byte."""
    return _everything().as_strided((memory.SPAN - width, width), (1, 1))


def _table(place: int, items: int, nbytes: int) -> torch.Tensor:
    """What is mapped from a place on, as rows that don't overlap."""
    return _everything().as_strided((items, nbytes), (nbytes, 1), place)


threads = _Threads()
memory.share_with(threads)  # from the first import of a dataset on
