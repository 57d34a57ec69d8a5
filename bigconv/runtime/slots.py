"""Batches from DataLoader workers in shared memory that is used again, instead of fresh memory for each batch.

Copying a batch is cheap; fresh shared memory for it costs ten times as much, as the kernel has to clear and map every
page. So each worker keeps a few segments a column, the slots. The batch is gathered into a free one, what goes through
the worker's queue is only its number, and the parent, which keeps the slot mapped, gets an ordinary tensor over it.

    worker                                            parent
    buffer()     a free slot, `held` ─┐
    pickling     last byte := 1 ──────┼── number ───▶ a tensor over the mapped slot
    last tensor  `held` := no         │
    gone                              └── byte := 0 ◀── last tensor over it gone

A slot is free when the worker doesn't hold it and its last byte is 0. Each side writes its own transition only, once a
lease, so neither ever waits for the other. With no free slot a batch goes in a segment of its own, freed with it:
a consumer may keep every batch. Slots are anonymous (`memfd_create`, their descriptors travel as torch's do), so there
is nothing in `/dev/shm`, however the processes end, and Docker's limit on it does not apply.

Small tensors travel in the message itself. Everything else goes the way of torch, as it would without this module. Only
DataLoader workers on Linux use slots; elsewhere `buffer` has none to give.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
import weakref
from dataclasses import dataclass, field
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import get_worker_info

from bigconv.block import Array
from bigconv.errors import UsageError

INLINE_BYTES = 16 << 10  # 16 KiB: up to here bytes in the message, at most a quarter of the pipe, beat a segment
SLOTS = 8  # a column: the two batches torch prefetches, those the consumer holds, and room for an unsteady consumer

_Ring = tuple[int, bytes]  # pid and token of a worker


# -- in the worker ----------------------------------------------------------------------------------------------------


class _Slot:
    """A segment of shared memory. Its last byte is 1 while the parent has it, or is about to."""

    def __init__(self, number: int, nbytes: int, kept: bool) -> None:
        self.number, self.kept = number, kept
        self.capacity = nbytes + nbytes // 4 if kept else nbytes  # untouched pages cost nothing, growing does
        self._fd = os.memfd_create("bigconv", os.MFD_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, self.capacity + 1)
        self.memory = mapped(self._fd, self.capacity + 1)
        self.held = False

    @property
    def free(self) -> bool:
        return not self.held and not self.memory[-1]

    def send(self) -> tuple[Any, bool] | None:
        """Give it to the parent: the first time with its descriptor, after that by number alone."""
        self.memory[-1] = 1
        if not self._closing.alive:
            return None
        opening = reduction.DupFd(self._fd), self.kept
        self._closing()
        return opening


@dataclass
class _Lease:
    slot: _Slot
    nbytes: int
    sent: bool = False


@dataclass
class _Worker:
    """The slots of this process."""

    ring: _Ring = field(default_factory=lambda: (os.getpid(), os.urandom(8)))
    slots: dict[str, list[_Slot]] = field(default_factory=dict)
    leases: dict[int, _Lease] = field(default_factory=dict)  # by address
    retired: list[int] = field(default_factory=list)  # slots the parent can let go of
    made: int = 0
    picking: threading.Lock = field(default_factory=threading.Lock)  # for datasets that read in threads of their own

    def lease(self, key: str, nbytes: int) -> Array:
        with self.picking:
            slot = self._slot(key, nbytes)
            slot.held = True
        # an array of its own base, so that every view of it, and every tensor, keeps this very object alive
        memory: Array = np.frombuffer(slot.memory.data, np.uint8, nbytes)
        address = memory.__array_interface__["data"][0]
        self.leases[address] = _Lease(slot, nbytes)
        weakref.finalize(memory, self._end, address).atexit = False
        return memory

    def _slot(self, key: str, nbytes: int) -> _Slot:
        ring = self.slots.setdefault(key, [])
        free = [slot for slot in ring if slot.free]
        for slot in free:  # the one used last before the others: it may still be in the cache
            if slot.capacity >= nbytes:
                ring.remove(slot)
                ring.insert(0, slot)
                return slot
        if free:
            ring.remove(free[0])
            self.retired.append(free[0].number)
        self.made += 1
        slot = _Slot(self.made, nbytes, kept=len(ring) < SLOTS)
        if slot.kept:
            ring.insert(0, slot)
        return slot

    def _end(self, address: int) -> None:
        with _in_torch:
            self.leases.pop(address).slot.held = False


def mapped(fd: int, nbytes: int) -> Array:
    """Shared memory as uint8 `[nbytes]`. Unlike `mmap.mmap`, torch keeps no descriptor: batches may be hoarded."""
    memory: Array = torch.from_file(f"/proc/self/fd/{fd}", shared=True, size=nbytes, dtype=torch.uint8).numpy()
    return memory


_worker: _Worker | None = None
# The thread that sends batches is a daemon. If it waits for Python's own lock inside torch when the interpreter ends
# (it does end in workers that were spawned), Python before 3.14 ends it right there, through frames of C++ that forbid
# it: the process aborts. So it holds this meanwhile, and the main thread takes it first, for good.
_in_torch = threading.RLock()


def _leave_torch() -> None:
    _in_torch.acquire()


def buffer(key: str, nbytes: int) -> Array | None:
    """Writable uint8 `[nbytes]` in which a tensor reaches the DataLoader's process without being copied.

    Free again when all tensors over it are gone, in both processes. `key`: the name of what it is for, whose slots
    grow to the largest asked for. None where there is nothing to gain: outside a worker, or for few bytes.
    """
    global _worker
    if get_worker_info() is None:
        return None
    if _worker is None:
        _worker = _Worker()
        atexit.register(_leave_torch)
        reduction.ForkingPickler.register(torch.Tensor, _reduce)
    if nbytes <= INLINE_BYTES or not hasattr(os, "memfd_create"):
        return None
    try:
        return _worker.lease(key, nbytes)
    except (OSError, RuntimeError):  # too many open files, a sandbox without memfd or /proc: torch has other ways
        return None


def moved(key: str, array: Array) -> Array:
    """A C-contiguous array in a `buffer`, or itself where there is none to have."""
    memory = buffer(key, array.nbytes)
    if memory is None:
        return array
    there = memory.view(array.dtype).reshape(array.shape)
    there[...] = array
    return there


def _reduce(tensor: torch.Tensor) -> Any:
    """Registered in workers, in torch's place, for everything that goes through a queue."""
    with _in_torch:
        return _reduced(tensor)


