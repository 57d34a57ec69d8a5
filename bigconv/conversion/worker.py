"""A worker process: spans in through a pipe, blocks out through shared memory.

The parent sends `("span", number, span)`, `("free", slot)` and `("stop",)`; the worker says `("ready",)` when it has
started, and answers with `("item", number, inputs done, Shipment or None, rejects)`, `("done", number)` and
`("failed", number, error)`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from bigconv.conversion.limits import OUT_OF_MEMORY, confine
from bigconv.conversion.task import Work, run_span
from bigconv.conversion.transport import Slots
from bigconv.errors import BigconvError
from bigconv.sources.base import Span

MAX_SLOTS = 3  # one being filled, one on its way, one being written; and more while they are small:
SLOT_BYTES = 32 << 20  # 32 MiB, so that a worker isn't stopped by a span before its own that is still being written

KEPT_BYTES = 32 << 20  # 32 MiB: a block as it is read, and as steps have made it; no more counts (mallopt(3))


def main(pipe: Connection, work: Work, memory: int | None, environment: Mapping[str, str]) -> None:
    """Serve until told to stop, or until the parent is gone. `memory`: bytes that may be allocated."""
    surround(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = sys.stderr  # what a user's function prints must not land in --json
    end_with_parent()
    gc.freeze()  # what the fork server imported stays: looking through it would copy its pages
    keep_memory()
    confine(memory)
    try:
        _Worker(pipe, work).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def end_with_parent() -> None:
    """End as soon as the parent has ended, however it did: nobody else may find this process still at work.

    A pipe alone doesn't tell: workers that are forked hold the ends of one another's.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def surround(environment: Mapping[str, str]) -> None:
    """Take over the parent's environment as it is now: a fork server has that of its start, without credentials, say,
    that were set since."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def keep_memory() -> None:
    """Have malloc hold on to freed memory: blocks of the same few sizes come again and again, and would each time be
    given back and be had anew, as pages that the kernel has to clear. A hint, for glibc (mallopt(3))."""
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):  # not glibc
        return
    mallopt(-3, KEPT_BYTES)  # M_MMAP_THRESHOLD
    mallopt(-1, KEPT_BYTES)  # M_TRIM_THRESHOLD


class _Worker:
    def __init__(self, pipe: Connection, work: Work) -> None:
        self._pipe, self._work = pipe, work
        self._slots = Slots()
        self._spans: deque[tuple[int, Span]] = deque()
        self._stopped = False

    def serve(self) -> None:
        self._pipe.send(("ready",))
        while True:
            while not self._spans:
                if self._stopped:
                    return
                self._hear()
            self._run(*self._spans.popleft())

    def _hear(self) -> None:
        message: Any = self._pipe.recv()
        if message[0] == "span":
            self._spans.append((message[1], message[2]))
        elif message[0] == "free":
            self._slots.free(message[1])
        else:
            self._stopped = True

    def _behind(self) -> bool:
        """Whether the parent has to give a slot back before there is another one."""
        return self._slots.held >= MAX_SLOTS and self._slots.held_bytes >= SLOT_BYTES

    def _run(self, number: int, span: Span) -> None:
        try:
            for item in run_span(self._work, span):
                shipment = None
                if item.block is not None:
                    while self._behind() or self._pipe.poll():
                        self._hear()
                    shipment = self._slots.pack(item.block, item.digest, item.seen)
                self._pipe.send(("item", number, item.upto, shipment, item.rejects))
            self._pipe.send(("done", number))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # as if it had been killed: the input that needs too much is found, and named
        except BigconvError as error:
            self._pipe.send(("failed", number, error))
        except Exception as error:  # noqa: BLE001  told to the parent, which raises it
            self._pipe.send(("failed", number, RuntimeError(f"{type(error).__name__}: {error}")))
