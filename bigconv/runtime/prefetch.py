"""`Prefetch`: the results of work on a series of tasks, made ahead of their consumer by threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

JOIN_SECONDS = 5.0  # how long to wait at the end for work that can't be stopped; after that its thread is on its own


@dataclass
class _Outcome:
    value: Any = None
    error: BaseException | None = None


@dataclass
class _Desk:
    """What consumer and threads share. It knows neither, so an abandoned consumer is noticed."""

    tasks: Iterator[Any]
    work: Callable[[Any], Any]
    ahead: int
    in_order: bool
    lock: threading.RLock = field(default_factory=threading.RLock)  # R: the garbage collector may end another desk
    ready: dict[int, _Outcome] = field(default_factory=dict)  # by number of the task
    taken: int = 0  # tasks begun
    given: int = 0  # outcomes the consumer has had
    ended: bool = False  # no task is left
    stopped: bool = False

    def __post_init__(self) -> None:
        self.room = threading.Condition(self.lock)  # for another task to begin
        self.done = threading.Condition(self.lock)  # what the consumer waits for

    def take(self) -> tuple[int, Any] | None:
        """The next task and its number, as soon as the consumer is near enough; None when there is none."""
        with self.lock:
            while not (self.stopped or self.ended) and self.taken - self.given >= self.ahead:
                self.room.wait()
            if self.stopped or self.ended:
                return None
            number = self.taken
            try:
                task = next(self.tasks)
            except StopIteration:
                self.ended = True
            except BaseException as error:  # noqa: BLE001  it belongs to the consumer
                self.ended = True
                self.ready[number] = _Outcome(error=error)
                self.taken += 1
            else:
                self.taken += 1
                return number, task
            self._wake_all()
            return None

    def put(self, number: int, outcome: _Outcome) -> None:
        with self.lock:
            if self.stopped:
                return
            self.ready[number] = outcome
            if number == self.given or not self.in_order:
                self.done.notify()

    def get(self) -> _Outcome | None:
        """The next outcome; None after the last."""
        with self.lock:
            while True:
                number = self.given if self.in_order else next(iter(self.ready), -1)
                if number in self.ready:
                    self.given += 1
                    self.room.notify()
                    return self.ready.pop(number)
                if self.stopped or (self.ended and self.given == self.taken):
                    return None
                self.done.wait()

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            self.ready.clear()
            self._wake_all()

    def _wake_all(self) -> None:
        self.room.notify_all()
        self.done.notify_all()


class Prefetch(Iterator[Any]):
    """`work(task)` for each of `tasks`, by `threads` threads, at most `ahead` of the consumer.

    `in_order`: results come in the order of the tasks, else as they are done. What `tasks` or `work` raise is raised
    where its result would have come; after an error of `work` the next result can be asked for. The threads end with
    the tasks, with `close()`, when nobody holds the iterator any longer, and with the process.
    """

    def __init__(
        self, tasks: Iterator[Any], work: Callable[[Any], Any], threads: int, ahead: int, in_order: bool
    ) -> None:
        self._desk = _Desk(tasks, work, max(ahead, 1), in_order)
        self._threads = [
            threading.Thread(target=_run, args=(self._desk,), name=f"bigconv-loader-{i}", daemon=True)
            for i in range(threads)
        ]
        self.close = weakref.finalize(self, _end, self._desk, self._threads, os.getpid())
        for thread in self._threads:
            thread.start()

    def __next__(self) -> Any:
        try:
            outcome = self._desk.get()
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


def _run(desk: _Desk) -> None:
    while (task := desk.take()) is not None:
        number, what = task
        try:
            outcome = _Outcome(desk.work(what))
        except BaseException as error:  # noqa: BLE001  it belongs to the consumer
            outcome = _Outcome(error=error)
        desk.put(number, outcome)
        del task, what, outcome  # nothing of a batch stays while waiting for the next


def _end(desk: _Desk, threads: list[threading.Thread], pid: int) -> None:
    if os.getpid() != pid:  # a forked child has none of the threads, and maybe a lock that nobody will open
        return
    desk.stop()
    for thread in threads:
        if thread is not threading.current_thread():  # where the garbage collector happens to run
            thread.join(JOIN_SECONDS)
