"""Engines: where the tasks of a sharded conversion run. `Serial` here and now, `Local` in processes of this machine.

A worker process makes a part from reading to publishing, so rows never travel between processes. One that dies (a
decoder's segmentation fault, the OOM killer) or hangs is replaced, and its part gone on with in isolation, so that only
the input that kills it is lost, and named.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from bigconv.conversion.limits import OUT_OF_MEMORY, confine
from bigconv.conversion.parts import Control, Engine, Job, Result, Task, run_task
from bigconv.conversion.pool import best_method, cause, no_main, preload
from bigconv.conversion.worker import end_with_parent, surround
from bigconv.errors import BigconvError, InputError, Interrupted

POLL_SECONDS = 0.5  # how often a wish to stop and a hanging worker are looked for
WIND_DOWN_SECONDS = 30.0  # for workers to reach a checkpoint when the run stops
TELL_SECONDS = 0.1  # between two messages about progress


class Serial(Engine):
    """One task after another, in this process."""

    def run(self, job: Job, tasks: Sequence[Task], control: Control) -> Iterator[tuple[Task, Result]]:
        for task in tasks:
            yield task, run_task(job, task, control)
            if control.stopped():
                raise Interrupted("stopped. The same command goes on from there")


@dataclass(eq=False)
class _Member:
    """One worker process as the parent sees it."""

    process: Any
    pipe: Connection
    task: Task | None = None
    heard: float = 0.0
    reading: bool = False  # inputs, which may hang; not when a part is being finished

    def tell(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # gone: noticed where it is listened to
            self.pipe.send(message)


class Local(Engine):
    """As many tasks at once as there are workers; workers that are left over decode for them."""

    def __init__(self, job: Job, tasks: int) -> None:
        policy, plan = job.policy, job.plan
        self._many = max(1, min(policy.workers, tasks))
        self._inner = 0 if plan.in_order else policy.workers // self._many
        self._inner = self._inner if self._inner > 1 else 0
        self._context: Any = multiprocessing.get_context(policy.start_method or best_method())
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload([__name__, *preload(plan.work), type(plan.store).__module__])
        self._members: list[_Member] = []

    def run(self, job: Job, tasks: Sequence[Task], control: Control) -> Iterator[tuple[Task, Result]]:
        todo, left = deque(tasks), len(tasks)
        try:
            while left:
                while todo and not control.stopped() and (len(self._members) < self._many or self._idle()):
                    self._give(job, todo.popleft())
                if not self._busy():
                    raise Interrupted("stopped. The same command goes on from there")
                for task, result in self._listen(job, todo, control):
                    left -= 1
                    yield task, result
                if control.stopped():
                    self._ask_to_stop()
        finally:
            self._end()

    def _idle(self) -> list[_Member]:
        return [member for member in self._members if member.task is None]

    def _busy(self) -> list[_Member]:
        return [member for member in self._members if member.task is not None]

    def _give(self, job: Job, task: Task) -> None:
        idle = self._idle()
        member = idle[0] if idle else self._start(job)
        member.task, member.heard, member.reading = task, time.monotonic(), False
        member.tell("task", task)

    def _start(self, job: Job) -> _Member:
        ours, theirs = self._context.Pipe()
        # not a daemon: it may have to start processes of its own
        process = self._context.Process(target=main, args=(theirs, job, self._inner, dict(os.environ)), daemon=False)
        with no_main():
            process.start()
        theirs.close()
        self._members.append(_Member(process, ours))
        return self._members[-1]

    def _listen(self, job: Job, todo: deque[Task], control: Control) -> list[tuple[Task, Result]]:
        """Wait until a worker says something or ends."""
        pipes = {member.pipe: member for member in self._members}
        done: list[tuple[Task, Result]] = []
        for ready in wait(list(pipes), POLL_SECONDS):
            assert isinstance(ready, Connection)
            member = pipes[ready]
            try:
                kind, *told = ready.recv()
            except (EOFError, OSError):
                self._lost(member, todo)
                continue
            member.heard = time.monotonic()
            if kind == "progress":
                *counts, member.reading = told
                control.tell(*counts)
            elif kind == "done":
                assert member.task is not None
                done.append((member.task, told[0]))
                member.task = None
            else:
                member.task = None
                raise told[0]
        self._look_for_hanging(job, todo)
        return done

    def _look_for_hanging(self, job: Job, todo: deque[Task]) -> None:
        timeout, now = job.policy.timeout, time.monotonic()
        for member in list(self._busy()):
            assert member.task is not None
            watched = member.reading and not member.task.isolated and not self._inner  # others watch themselves
            if timeout is not None and watched and now - member.heard > timeout:
                member.process.kill()
                self._lost(member, todo)

    def _lost(self, member: _Member, todo: deque[Task]) -> None:
        """A worker has ended: its part is gone on with by another, which finds out why."""
        member.process.join(5)
        self._members.remove(member)
        member.pipe.close()
        task = member.task
        if task is None:
            return
        if task.isolated:
            raise InputError(
                f"part {task.number}: the worker that made it {cause(member.process.exitcode)}, twice.\n"
                "Free memory or give fewer --workers; the same command goes on from there"
            )
        todo.appendleft(task.retried())

    def kill(self) -> None:
        """End all workers at once, for a process that ends itself."""
        for member in list(self._members):
            member.process.kill()

    def _ask_to_stop(self) -> None:
        for member in self._busy():
            member.tell("stop")

    def _end(self) -> None:
        """Let workers come to a checkpoint, then end them."""
        self._ask_to_stop()
        deadline = time.monotonic() + WIND_DOWN_SECONDS
        while (busy := self._busy()) and time.monotonic() < deadline:
            for ready in wait([member.pipe for member in busy], POLL_SECONDS):
                member = next(m for m in busy if m.pipe is ready)
                try:
                    if member.pipe.recv()[0] != "progress":
                        member.task = None
                except (EOFError, OSError):
                    member.task = None
        for member in self._members:
            member.tell("end")
            member.process.join(0.2 if member.task is None else 0)
            if member.process.is_alive():
                member.process.kill()
            member.process.join()
            member.pipe.close()
        self._members.clear()


def main(pipe: Connection, job: Job, inner: int, environment: Mapping[str, str]) -> None:
    """A worker process: does tasks until it is told to end, or until the parent is gone."""
    surround(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = sys.stderr  # what a user's function prints must not land in --json
    end_with_parent()
    confine(job.policy.worker_bytes)
    worker = _Worker(pipe)
    try:
        while True:
            kind, *told = pipe.recv()
            if kind == "end":
                return
            if kind == "task":
                worker.do(job, told[0], inner)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


class _Worker:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._stop = self._reading = False
        self._held = [0, 0, 0]
        self._last = 0.0

    def do(self, job: Job, task: Task, inner: int) -> None:
        try:
            answer: tuple[Any, ...] = (
                "done",
                run_task(job, task, Control(self._tell, self._stopped, self._read), inner),
            )
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # as if it had been killed: its part is gone on with input by input
        except BigconvError as error:
            answer = ("failed", error)
        except Exception as error:  # noqa: BLE001  told to the parent, which raises it
            answer = ("failed", RuntimeError(f"{type(error).__name__}: {error}"))
        self._say()
        self._pipe.send(answer)

    def _tell(self, rows: int, nbytes: int, rejects: int) -> None:
        self._held = [a + b for a, b in zip(self._held, (rows, nbytes, rejects), strict=True)]
        if time.monotonic() - self._last >= TELL_SECONDS:
            self._say()

    def _read(self, yes: bool) -> None:
        self._reading = yes
        self._say()

    def _say(self) -> None:
        self._pipe.send(("progress", *self._held, self._reading))
        self._held, self._last = [0, 0, 0], time.monotonic()

    def _stopped(self) -> bool:
        """Asked at the end of each span."""
        while self._pipe.poll():
            self._stop = self._pipe.recv()[0] in ("stop", "end") or self._stop
        return self._stop
