"""Work in a forked child, whose imports are done already: alone, or under strace, which kills it or fails its calls."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.torture import Case

#: System calls that change what is on a disk.
MUTATING = (
    *("write", "pwrite64", "writev", "pwritev", "ftruncate", "truncate", "fallocate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "link", "symlink"),
    *("copy_file_range", "sendfile", "openat"),
)
PATIENCE = 60.0  # seconds; a child that takes longer hangs,
AT_WORK = 0.5  # unless it and its children had so many seconds of a processor meanwhile: then the machine is busy,
MOST = 20 * PATIENCE  # which excuses it for so long
TICK = 1.0  # seconds that count at once at most: who watches was stopped himself, as when a laptop sleeps
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


def no_strace() -> str:
    """Why nothing can be traced here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    return "" if run(lambda: None, ["-e", "trace=write"], Path(os.devnull)) == 0 else "strace may not attach here"


def run(work: Callable[[], None], strace: list[str] | None = None, log: Path | None = None) -> int:
    """Exit code of a child that does `work` (negative: the signal that ended it). Raises `TimeoutError` if it hangs."""
    told, tell = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(tell)
            os.read(told, 1)  # until strace is there
            os.close(told)
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(told)
    tracer = None
    try:
        if strace is not None:
            assert log is not None
            command = ["strace", "-qq", "-y", "-s", "0", "-o", str(log), *strace, "-p", str(pid)]
            tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while _tracer(pid) == 0 and tracer.poll() is None:
                time.sleep(0.001)
        os.close(tell)
        return _wait(pid)
    finally:
        if tracer is not None:
            tracer.wait(PATIENCE)


def _tracer(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


def _ticks(seconds: float) -> Iterator[None]:
    """Go round until so much time has gone by in which the watching process ran."""
    gone, before = 0.0, time.monotonic()
    while gone < seconds:
        yield
        now = time.monotonic()
        gone, before = gone + min(now - before, TICK), now


def _wait(pid: int) -> int:
    pause = 0.0005
    for _ in _ticks(PATIENCE):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.01, pause * 1.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"hangs: killed after {PATIENCE:g} s")


@dataclass(frozen=True)
class Call:
    """A system call of a traced run: its name, its number among those of that name, and what strace says of it."""

    name: str
    number: int
    line: str


def mutating_calls(work: Callable[[], None], below: Path, log: Path) -> list[Call]:
    """The calls of a run that change something below a folder, in order. Raises `RuntimeError` if the run fails."""
    code = run(work, ["-e", f"trace={','.join(MUTATING)}"], log)
    if code:
        raise RuntimeError(f"the undisturbed run ended with {code}")
    return [call for call in _calls(log) if _changes(call, below)]


def _calls(log: Path) -> Iterator[Call]:
    counts: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        found = _CALL.match(line)
        if found:
            counts[found[1]] += 1
            yield Call(found[1], counts[found[1]], line)


def _changes(call: Call, below: Path) -> bool:
    if str(below) not in call.line:
        return False
    return call.name != "openat" or any(flag in call.line for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"))


def inject(call: Call, what: str) -> list[str]:
    """Options of strace that let something happen at one call: `signal=KILL`, `error=ENOSPC`."""
    return ["-e", f"trace={call.name}", "-e", f"inject={call.name}:{what}:when={call.number}"]


def streamed(make: Callable[[], Iterator[Case]]) -> Iterator[Case]:
    """The cases of a generator that runs in a child; if the child ends, that is a failure of the case under way."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_stream, args=(make, theirs))
    process.start()
    theirs.close()
    last = "the first case"
    try:
        while True:
            if not _heard(ours, process.pid or 0):
                process.kill()
                process.join()
                yield Case(last, "what comes after it hangs, and was killed")
                return
            case = ours.recv()
            last = case.name
            yield case
    except EOFError:
        pass
    process.join()
    if process.exitcode:
        yield Case(last, f"the process ended with {process.exitcode} in what comes after it")


def _heard(pipe: Connection, pid: int) -> bool:
    """Whether something comes; False when the process hangs."""
    deadline = time.monotonic() + MOST
    while time.monotonic() < deadline:
        before = sum(map(_worked, tree(pid)))
        if any(pipe.poll(TICK / 2) for _ in _ticks(PATIENCE)):
            return True
        if sum(map(_worked, tree(pid))) - before < AT_WORK:
            return False
    return False


def _worked(pid: int) -> float:
    """Seconds that a process has had of a processor, with its children that have ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                todo += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def _stream(make: Callable[[], Iterator[Case]], pipe: Connection) -> None:
    for case in make():
        pipe.send(case)
