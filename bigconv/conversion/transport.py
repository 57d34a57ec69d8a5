"""Blocks from a worker to the parent through shared memory that is used again and again, not through pickles."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigconv.block import Array, Block, Column, Ragged
from bigconv.schema import Schema

ALIGN = 64  # bytes: a cache line
_FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()

Entry = tuple[str, tuple[int, ...], int]  # dtype, shape, byte offset in the slot


@dataclass(frozen=True)
class Shipment:
    """What travels through the pipe: where the block's arrays lie in a slot."""

    slot: int
    path: str | None  # of a slot that the parent has not seen yet, to be mapped and, if it has a name, unlinked at once
    columns: tuple[tuple[str, tuple[Entry | None, ...]], ...]
    origin: Entry | None
    digest: bytes
    seen: bytes  # as `Item.seen`


class Slots:
    """The worker's side: packs blocks into slots, makes new ones when a block is larger than any."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._fresh: dict[int, str] = {}
        self._nameless: dict[int, int] = {}  # slot -> descriptor, open as long as the slot is
        self._free: list[int] = []
        self._made = 0

    @property
    def held(self) -> int:
        """Slots that the parent has not given back."""
        return len(self._maps) - len(self._free)

    @property
    def held_bytes(self) -> int:
        """Their size."""
        return sum(map(len, self._maps.values())) - sum(len(self._maps[slot]) for slot in self._free)

    def free(self, slot: int) -> None:
        self._free.append(slot)

    def pack(self, block: Block, digest: bytes, seen: bytes) -> Shipment:
        """Copy a block into a free slot."""
        arrays: list[Array] = []
        sizes: list[int] = []
        end = 0

        def place(array: Array | None) -> Entry | None:
            nonlocal end
            if array is None:
                return None
            flat = np.ascontiguousarray(array)
            entry = (flat.dtype.str, flat.shape, end)
            arrays.append(flat)
            sizes.append(end)
            end += -(-flat.nbytes // ALIGN) * ALIGN
            return entry

        columns = tuple(
            (name, (place(c.values), place(c.offsets), place(c.shapes)) if isinstance(c, Ragged) else (place(c),))
            for name, c in block.columns.items()
        )
        origin = place(block.origin)
        slot = self._slot(end)
        room = np.frombuffer(self._maps[slot], np.uint8)
        for array, start in zip(arrays, sizes, strict=True):
            room[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        return Shipment(slot, self._fresh.pop(slot, None), columns, origin, digest, seen)

    def _slot(self, nbytes: int) -> int:
        for slot in self._free:
            if len(self._maps[slot]) >= nbytes:
                self._free.remove(slot)
                return slot
        if self._free:  # too small for this block: a larger one takes its place
            smaller = self._free.pop()
            self._maps.pop(smaller)
            if smaller in self._nameless:
                os.close(self._nameless.pop(smaller))
        fd, path, nameless = _shared()
        try:
            size = max(mmap.PAGESIZE, nbytes + nbytes // 4)  # the next block may be a little larger
            os.ftruncate(fd, size)
            self._maps[self._made] = mmap.mmap(fd, size)
        finally:
            if nameless:
                self._nameless[self._made] = fd
            else:
                os.close(fd)
        self._fresh[self._made] = path
        self._made += 1
        return self._made - 1


def _shared() -> tuple[int, str, bool]:
    """A file in memory, where the parent finds it, and whether it is without a name: then nothing stays behind when
    all processes are killed at once, and a container's limit on /dev/shm doesn't apply."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        fd = os.memfd_create("bigconv", os.MFD_CLOEXEC)
        return fd, f"/proc/{os.getpid()}/fd/{fd}", True
    fd, path = tempfile.mkstemp(prefix="bigconv-", dir=_FOLDER)
    return fd, path, False


class Arrivals:
    """The parent's side: maps the slots of one worker and shows the blocks in them."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._maps: dict[int, mmap.mmap] = {}

    def unpack(self, shipment: Shipment) -> Block:
        """The block as read-only views of the slot; valid until the slot is given back."""
        self.take_over(shipment)
        room = self._maps[shipment.slot]

        def view(entry: Entry) -> Array:
            dtype, shape, start = entry
            count = int(np.prod(shape, dtype=np.int64))
            return np.frombuffer(room, np.dtype(dtype), count, start).reshape(shape)

        columns: dict[str, Column] = {}
        for name, entries in shipment.columns:
            views: list[Any] = [None if e is None else view(e) for e in entries]
            columns[name] = views[0] if len(views) == 1 else Ragged(*views)
        origin = None if shipment.origin is None else view(shipment.origin)
        return Block(self._schema, columns, origin)

    def take_over(self, shipment: Shipment) -> None:
        """Map a slot that is new, and remove its name. Raises `OSError` when it went with its worker."""
        if shipment.path is None:
            return
        with open(shipment.path, "r+b") as file:
            self._maps[shipment.slot] = mmap.mmap(file.fileno(), 0)
        if not shipment.path.startswith("/proc/"):
            with contextlib.suppress(OSError):  # Windows can't remove a file that is mapped
                Path(shipment.path).unlink()
