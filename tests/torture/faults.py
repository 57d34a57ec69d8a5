"""A full disk, a failing one, interrupted and short calls at each call of a conversion: a clear error, then a resume.

Calls fail in two ways: in Python, where a write can also be short, and in the kernel by strace, which reaches the HDF5
library too. File size limits and a small tmpfs are real.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigconv import fsio
from bigconv.errors import BigconvError
from tests.torture import Case, _child
from tests.torture._runs import Target, Trial, checkpoints_everywhere, folders, trials, workspace

CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "replace", "rename", "mkdir", "unlink", "copy_file_range")
SHORT = "short"
SHORTENED = ("write", "pwrite", "copy_file_range")  # calls that may do a part only
KINDS = (errno.ENOSPC, errno.EIO)
TRACED = ("ENOSPC", "EIO")
LIMITS = 12  # file size limits and sizes of a tmpfs, at scale 1
QUICK = 0.05  # below this scale a few runs stand for all
FEW = (0, 5, 6, 10, 11, 15)


def run(scale: float) -> Iterator[Case]:
    with workspace() as root, checkpoints_everywhere():
        _warm(root)
        why = _child.no_strace()
        if why:
            yield Case("faults in the kernel", skipped=why)
        for number, (source, target) in enumerate(trials(root)):
            if scale >= QUICK or number in FEW:
                disturbed = Disturbed(root, source, target, scale)
                yield from disturbed.in_python()
                if not why:
                    yield from disturbed.in_the_kernel(root / "log")
                yield from disturbed.limited()
        yield from _small_disk(root, scale)


def _warm(root: Path) -> None:
    """Have all that a command imports here already: in each traced child it would take longer than the command."""
    from typer.testing import CliRunner

    from bigconv.cli.app import app

    source = folders(root / "warm")[1]
    dests = ("a.h5", "a.zarr", "a.lmdb", "parts")
    for dest in dests:
        words = ["convert", str(source), str(root / dest), "--workers", "0", "-q"]
        more = ["--shards", "2"] if dest == "parts" else ["--compress", "lz4"]
        assert CliRunner().invoke(app, words + more).exit_code == 0
        refused = CliRunner().invoke(app, [*words, "--limit", "1"])  # and what a refusal does
        assert refused.exit_code != 0
    for name in (*dests, "warm"):
        fsio.remove(root / name)


class Disturbed(Trial):
    """One run, disturbed at each of its calls."""

    def __init__(self, root: Path, source: Path, target: Target, scale: float) -> None:
        super().__init__(root, source, target)
        self.scale = scale
        self.arguments = [str(source), str(self.dest), *target.arguments()]
        self.random = random.Random(self.name)

    def chosen(self, cases: list[Any], least: int) -> list[Any]:
        n = len(cases) if self.scale >= 1 else min(len(cases), max(least, round(len(cases) * self.scale)))
        return self.random.sample(cases, n)

    def judged(self, name: str, wrong: str) -> Case:
        case = Case(f"{self.name} {name}", wrong or self.after_a_cut())
        self.reset()
        return case

    def in_python(self) -> Iterator[Case]:
        """Each call of Python's with each error, and those that may do a part only with that."""
        with failing(self.place, 0, 0) as called:
            self.request.run()
        self.reset()
        cases = [(n, call, kind) for n, call in enumerate(called, 1) for kind in KINDS]
        cases += [(n, call, SHORT) for n, call in enumerate(called, 1) if call in SHORTENED]
        for number, call, kind in self.chosen(cases, 3):
            wrong = ""
            with failing(self.place, number, kind):
                try:
                    self.request.run()
                except BigconvError as error:
                    wrong = _unclear(error.exit_code, str(error))
                except BaseException as error:  # noqa: BLE001  what is not meant to come is what is looked for
                    wrong = f"{type(error).__name__}: {error}"
            told = os.strerror(kind) if isinstance(kind, int) else kind
            yield self.judged(f"call {number}, {call}: {told}", wrong)

    def in_the_kernel(self, log: Path) -> Iterator[Case]:
        """Each call, libraries' too, interrupted, and with one of the errors in turn."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        calls = _child.mutating_calls(lambda: self.command(nowhere), self.place, log)
        os.close(nowhere)
        self.reset()
        cases = [(call, "EINTR") for call in calls]
        cases += [(call, TRACED[number % len(TRACED)]) for number, call in enumerate(calls)]
        for call, kind in self.chosen(cases, 1):
            wrong = self.ended(strace=_child.inject(call, f"error={kind}"), log=log)
            yield self.judged(f"{kind} at {call.line[:80]}", wrong)

    def limited(self) -> Iterator[Case]:
        largest = max(map(len, self.expected.values())) + 8192
        for limit in self.chosen(list(range(0, largest, max(1, largest // LIMITS))), 1):
            yield self.judged(f"files of at most {limit} bytes", self.ended(limit=limit))

    def command(self, fd: int, limit: int | None = None) -> None:
        """`bigconv convert` in a child; what it says goes to a descriptor."""
        from bigconv.cli.app import main

        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["bigconv", "convert", *self.arguments, "--workers", "0", "-q"]
        main()

    def ended(self, limit: int | None = None, strace: list[str] | None = None, log: Path | None = None) -> str:
        """What is wrong with how a command ended; empty for success, and for a refusal as it should be."""
        told, tell = os.pipe()  # not a file, which the limits would concern
        try:
            code = _child.run(lambda: self.command(tell, limit), strace, log)
        except TimeoutError as error:
            return str(error)
        finally:
            os.close(tell)
            with open(told, errors="replace") as pipe:
                message = pipe.read()
        return "" if code == 0 else _unclear(code, message)


def _unclear(code: int, message: str) -> str:
    """What is wrong with how a run failed; empty for exit code 2 and a message of one to three lines."""
    lines = message.strip().splitlines()
    if code != 2 or not 1 <= len(lines) <= 3 or "Traceback" in message:
        return f"exit code {code}: {message}"
    return ""


@contextlib.contextmanager
def failing(below: Path, number: int, kind: int | str) -> Iterator[list[str]]:
    """Call number `number` of Python's that changes something below a folder fails, or is short; gives the calls."""
    called: list[str] = []
    kept = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not _concerned(name, args, kwargs, below):
                return original(*args, **kwargs)
            called.append(name)
            if len(called) != number:
                return original(*args, **kwargs)
            if isinstance(kind, int):
                raise OSError(kind, os.strerror(kind))
            return original(*_shortened(name, args), **kwargs)

        return call

    for name, original in kept.items():
        setattr(os, name, wrapped(name, original))
    try:
        yield called
    finally:
        for name, original in kept.items():
            setattr(os, name, original)


