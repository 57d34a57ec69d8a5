"""`Prefetch`: the results of work on a series of tasks, made ahead of their consumer by threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

JOIN_SECONDS = 5.0  # how long to wait at the end for work that can't be stopped; after that its thread is on its own


@dataclass
class _Outcome:
    value: Any = None
    error: BaseException | None = None


@dataclass
class _Desk:
    """What consumer and threads share. It knows neither, so an abandoned consumer is noticed.

    All waiting is done in `SimpleQueue`, which is C: conditions in Python cost as much as copying a batch of small
    rows. It takes no lock to end a desk, which the garbage collector may do in the middle of anything.
    """

    tasks: Iterator[Any]
    work: Callable[[Any], Any]
    in_order: bool
    room: SimpleQueue[None] = field(default_factory=SimpleQueue)  # an entry for each task that may begin
    done: SimpleQueue[tuple[int, _Outcome | None]] = field(default_factory=SimpleQueue)  # None: no task of that number
    taking: threading.Lock = field(default_factory=threading.Lock)
    taken: int = 0  # tasks begun
    ended: bool = False  # no task is left
    stopped: bool = False

    def take(self) -> tuple[int, Any] | None:
        """The next task and its number, as soon as the consumer is near enough; None when there is none."""
        self.room.get()
        with self.taking:
            if self.stopped or self.ended:
                self.room.put(None)  # for the next thread, to end as well
                return None
            number = self.taken
            try:
                task = next(self.tasks)
            except StopIteration:
                self._end(number)
            except BaseException as error:  # noqa: BLE001  it belongs to the consumer
                self.done.put((number, _Outcome(error=error)))
                self._end(number + 1)
            else:
                self.taken += 1
                return number, task
            return None

    def _end(self, tasks: int) -> None:
        self.ended = True
        self.done.put((tasks, None))
        self.room.put(None)

    def stop(self, threads: int) -> None:
        self.stopped = True
        for _ in range(threads):
            self.room.put(None)
        self.drop()

    def drop(self) -> None:
        """Let go of what was made and will not be asked for."""
        try:
            while True:
                self.done.get_nowait()
        except Empty:
            pass


class Prefetch(Iterator[Any]):
    """`work(task)` for each of `tasks`, by `threads` threads, at most `ahead` of the consumer.

    `in_order`: results come in the order of the tasks, else as they are done. What `tasks` or `work` raise is raised
    where its result would have come; after an error of `work` the next result can be asked for. The threads end with
    the tasks, with `close()`, when nobody holds the iterator any longer, and with the process.
    """

    def __init__(
        self, tasks: Iterator[Any], work: Callable[[Any], Any], threads: int, ahead: int, in_order: bool
    ) -> None:
        self._desk = _Desk(tasks, work, in_order)
        self._ready: dict[int, _Outcome | None] = {}  # what has come before its turn, by number of the task
        self._given = 0
        for _ in range(max(ahead, 1)):
            self._desk.room.put(None)
        self._threads = [
            threading.Thread(target=_run, args=(self._desk,), name=f"bigconv-loader-{i}", daemon=True)
            for i in range(threads)
        ]
        self.close = weakref.finalize(self, _end, self._desk, self._threads, os.getpid())
        for thread in self._threads:
            thread.start()

    def __next__(self) -> Any:
        try:
            outcome = self._next()
        except BaseException:  # Ctrl-C while waiting
            self.close()
            raise
        if outcome is None:
            self.close()
            raise StopIteration
        if outcome.error is None:
            return outcome.value
        error = outcome.error
        try:
            if isinstance(error, StopIteration):  # would end the loop in silence
                raise RuntimeError("a dataset, a sampler or a collate function raised StopIteration") from error
            raise error
        finally:
            del error, outcome  # a cycle with this frame, through the traceback

    def _next(self) -> _Outcome | None:
        """The next outcome; None after the last."""
        desk = self._desk
        while not desk.stopped:
            if self._given in self._ready:  # of the last number, None is never taken out: every next call finds it
                outcome = self._ready[self._given]
                if outcome is None:
                    return None
                return self._handed(self._ready.pop(self._given))
            number, outcome = desk.done.get()
            if outcome is not None and not desk.in_order:
                return self._handed(outcome)
            self._ready[number] = outcome
        return None

    def _handed(self, outcome: _Outcome | None) -> _Outcome | None:
        self._given += 1
        self._desk.room.put(None)
        return outcome


def _run(desk: _Desk) -> None:
    while (task := desk.take()) is not None:
        number, what = task
        del task
        if desk.stopped:
            return
        # handed over in the same breath: an error gets the consumer's frames, and who still held it here would be the
        # one to end the consumer's threads, itself among them
        desk.done.put((number, _outcome(desk.work, what)))
        del what  # nothing of a batch stays while waiting for the next
        if desk.stopped:
            desk.drop()


def _outcome(work: Callable[[Any], Any], what: Any) -> _Outcome:
    try:
        return _Outcome(work(what))
    except BaseException as error:  # noqa: BLE001  it belongs to the consumer
        return _Outcome(error=error)


def _end(desk: _Desk, threads: list[threading.Thread], pid: int) -> None:
    if os.getpid() != pid:  # a forked child has none of the threads, and maybe a lock that nobody will open
        return
    desk.stop(len(threads))
    for thread in threads:
        if thread is not threading.current_thread():  # where the garbage collector happens to run
            thread.join(JOIN_SECONDS)
