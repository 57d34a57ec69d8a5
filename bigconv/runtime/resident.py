"""A store's rows in memory, once for all processes that read them."""

from __future__ import annotations

import mmap
import os
import weakref
from multiprocessing import context, reduction
from typing import Any

import numpy as np

from bigconv.block import Array, Column, Index, Ragged
from bigconv.errors import UsageError
from bigconv.runtime import slots
from bigconv.schema import Schema
from bigconv.view.memory import copy_runs, shaped, take_rows
from bigconv.view.table import StoreView

_ALIGN = 64  # bytes: a cache line


class Resident:
    """All rows of a view in shared memory, decompressed.

    Forked processes inherit it, spawned ones get its descriptor: there is one copy. Raises `UsageError` for more
    bytes than the machine has.
    """

    def __init__(self, view: StoreView) -> None:
        self.schema: Schema = view.schema
        self.rows = len(view)
        self._places: dict[str, tuple[int, int]] = {}  # part -> its first byte and its items
        end = 0
        for f in self.schema:
            for part in f.parts():
                items = self.rows + (part.role == "offsets")
                if part.role == "values":
                    items = view.field_bytes(f.name) // part.item_bytes if part.item_bytes else 0
                self._places[part.name] = (end, items)
                end += -(-items * part.item_bytes // _ALIGN) * _ALIGN
        self._check(end)
        self._fd, memory = _shared(max(end, 1))
        self._bind(memory)
        self._fill(view)

    @staticmethod
    def _check(nbytes: int) -> None:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else nbytes
        if nbytes > machine:
            raise UsageError(
                f"in_memory=True needs {nbytes:,} bytes, and this machine has {machine:,}.\n"
                "Leave it out: rows are then read from the files, through the page cache"
            )

    def _bind(self, memory: Array) -> None:
        self._memory = memory
        self._address = memory.__array_interface__["data"][0]
        self._parts: dict[str, Array] = {}
        for f in self.schema:
            for part in f.parts():
                start, items = self._places[part.name]
                flat = memory[start : start + items * part.item_bytes]
                if part.role in ("rows", "values"):
                    self._parts[part.name] = flat.reshape(items, part.item_bytes) if part.item_bytes else flat
                else:
                    self._parts[part.name] = flat.view(np.int64).reshape(items, *part.shape)

    def _fill(self, view: StoreView) -> None:
        at = 0
        used = dict.fromkeys(self.schema.names, 0)  # items of a ragged field so far
        for block in view.blocks():
            stop = at + len(block)
            for f in self.schema:
                column, parts = block.columns[f.name], self._parts
                if not isinstance(column, Ragged):
                    if f.row_bytes:
                        parts[f.name][at:stop] = _flat(column, f.row_bytes)
                    continue
                first, last = used[f.name], used[f.name] + len(column.values)
                if f.row_bytes:
                    parts[f"{f.name}/values"][first:last] = _flat(column.values, f.row_bytes)
                parts[f"{f.name}/offsets"][at : stop + 1] = column.offsets + first
                if column.shapes is not None:
                    parts[f"{f.name}/shapes"][at:stop] = column.shapes
                used[f.name] = last
            at = stop

    def take_field(self, name: str, index: Index, out: Array | None = None) -> Column:
        """As `StoreView.take_field`: one field of rows that are known to be there."""
        field = self.schema[name]
        if not field.ragged:
            if not field.row_bytes:
                return np.empty((len(index), *field.item_shape), field.dtype)
            return shaped(take_rows(self._parts[name], index, out), field)
        all_offsets = self._parts[f"{name}/offsets"]
        first = all_offsets[index]
        counts = all_offsets[index + 1] - first
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        shapes = self._parts[f"{name}/shapes"][index] if field.has_shapes else None
        if not field.row_bytes:
            return Ragged(np.empty((int(offsets[-1]), *field.item_shape), field.dtype), offsets, shapes)
        base = self._address + self._places[f"{name}/values"][0]
        flat = copy_runs(base + first * field.row_bytes, counts * field.row_bytes, field.row_bytes)
        return Ragged(flat.view(field.dtype).reshape(-1, *field.item_shape), offsets, shapes)

    @property
    def can_travel(self) -> bool:
        """Whether it can be pickled now: into a process that is being started, and nowhere else."""
        return self._fd is not None and context.get_spawning_popen() is not None

    def __getstate__(self) -> dict[str, Any]:
        state = {"schema": self.schema, "rows": self.rows, "_places": self._places}
        return {**state, "_fd": None if self._fd is None else reduction.DupFd(self._fd), "nbytes": len(self._memory)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fd, nbytes = state.pop("_fd").detach(), state.pop("nbytes")
        self.__dict__.update(state)
        self._fd = fd
        memory = slots.mapped(fd, nbytes)
        weakref.finalize(memory, os.close, fd).atexit = False
        self._bind(memory)


def _flat(values: Array, item_bytes: int) -> Array:
    """Items as uint8 `[items, item_bytes]`."""
    flat: Array = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return flat.reshape(-1, item_bytes)


def _shared(nbytes: int) -> tuple[int | None, Array]:
    """Shared memory of this process and its children, and where there is one its descriptor."""
    if not hasattr(os, "memfd_create"):
        memory: Array = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
        return None, memory
    fd = os.memfd_create("bigconv", os.MFD_CLOEXEC)
    os.ftruncate(fd, nbytes)
    memory = slots.mapped(fd, nbytes)
    weakref.finalize(memory, os.close, fd).atexit = False
    return fd, memory
