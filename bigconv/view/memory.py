"""Mapped files and copies from them: rows from memory addresses, in one vectorised copy.

All maps of a process lie in one address space, so rows of many files are gathered by one indexed copy, as if they were
one array. Addresses are only ever made from locations and offsets that have been held against the size of the map.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from bigconv import fsio
from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore
from bigconv.schema import Field

LOWEST = 4096  # no map ever starts at address 0
SPAN = 1 << 47  # bytes a process can address on the 64-bit systems of today
LOOP_BYTES = 32768  # rows this large: one copy a row costs nothing against its bytes, and their count can't overflow
SHARED_BYTES = 256 << 10  # 256 KiB: less is copied before a second thread, even one that is awake, has begun
LOCKED_ITEMS = 500  # numpy copies up to so many without letting go of Python's lock, however large they are
LOOP_ITEMS = 24  # runs of fewer items on average: putting items in their places beats a loop over the runs
JOIN_BYTES = 128  # ragged rows shorter than this on average: indexing items beats joining slices


class _AddressSpace:
    """Everything this process has mapped, as items of `nbytes` bytes that start at every byte."""

    def __init__(self, nbytes: int) -> None:
        self.__array_interface__ = {
            "data": (LOWEST, True),
            "shape": (SPAN,),
            "strides": (1,),
            "typestr": f"|V{nbytes}",
            "version": 3,
        }


@lru_cache(maxsize=256)
def _space(nbytes: int) -> Array:
    return np.asarray(_AddressSpace(nbytes))


@lru_cache(maxsize=1)
def everywhere() -> memoryview:
    """All of the address space from `LOWEST` on, to be sliced."""
    return np.asarray(_AddressSpace(1)).view(np.uint8).data


Copy = Callable[[Array | None], Array]  # into the memory given, or into new memory


class Threads(Protocol):
    """Who copies rows by other means than numpy, where those are quicker: the runtime."""

    def copy(
        self, source: Array | None, index: Index, nbytes: int, out: Array | None, alone: Copy, twice: bool
    ) -> Array: ...


_threads: Threads | None = None


def share_with(threads: Threads) -> None:
    """Have large copies made by these threads from now on."""
    global _threads
    _threads = threads


def take_rows(array: Array, rows: Index, out: Array | None = None) -> Array:
    """`array[rows]` of uint8 `[items, nbytes]` that lies in one piece, for rows that are known to be there."""
    nbytes = array.shape[1]
    if _threads is None or len(rows) * nbytes < SHARED_BYTES:
        return array.take(rows, 0, out, "clip")
    return _threads.copy(array, rows, nbytes, out, lambda room: array.take(rows, 0, room, "clip"), twice=False)


def copy_rows(addresses: Index, nbytes: int, out: Array | None = None) -> Array:
    """Copy `nbytes` bytes from each address (int64 `[rows]`) into uint8 `[rows, nbytes]`."""
    places = addresses - LOWEST
    if _threads is None or len(places) * nbytes < SHARED_BYTES:
        return _copied(places, nbytes, out)
    twice = out is not None
    return _threads.copy(None, places, nbytes, out, lambda room: _copied(places, nbytes, room), twice=twice)


def _copied(places: Index, nbytes: int, out: Array | None) -> Array:
    """In one thread. `places`: addresses, counted from `LOWEST` on."""
    if out is None:
        if nbytes < LOOP_BYTES and nbytes:
            return _gathered(places, nbytes)
        out = np.empty((len(places), nbytes), np.uint8)
    if nbytes >= LOOP_BYTES:
        everything = _space(1).view(np.uint8)
        for row, start in enumerate(places.tolist()):
            out[row] = everything[start : start + nbytes]
    elif nbytes:
        step = max(1, (512 << 10) // nbytes)  # 512 KiB: the fresh copy is still in the cache when it moves on
        for a in range(0, len(places), step):
            out[a : a + step] = _gathered(places[a : a + step], nbytes)
    return out


def _gathered(places: Index, nbytes: int) -> Array:
    """In new memory."""
    width = nbytes if len(places) * nbytes < SHARED_BYTES else _unlocked(nbytes, len(places))
    if width != nbytes:
        places = (places[:, None] + np.arange(0, nbytes, width)).reshape(-1)
    gathered: Array = _space(width)[places]
    return gathered.view(np.uint8).reshape(-1, nbytes)


@lru_cache(maxsize=256)
def _unlocked(nbytes: int, rows: int) -> int:
    """Bytes of the pieces, all equal, in which rows are copied so that numpy lets other threads run meanwhile."""
    least = LOCKED_ITEMS // max(1, rows) + 1
    return next((nbytes // n for n in range(least, nbytes // 256 + 1) if nbytes % n == 0), nbytes)


def copy_runs(starts: Index, nbytes: Index, item_bytes: int) -> Array:
    """Copy runs of bytes of different lengths one after another into one writable uint8 array."""
    total = int(nbytes.sum())
    if total == 0:
        return np.empty(0, np.uint8)
    if total >= JOIN_BYTES * len(starts):
        begin = (starts - LOWEST).tolist()
        end = (starts - LOWEST + nbytes).tolist()
        return np.frombuffer(bytearray().join(map(everywhere().__getitem__, map(slice, begin, end))), np.uint8)
    gathered: Array = _space(item_bytes)[_each(starts - LOWEST, nbytes, item_bytes)]
    return gathered.view(np.uint8)


def _each(starts: Index, nbytes: Index, item_bytes: int) -> Index:
    """int64 `[items]`: where each item of runs begins."""
    counts = nbytes // item_bytes
    first = np.cumsum(counts) - counts
    index: Index = np.arange(int(counts.sum()), dtype=np.int64)
    index *= item_bytes
    index += np.repeat(starts - first * item_bytes, counts)
    return index


def overlay(out: Array, pieces: Iterable[tuple[int, int, int, int]]) -> None:
    """Copy runs of bytes over those of a contiguous `out`: over which, and the places of which, from `LOWEST` on.

    For what is left when rows were copied as if each lay in one piece.
    """
    into, source = out.reshape(-1).data, everywhere()
    for at, end, start, stop in pieces:
        into[at:end] = source[start:stop]


def overlay_runs(out: Array, at: Index, starts: Index, nbytes: Index, item_bytes: int) -> None:
    """`overlay` of many runs, by byte of `out`, address and length, int64 `[runs]` all: short ones item by item."""
    if int(nbytes.sum()) >= LOOP_ITEMS * item_bytes * len(nbytes):
        places = starts - LOWEST
        columns = (at, at + nbytes, places, places + nbytes)
        overlay(out, zip(*(column.tolist() for column in columns), strict=True))
        return
    items = copy_runs(starts, nbytes, item_bytes)
    anywhere: Array = np.ndarray(out.size - item_bytes + 1, f"V{item_bytes}", out, strides=(1,))
    anywhere[_each(at, nbytes, item_bytes)] = items.view(f"V{item_bytes}")


class Maps:
    """Memory maps of files, made when first needed and kept as long as this object."""

    def __init__(self) -> None:
        self._maps: dict[Path, tuple[mmap.mmap, int, int]] = {}
        self.kept: dict[Path, object] = {}  # what several fields share besides a map, by the file it is made from

    def size(self, path: Path) -> int:
        """Bytes of a file."""
        self.base(path, 0)
        return self._maps[path][2]

    def view(self, path: Path, count: int, offset: int) -> Array:
        """`count` bytes of a file from byte `offset` on, as read-only uint8; the file has been asked for by `base`."""
        return np.frombuffer(self._maps[path][0], np.uint8, count, offset)

    def base(self, path: Path, nbytes: int) -> int:
        """Address of the first byte of a file that has at least `nbytes` bytes. Raises `IncompleteStore`."""
        held = self._maps.get(path)
        if held is None:
            try:
                mapped = fsio.map_file(path)
            except (OSError, ValueError) as error:
                raise IncompleteStore(f"{path}: can't be mapped: {error}") from error
            address = int(np.frombuffer(mapped, np.uint8).__array_interface__["data"][0])
            held = self._maps[path] = (mapped, address, len(mapped))
        if nbytes > held[2]:
            raise IncompleteStore(f"{path}: has {held[2]} bytes, and rows up to byte {nbytes}")
        return held[1]


def shaped(flat: Array, field: Field) -> Array:
    """uint8 `[rows, row_bytes]` as `[rows, *shape]` of the field's dtype, not copied."""
    if field.row_bytes == 0:
        return np.empty((len(flat), *field.item_shape), field.stored)
    rows: Array = flat.view(field.stored).reshape(len(flat), *field.item_shape)
    return rows
