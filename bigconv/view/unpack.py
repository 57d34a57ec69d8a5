"""Compressed chunks and records, decoded: each once a batch, by threads, and kept a while in bounded memory.

Decoded bytes lie in this process's memory as mapped ones do, so the gather engine takes rows from them by address too.
What makes an address good is that somebody holds the memory: whoever asks for decoded chunks gives a list, `hold`, to
which their memory is added, and keeps it until the rows have been copied.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore
from bigconv.stores import frames
from bigconv.stores.base import Chunks, Packed, PackedRecords
from bigconv.view.memory import LOWEST, Maps, copy_rows, everywhere

CACHE_BYTES = 64 << 20  # 64 MiB of decoded chunks a view and process: a window of 4,096 chunks of 16 KiB
LOST = 1 << 62  # an address that no file has

Hold = list[Array]


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one part, by number. `find(numbers)`: address of each, and the address behind which nothing is its own.

    `nbytes`: what every frame holds, decoded; None where each tells for itself.
    """

    name: str
    find: Callable[[Index], tuple[Index, Index]]
    nbytes: int | None
    number: int = field(default_factory=count().__next__)  # tells parts apart in a cache, even when one is gone

    @property
    def near(self) -> bool:
        return True

    def heads(self, numbers: Index) -> tuple[Index, Index, Index]:
        """int64 `[n]` each: address, bytes and decoded bytes of frames. Raises `IncompleteStore` for a damaged one."""
        start, end = self.find(numbers)
        bad = (start < LOWEST) | (end - start < frames.HEAD.itemsize)
        if not bad.any():
            head = frames.head_of(copy_rows(start, frames.HEAD.itemsize))
            size, held = head["size"].astype(np.int64), head["raw"].astype(np.int64)
            bad = (size > end - start) | (size < frames.HEAD.itemsize)
            bad |= held > frames.MOST_BYTES if self.nbytes is None else held != self.nbytes
        if bad.any():
            raise IncompleteStore(f"{self.name}: chunk {int(numbers[bad][0])} is damaged; run inspect --verify")
        return start, size, held

    def decode(self, numbers: Index, into: Callable[[int, int], Array]) -> None:
        """Decode frames, each into `into(i, nbytes)`, uint8 `[nbytes]`, for the `i`-th of `numbers`."""
        start, size, held = self.heads(numbers)
        first, last, wanted = (start - LOWEST).tolist(), (start - LOWEST + size).tolist(), held.tolist()
        source = everywhere()

        def some(bounds: tuple[int, int]) -> None:
            for i in range(*bounds):
                if not wanted[i]:
                    into(i, 0)
                    continue
                try:
                    frames.unpack(source[first[i] : last[i]], into(i, wanted[i]))
                except IncompleteStore as error:
                    raise IncompleteStore(
                        f"{self.name}: chunk {int(numbers[i])}: {error}; run inspect --verify"
                    ) from error

        for _ in frames.in_threads(some, list(frames.shares(len(numbers), int(held.sum())))):
            pass