def _reduced(tensor: torch.Tensor) -> Any:
    plain = (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )
    if _worker is None or not plain:
        return reduce_tensor(tensor)  # type: ignore[no-untyped-call]
    storage = tensor.untyped_storage()
    lease = _worker.leases.get(storage.data_ptr())
    if lease is not None and lease.nbytes == storage.nbytes() and not lease.sent:
        lease.sent = True
        retired = [_worker.retired.pop() for _ in range(len(_worker.retired))]
        layout = (tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        return _rebuild, (_worker.ring, lease.slot.number, lease.slot.send(), retired, lease.nbytes, layout)
    if tensor.nbytes <= INLINE_BYTES and tensor.is_contiguous() and not storage.is_shared():
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        return _rebuild_small, (data, tensor.dtype, tuple(tensor.shape))
    return reduce_tensor(tensor)  # type: ignore[no-untyped-call]


# -- in the parent ----------------------------------------------------------------------------------------------------

_rings: dict[_Ring, dict[int, Array]] = {}  # the slots of each worker, mapped


def _rebuild(
    ring: _Ring,
    number: int,
    opening: tuple[Any, bool] | None,
    retired: list[int],
    nbytes: int,
    layout: tuple[torch.dtype, int, tuple[int, ...], tuple[int, ...]],
) -> torch.Tensor:
    """A tensor over a slot, which the worker may fill again when the tensor's memory is released."""
    if ring not in _rings:
        _forget_the_dead()
        for process in multiprocessing.active_children():
            if process.pid == ring[0]:  # its loader lets go of it when it has ended, maybe after the last batch is gone
                weakref.finalize(process, _forget_the_dead).atexit = False
    slots = _rings.setdefault(ring, {})
    for gone in retired:
        slots.pop(gone, None)
    if opening is None:
        slot = slots.get(number)
        if slot is None:
            raise UsageError(
                "a batch of a DataLoader worker can be received by the process of its DataLoader only.\n"
                "To send it elsewhere, send batch.clone()"
            )
    else:
        descriptor, kept = opening
        try:
            fd = descriptor.detach()
        except (OSError, EOFError) as error:
            raise RuntimeError(f"DataLoader worker (pid {ring[0]}) exited unexpectedly, its batch is lost") from error
        try:
            slot = mapped(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        if kept:
            slots[number] = slot
    memory = np.frombuffer(slot.data, np.uint8, nbytes)
    weakref.finalize(memory, _release, slot, os.getpid()).atexit = False
    dtype, offset, shape, stride = layout
    return torch.empty(0, dtype=dtype).set_(torch.from_numpy(memory).untyped_storage(), offset, shape, stride)


def _release(slot: Array, pid: int) -> None:
    if os.getpid() == pid:  # a child that was forked meanwhile has copies of our tensors, but no say
        slot[-1] = 0
        _forget_the_dead()


def _forget_the_dead() -> None:
    """Unmap the slots of workers that have ended, as soon as no tensor is left over them."""
    for ring in list(_rings):
        try:
            os.kill(ring[0], 0)
        except ProcessLookupError:
            _rings.pop(ring, None)


def _rebuild_small(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


def _after_fork() -> None:
    global _worker, _in_torch
    _worker, _in_torch = None, threading.RLock()
    _rings.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
