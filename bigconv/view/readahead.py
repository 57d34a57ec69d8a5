"""Read-ahead for stores that don't lie in memory: the kernel is told which rows will be read, and fetches them at once.

A map reads a page when it is touched, one after another, and megabytes around it that nobody wants. `MADV_WILLNEED` on
all rows of a batch before any is touched has the disk fetch them together, and nothing else. Of rows that are in memory
already it would cost a third of the time that copying them takes, so a few rows are looked at first, by mincore(2).
It says nothing of files that belong to somebody else; there the process's own count of major faults, which are the
reads that somebody had to wait for, must do.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from bigconv.block import Index

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LOOKED_AT = 4  # rows of a batch
LOOKING = 0.01  # of the time at most, while all is in memory; after a batch that had to wait it is time again
STRETCH = 32  # batches asked for after somebody had to wait
MOST_BYTES = 256 << 20  # 256 MiB asked for at once: more might push out what was fetched before it is read
AT_ONCE = 1024  # stretches that the kernel takes in one call (IOV_MAX)
FEW = 8  # stretches: up to here a call for each costs no more than getting ready for one of all
_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)
_Fetch = Callable[[Index], bool]  # of `stretches`; whether all of them are mapped
_Look = Callable[[int, int, Any], int]
_Item = TypeVar("_Item")


def _calls() -> tuple[_Fetch, _Look] | None:
    """madvise(2) of many stretches, and mincore(2) for an address; None where there are none."""
    if resource is None or _WILLNEED is None:
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        madvise, mincore = library.madvise, library.mincore
    except (OSError, AttributeError, TypeError):
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    # Linux has it; it takes a tenth of the time of a call for each
    together = getattr(library, "process_madvise", None) if hasattr(os, "pidfd_open") else None
    if together is not None:
        together.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint)
        together.restype = ctypes.c_ssize_t

    def each(pairs: Index) -> bool:
        return sum(bool(madvise(address, length, _WILLNEED)) for address, length in pairs.tolist()) == 0

    def fetch(pairs: Index) -> bool:
        if together is None or len(pairs) <= FEW:
            return each(pairs)
        try:
            itself = os.pidfd_open(os.getpid())
        except OSError:
            return each(pairs)
        try:
            parts = (pairs[a : a + AT_ONCE] for a in range(0, len(pairs), AT_ONCE))
            # older kernels and sandboxes refuse it
            left = [p for p in parts if together(itself, p.ctypes.data, len(p), _WILLNEED, 0) != int(p[:, 1].sum())]
        finally:
            os.close(itself)
        return sum(not each(part) for part in left) == 0

    return fetch, mincore


class ReadAhead:
    """Whether pages have to be fetched, and what is asked for while they have."""

    def __init__(self) -> None:
        self._calls = _calls()
        self._faults: int | None = None  # major faults when last looked
        self._left = 0  # batches to ask for without looking
        self._next = 0.0  # when to look again

    def wanted(self, sample: Callable[[], Iterable[tuple[Index, Index]]]) -> bool:
        """Whether the next batch should be asked for. `sample`: addresses and byte counts of a few of its rows."""
        if self._calls is None:
            return False
        if self._left:
            self._left -= 1
            return True
        start = time.perf_counter()
        if start < self._next:  # so it is with nearly every batch
            return False
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        before, self._faults = self._faults, faults
        if before is not None and faults != before:
            self._left = STRETCH
            return True
        if not all(map(self._resident, sample())):
            return True
        end = time.perf_counter()
        self._next = end + (end - start) / LOOKING
        return False

    def _resident(self, extents: tuple[Index, Index]) -> bool:
        """Whether the first page of each is in memory."""
        assert self._calls is not None
        state = ctypes.c_ubyte()
        for address in extents[0].tolist():
            failed = self._calls[1](address // mmap.PAGESIZE * mmap.PAGESIZE, 1, ctypes.addressof(state))
            if not failed and not state.value & 1:
                return False
        return True

    def ask(self, starts: Index, nbytes: Index) -> None:
        """Have the pages fetched that hold these bytes of maps."""
        if self._calls is not None and len(starts):
            self._calls[0](stretches(starts, nbytes))


def stretches(starts: Index, nbytes: Index) -> Index:
    """Whole pages that hold these bytes: int64 `[n, 2]`, address and length, `MOST_BYTES` in all at most."""
    page = mmap.PAGESIZE
    first = starts // page * page
    order = np.argsort(first)
    first, last = first[order], np.maximum.accumulate(-(-(starts + nbytes) // page)[order] * page)
    begins = np.flatnonzero(np.append(True, first[1:] > last[:-1]))
    address = first[begins]
    length = last[np.append(begins[1:], len(first)) - 1] - address
    length = np.minimum(length, MOST_BYTES - (np.cumsum(length) - length))
    pairs: Index = np.stack([address, length], 1)[length > 0]
    return pairs


def with_coming(items: Iterable[_Item], ahead: int) -> Iterator[tuple[_Item, _Item | None]]:
    """Each item with the one that comes `ahead` items later; None where there is none.

    What `items` raise is raised when those before it have been given.
    """
    held: deque[_Item] = deque()
    error: Exception | None = None
    try:
        for item in items:
            held.append(item)
            if len(held) > ahead:
                yield held.popleft(), item
    except Exception as raised:  # noqa: BLE001  raised again below
        error = raised
    while held:
        yield held.popleft(), None
    if error is not None:
        raise error
