"""Worker processes that turn spans into blocks, in plan order, whatever happens to a worker.

A worker that dies (a decoder's segmentation fault, the OOM killer) or hangs is replaced. Its first unfinished span is
gone on with input by input, so that only the input that kills it is lost, and named; its others are given out again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from bigconv import registry
from bigconv.block import Block
from bigconv.conversion import worker
from bigconv.conversion.limits import OUT_OF_MEMORY
from bigconv.conversion.task import Item, Work
from bigconv.conversion.transport import Arrivals, Shipment
from bigconv.conversion.undisturbed import deaf
from bigconv.errors import InputError
from bigconv.sources.base import Reject, Span

AHEAD = 2  # spans a worker has been given: one to do, one so that it never waits for the next
WINDOW = 3  # spans a worker that may be begun before the one that is written: bounds memory
POLL_SECONDS = 0.5  # how often a hanging worker is looked for
START_SECONDS = 120.0  # at least, for a worker to start: on a busy machine longer than what one input may take
_MAIN = threading.RLock()  # of `no_main`: reentrant, as a process that is forked within inherits it locked


def run_parallel(
    work: Work,
    spans: Sequence[Span],
    workers: int,
    timeout: float | None,
    start_method: str | None = None,
    memory: int | None = None,
) -> Iterator[tuple[int, Item | None]]:
    """Items of all spans in order, as `(number of the span, item)`, and `(number, None)` at its end.

    A block is valid until the next item is asked for. `timeout`: seconds that one input may take;
    `memory`: bytes that a worker may allocate.
    """
    pool = _Pool(work, spans, min(workers, max(1, len(spans))), timeout, start_method, memory)
    try:
        yield from pool.items()
    finally:
        pool.stop()


@dataclass(eq=False)
class _Member:
    """One worker process as the parent sees it."""

    process: Any
    pipe: Connection
    arrivals: Arrivals
    given: deque[int] = field(default_factory=deque)  # numbers of unfinished spans, in order
    heard: float = 0.0  # when it last said something, or was given something to do
    ready: bool = False

    def tell(self, *message: Any) -> bool:
        """Send; False when it is gone."""
        try:
            self.pipe.send(message)
        except OSError:
            return False
        return True

    def limit(self, timeout: float) -> float:
        """Seconds that it may say nothing."""
        return timeout if self.ready else max(timeout, START_SECONDS)

    def end(self) -> None:
        """Stop it, and take over the slots that are on their way, so that their names are removed."""
        self.tell("stop")
        with contextlib.suppress(OSError, EOFError):
            while self.pipe.poll(0.0 if self.process.is_alive() else 0):
                message = self.pipe.recv()
                if message[0] == "item" and message[3] is not None:
                    self.arrivals.take_over(message[3])
        self.process.join(0.2)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        with contextlib.suppress(OSError, EOFError):
            while self.pipe.poll():
                message = self.pipe.recv()
                if message[0] == "item" and message[3] is not None:
                    self.arrivals.take_over(message[3])
        self.pipe.close()


@dataclass(eq=False)
class _Progress:
    """What has arrived of a span: items that wait for their turn, as `(item or None at the end, member, slot)`."""

    waiting: deque[tuple[Item | None, _Member | None, int]] = field(default_factory=deque)
    upto: int = 0  # inputs that have arrived
    rest: Iterator[Item] | None = None  # of a span whose worker died: input by input


class _Pool:
    def __init__(
        self,
        work: Work,
        spans: Sequence[Span],
        workers: int,
        timeout: float | None,
        start_method: str | None,
        memory: int | None,
    ) -> None:
        self._work, self._spans, self._workers, self._timeout, self._memory = work, spans, workers, timeout, memory
        self._context: Any = multiprocessing.get_context(start_method or best_method())
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(preload(work))
        self._members: list[_Member] = []
        self._progress: dict[int, _Progress] = {}
        self._next = 0  # the next span to give out
        self._again: deque[int] = deque()  # spans of a worker that died

    def _start(self) -> _Member:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._work, self._memory, dict(os.environ))
        process = self._context.Process(target=worker.main, args=arguments, daemon=True)
        with no_main():
            process.start()
        theirs.close()
        return _Member(process, ours, Arrivals(self._work.schema), heard=time.monotonic())

    def stop(self) -> None:
        """End all workers, which they do at the same time; what they still hold is dropped."""
        for member in self._members:
            member.tell("stop")
        for member in self._members:
            member.end()
        self._members.clear()

    def items(self) -> Iterator[tuple[int, Item | None]]:
        for _ in range(self._workers):
            self._members.append(self._start())
            self._give(0)  # so that it doesn't wait for the others to start
        for number in range(len(self._spans)):
            progress = self._progress.setdefault(number, _Progress())
            while True:
                if progress.waiting:
                    item, member, slot = progress.waiting.popleft()
                    if item is None:
                        break
                    yield number, item
                    if member is not None:
                        member.tell("free", slot)
                elif progress.rest is not None:
                    for item in progress.rest:
                        yield number, item
                    break
                else:
                    self._give(number)
                    self._listen()
            del self._progress[number]
            yield number, None

    def _give(self, current: int) -> None:
        """Keep every worker supplied, but not too far ahead of the span that is being written."""
        limit = min(len(self._spans), current + WINDOW * self._workers)
        for member in list(self._members):
            while len(member.given) < AHEAD and (self._again or self._next < limit):
                if self._again:
                    number = self._again.popleft()
                else:
                    number, self._next = self._next, self._next + 1
                if not member.given:
                    member.heard = time.monotonic()
                member.given.append(number)
                if not member.tell("span", number, self._spans[number]):
                    self._lost(member)
                    break

    def _listen(self) -> None:
        """Wait until a worker says something or ends."""
        pipes = {member.pipe: member for member in self._members}
        for ready in wait(list(pipes), POLL_SECONDS if self._timeout else None):
            assert isinstance(ready, Connection)
            member = pipes[ready]
            try:
                message = ready.recv()
            except (EOFError, OSError):
                self._lost(member)
                continue
            if not self._take(member, message):
                self._lost(member, heard_out=True)
        if self._timeout is not None:
            self._look_for_hanging(self._timeout)

    def _take(self, member: _Member, message: Any) -> bool:
        """False when its block went with its worker: it is read again, and so is all that comes behind it."""
        member.heard = time.monotonic()
        if message[0] == "ready":
            member.ready = True
            return True
        kind, number = message[:2]
        progress = self._progress.setdefault(number, _Progress())
        if kind == "item":
            upto, shipment, rejects = message[2:]
            try:
                item = _unpacked(member, upto, shipment, rejects)
            except OSError:
                return False
            progress.upto = upto
            progress.waiting.append((item, member if shipment else None, shipment.slot if shipment else 0))
        elif kind == "done":
            member.given.remove(number)
            progress.waiting.append((None, None, 0))
        else:
            raise message[2]
        return True

    def _look_for_hanging(self, timeout: float) -> None:
        now = time.monotonic()
        for member in list(self._members):
            # what it has sent may wait here for its turn, and it for a slot: then it is not the worker that hangs
            waits = any(self._progress[n].waiting for n in member.given if n in self._progress)
            if member.given and not waits and now - member.heard > member.limit(timeout):
                member.process.kill()
                self._lost(member)

    def _lost(self, member: _Member, heard_out: bool = False) -> None:
        """Replace a worker that has ended, once everything that it had said is heard, unless it is of no use."""
        member.process.join(5)
        with contextlib.suppress(OSError, EOFError):
            while not heard_out and member.pipe.poll():
                heard_out = not self._take(member, member.pipe.recv())
        unfinished = list(member.given)
        self._members.remove(member)
        member.end()
        if unfinished:
            suspect, *others = unfinished
            self._again.extend(others)
            progress = self._progress.setdefault(suspect, _Progress())
            progress.rest = self._one_by_one(self._spans[suspect], progress.upto, cause(member.process.exitcode))
        self._members.append(self._start())

    def _one_by_one(self, span: Span, done: int, cause: str) -> Iterator[Item]:
        """The inputs of a span from number `done` on, each on its own; those that end a worker become rejects."""
        source = self._work.source
        if source.inputs is None:
            raise InputError(
                f"{source.name}: a worker {cause} in bytes {span.start} to {span.stop}, which can't be read input by "
                "input to find out why"
            )
        by_file = len(source.files) == source.inputs
        stage = "read" if not self._work.steps else "read or step"
        member: _Member | None = None
        try:
            for i in range(span.start + done, span.stop):
                if member is None:
                    member = self._start()
                member.tell("span", i, Span(i, i + 1))
                items, ended = self._await(member)
                if ended is None:
                    yield from items
                    continue
                member.end()
                member = None
                name = source.files.name(i) if by_file else source.files.name(0) if len(source.files) == 1 else ""
                yield Item(i + 1 - span.start, None, b"", (Reject(name, 0 if by_file else i, stage, ended),))
        finally:
            if member is not None:
                member.end()

    def _await(self, member: _Member) -> tuple[list[Item], str | None]:
        """All items of one input, copied out of their slots; or how the worker ended."""
        items: list[Item] = []
        start = time.monotonic()
        while True:
            try:
                left = None if self._timeout is None else start + member.limit(self._timeout) - time.monotonic()
                if left is not None and not member.pipe.poll(max(0.0, left)):
                    member.process.kill()
                    return [], f"took longer than {self._timeout:g} s"
                message: Any = member.pipe.recv()
                if message[0] == "ready":
                    member.ready, start = True, time.monotonic()
                    continue
                item = _unpacked(member, *message[2:]) if message[0] == "item" else None
            except (EOFError, OSError):
                member.process.join(5)
                return [], "the worker that read it " + cause(member.process.exitcode)
            if item is not None:
                if item.block is not None:
                    block = item.block.take(np.arange(len(item.block)))
                    item = Item(item.upto, block, item.digest, item.rejects, item.seen)
                    member.tell("free", message[3].slot)
                items.append(item)
            elif message[0] == "done":
                return items, None
            else:
                raise message[2]


def _unpacked(member: _Member, upto: int, shipment: Shipment | None, rejects: tuple[Reject, ...]) -> Item:
    if shipment is None:
        return Item(upto, None, b"", rejects)
    block: Block = member.arrivals.unpack(shipment)
    return Item(upto, block, shipment.digest, rejects, shipment.seen)


def prepare(modules: Sequence[str]) -> None:
    """Let the fork server start and import what workers need, while the source is still being listed."""
    if best_method() != "forkserver":
        return
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(list(modules))
    with no_main():
        forkserver.ensure_running()


def serving() -> bool:
    """Whether there is a fork server that has been told what workers want to find in it."""
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    return getattr(server, "_forkserver_pid", None) is not None


def cause(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is not None and exitcode < 0:
        try:
            name = signal.Signals(-exitcode).name
        except ValueError:
            name = f"signal {-exitcode}"
        if name == "SIGKILL":
            return "was killed (SIGKILL: out of memory?)"
        return f"crashed ({name})"
    if exitcode == OUT_OF_MEMORY:
        return "found no more memory (--memory-limit)"
    return f"ended with exit code {exitcode}"


def best_method() -> str:
    """forkserver: workers are forked from a clean process in which the heavy imports are done once."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _forget_fork_server() -> None:
    """In a process that was forked: multiprocessing takes the parent's server for its own, and fails to wait for it.

    It starts one of its own, then, when it needs one.
    """
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if getattr(server, "_forkserver_pid", None) is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_fork_server)


def reading(source: type) -> list[str]:
    """Modules that workers need for a kind of source."""
    known = registry.SOURCES.get(getattr(source, "name", ""))
    return [worker.__name__, source.__module__, *(() if known is None else known.reads_with)]


def preload(work: Work) -> list[str]:
    """Modules that all workers need, imported once in the fork server."""
    modules = reading(type(work.source))
    modules += [type(step).__module__ for step in work.steps]
    if any(getattr(step, "backend", None) == "torch" for step in work.steps):
        modules.append("torch")
    return modules


@contextlib.contextmanager
def no_main() -> Iterator[None]:
    """Keep multiprocessing from importing the user's script into workers, which don't need it, and Ctrl-C off them.

    Without this a script that calls `bigconv.convert` at its top level would run itself again in every worker.
    """
    with _MAIN, deaf():
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
