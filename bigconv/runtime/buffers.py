"""Memory for batches: shared slots in a DataLoader's worker, and elsewhere memory that earlier batches have left.

Fresh memory costs more than the copy that fills it, as the kernel clears and maps every page of it. An allocator gives
pages back as soon as some megabytes are free, sooner still in threads, so what was a batch is kept here and used for
another one. A buffer is free when nobody refers to it: arrays and tensors over it keep it, however they are passed on.
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np

from bigconv.block import Array
from bigconv.runtime import slots

SMALLEST = 1 << 20  # 1 MiB: smaller pieces are kept by the allocator itself
MOST_BYTES = 256 << 20  # 256 MiB kept at most: the batches a prefetching loader has under way, with room to spare
ALIGN = 64  # bytes, a cache line: two threads copy rows of 512 B to places across lines an eighth slower
_FREE = 2  # references to a buffer that is nobody's: the one that looks, and the look itself


class Buffers:
    """Memory that is lent, and lent again when all that was made of it is gone."""

    def __init__(self) -> None:
        self._kept: deque[Array] = deque()
        self._counts = getattr(sys, "_is_gil_enabled", lambda: True)()  # without the lock a count tells nothing

    def lend(self, nbytes: int) -> Array | None:
        """Writable uint8 `[nbytes]` with anything in it; None where new memory is as good."""
        if nbytes < SMALLEST or not self._counts:
            return None
        found, held = self._search(nbytes, keep=True)
        if found is not None:
            return found
        if held + nbytes > MOST_BYTES:  # batches may have another size now: what is free goes
            _, held = self._search(nbytes, keep=False)
        buffer = np.empty(nbytes + ALIGN, np.uint8)
        if held + nbytes <= MOST_BYTES:
            self._kept.append(buffer)
        return _aligned(buffer, nbytes)

    def _search(self, nbytes: int, keep: bool) -> tuple[Array | None, int]:
        """A free buffer of about this size, or the bytes of all. `keep`: free ones of other sizes, or drop them."""
        held = passed = 0
        for _ in range(len(self._kept)):
            try:
                buffer = self._kept.pop()  # taken out while it is looked at: no other thread can have it
            except IndexError:  # others look too
                break
            free = sys.getrefcount(buffer) == _FREE
            if free and nbytes <= len(buffer) - ALIGN <= 2 * nbytes:
                self._kept.append(buffer)
                self._kept.rotate(-passed)  # the same are looked at first again: they are in the processor's cache
                return _aligned(buffer, nbytes), held
            if keep or not free:
                held += len(buffer)
                passed += 1
                self._kept.appendleft(buffer)
        return None, held


def _aligned(buffer: Array, nbytes: int) -> Array:
    """`nbytes` of it from its first whole cache line on: numpy's own large memory never begins with one."""
    start = -buffer.__array_interface__["data"][0] % ALIGN
    return buffer[start : start + nbytes]


_buffers = Buffers()


def room(name: str, nbytes: int) -> Array | None:
    """Writable uint8 `[nbytes]` for a batch's column; None where numpy's own memory is as good."""
    shared = slots.buffer(name, nbytes)
    return _buffers.lend(nbytes) if shared is None else shared