class Cache:
    """Decoded chunks, the ones used last; no chunk is decoded by two threads at once.

    Holds `limit` bytes at most, besides what batches being gathered hold.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self._held: OrderedDict[tuple[int, int], tuple[Array, int]] = OrderedDict()
        self._bytes = 0
        self._busy: set[tuple[int, int]] = set()
        self._done = threading.Condition()

    def decoded(self, part: Chunks, numbers: Index, hold: Hold) -> tuple[Index, Index]:
        """int64 `[n]` both: address and number of bytes of decoded chunks; `numbers`: no number twice."""
        wanted = numbers.tolist()
        found: dict[int, tuple[Array, int]] = {}
        while True:
            mine = self._claim(part, wanted, found)
            if mine:
                self._decode(part, mine, found)
            elif len(found) < len(wanted):
                self._wait(part, [number for number in wanted if number not in found])
            if len(found) == len(wanted):
                break
        arrays = [found[number] for number in wanted]
        hold += [array for array, _ in arrays]
        addresses = np.fromiter((address for _, address in arrays), np.int64, len(arrays))
        return addresses, np.fromiter((len(array) for array, _ in arrays), np.int64, len(arrays))

    def _claim(self, part: Chunks, wanted: list[int], found: dict[int, tuple[Array, int]]) -> list[int]:
        """Add what is there to `found`; the numbers that this thread is now to decode."""
        mine, own = [], part.number
        with self._done:
            for number in wanted:
                if number in found:
                    continue
                key = own, number
                if (held := self._held.get(key)) is not None:
                    self._held.move_to_end(key)
                    found[number] = held
                elif key not in self._busy:
                    self._busy.add(key)
                    mine.append(number)
        return mine

    def _decode(self, part: Chunks, mine: list[int], found: dict[int, tuple[Array, int]]) -> None:
        made: dict[int, tuple[Array, int]] = {}
        own = part.number

        def into(i: int, nbytes: int) -> Array:
            array: Array = np.empty(nbytes, np.uint8)
            made[mine[i]] = array, int(array.__array_interface__["data"][0])
            return array

        whole = False
        try:
            part.decode(np.array(mine, np.int64), into)
            whole = True
        finally:
            with self._done:
                self._busy.difference_update((own, number) for number in mine)
                if whole:
                    self._keep(own, made)
                self._done.notify_all()
        found |= made

    def _keep(self, own: int, made: dict[int, tuple[Array, int]]) -> None:
        for number, (array, address) in made.items():
            if len(array) > self.limit:
                continue
            self._held[own, number] = array, address
            self._bytes += len(array)
        while self._bytes > self.limit:
            _, (array, _) = self._held.popitem(last=False)
            self._bytes -= len(array)

    def _wait(self, part: Chunks, numbers: list[int]) -> None:
        """Until another thread is done with one of these."""
        keys = [(part.number, number) for number in numbers]
        with self._done:
            self._done.wait_for(lambda: not all(key in self._busy for key in keys))


def of_chunks(where: Packed, maps: Maps, name: str) -> Frames:
    """The chunks of a part, found by their tables. Raises `IncompleteStore` where a file is too short for its table."""
    chunks = -(-where.items // where.chunk_items)
    bases, sizes = [], []
    for number, (path, table) in enumerate(zip(where.paths, where.tables, strict=True)):
        here = min(where.shard_chunks, chunks - number * where.shard_chunks)
        bases.append(maps.base(path, table + 16 * here))
        sizes.append(maps.size(path))
    base, tables, size = (np.array(n, np.int64) for n in (bases, where.tables, sizes))

    def find(numbers: Index) -> tuple[Index, Index]:
        shard, inside = np.divmod(numbers, where.shard_chunks)
        entry = copy_rows(base[shard] + tables[shard] + 16 * inside, 16).view(np.int64)
        offset, nbytes = entry[:, 0], entry[:, 1]
        # read as signed: what is past 2^63, as a missing chunk's is, has become negative
        outside = (offset < 0) | (nbytes < 0) | (offset > size[shard]) | (nbytes > size[shard] - offset)
        start = np.where(outside, -LOST, base[shard] + offset)
        return start, np.where(outside, -LOST, start + nbytes)

    return Frames(name, find, where.chunk_items * where.item_bytes)


def of_records(where: PackedRecords, maps: Maps) -> Frames:
    """One record an item: the same for all fields of a store, so that a record is decoded once for all of them."""
    known = maps.kept.get(where.path)
    if isinstance(known, Frames):
        return known
    at, size = read_index(where.index, where.items), maps.size(where.path)
    base = maps.base(where.path, size)

    def find(numbers: Index) -> tuple[Index, Index]:
        offsets = at[numbers]
        outside = (offsets < 0) | (offsets > size)
        return np.where(outside, -LOST, base + offsets), np.full(len(numbers), base + size)

    maps.kept[where.path] = found = Frames(str(where.path), find, None)
    return found


def read_index(path: Path, items: int) -> Index:
    """int64 `[items]` of a `.npy` file, mapped. Raises `IncompleteStore` for anything else."""
    found = np.asarray(np.load(path, mmap_mode="r" if items else None, allow_pickle=False))
    if found.dtype != np.int64 or found.shape != (items,):
        raise IncompleteStore(f"{path}: expected int64 [{items}]")
    return found