def _concerned(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], below: Path) -> bool:
    if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    target = args[1] if name == "copy_file_range" else args[0]
    fd = target if isinstance(target, int) else kwargs.get("dir_fd")
    path = os.readlink(f"/proc/self/fd/{fd}") if fd is not None else os.fsdecode(target)
    return path.startswith(str(below))


def _shortened(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call that does a part only, as the kernel may."""
    if name in ("write", "pwrite"):
        data = memoryview(args[1]).cast("B")
        return (args[0], data[: max(1, len(data) // 2)], *args[2:])
    if name == "copy_file_range":
        return (*args[:2], max(1, args[2] // 2), *args[3:])
    return args


def _small_disk(root: Path, scale: float) -> Iterator[Case]:
    """A tmpfs that fills up at every stage; then it grows, and the same command goes on."""
    disk = root / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield Case("a full disk", skipped="a tmpfs can't be mounted here (needs root)")
        return
    try:
        for number, (source, target) in enumerate(trials(root)):
            if scale >= QUICK or number == FEW[1]:
                disturbed = Disturbed(_grown(disk, "64m"), source, target, scale)
                before = _pages(disk)
                need = sum(map(len, disturbed.expected.values())) * 3 // 4096 + 8
                for pages in disturbed.chosen(list(range(1, need, max(1, need // LIMITS))), 1):
                    _grown(disk, f"{(before + pages) * 4}k")
                    wrong = disturbed.ended()
                    _grown(disk, "64m")
                    yield disturbed.judged(f"a disk with {pages * 4} KiB free", wrong)
                shutil.rmtree(disturbed.place)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _pages(disk: Path) -> int:
    """Pages in use."""
    told = os.statvfs(disk)
    return (told.f_blocks - told.f_bfree) * told.f_bsize // 4096


def _grown(disk: Path, size: str) -> Path:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
    return disk
