"""Job arrays: `--rank I/N` makes every N-th part of a plan, `--finalize` publishes. They share a folder, and no more.

`DEST.partial/lock` is held for a moment by each rank that begins, and all the while by a run that makes everything or
publishes; `DEST.partial/ranks/I-of-N` by the rank at work. So no rank begins while somebody publishes, nobody publishes
or starts anew while a rank is at work, and ranks never wait for one another's parts.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bigconv import fsio
from bigconv.errors import OutputError, UsageError
from bigconv.locks import Lock

RANKS = "ranks"  # in DEST.partial: a lock a rank
BEGIN_SECONDS = 60.0  # for a thousand ranks that begin at once: each holds the lock for some milliseconds
END_SECONDS = 5.0  # for a rank that has made its last part, or was killed, to be gone

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """One of `count` processes that share the parts of a plan; `number` counts from 0."""

    number: int
    count: int

    def of(self, parts: Sequence[T]) -> list[T]:
        """Those that this rank makes."""
        return list(parts[self.number :: self.count])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_rank(text: str | None) -> Rank | None:
    """`0/8` … `7/8`. Raises `UsageError`."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UsageError(f"--rank {text}: expected I/N, with I from 0 to N - 1, such as 0/8 … 7/8")
    return Rank(int(match[1]), int(match[2]))


@contextmanager
def at_work(folder: Path, rank: Rank, prepare: Callable[[], None]) -> Iterator[None]:
    """The folder of unfinished work, while a rank works in it. `prepare` begins it, or finds it begun.

    Raises `OutputError` when a run that makes everything is at work there, or this very rank.
    """
    whole = _locked(folder, BEGIN_SECONDS)
    try:
        prepare()
        file = _file(folder, rank)
        with fsio.writing(file):
            file.parent.mkdir(exist_ok=True)
        if not _free(file, END_SECONDS):
            raise OutputError(f"{folder}: rank {rank} is at work already; wait for it, or stop it")
        mine = Lock(file)
    finally:
        whole.release()
    try:
        yield
    finally:
        mine.release()


def none_at_work(folder: Path) -> None:
    """Refuse to go on while a rank works in a folder, whose lock the caller holds. Raises `OutputError`."""
    busy = [rank for rank in seen(folder) if not _free(_file(folder, rank), END_SECONDS)]
    if busy:
        told = ", ".join(map(str, busy[:4])) + (" …" if len(busy) > 4 else "")
        raise OutputError(f"{folder}: rank {told} is still at work; wait until all ranks are done, or stop them")


def seen(folder: Path) -> list[Rank]:
    """Every rank that has ever worked in a folder."""
    try:
        names = sorted(os.listdir(folder / RANKS))
    except OSError:
        return []
    found = [re.fullmatch(r"(\d+)-of-(\d+)", name) for name in names]
    return [Rank(int(match[1]), int(match[2])) for match in found if match]


def makers(folder: Path, missing: Sequence[int]) -> list[Rank]:
    """The ranks whose parts, by number, are missing; none when they were not all of one array."""
    counts = {rank.count for rank in seen(folder)}
    if len(counts) != 1:
        return []
    count = counts.pop()
    return [Rank(number, count) for number in sorted({part % count for part in missing})]


def _file(folder: Path, rank: Rank) -> Path:
    return folder / RANKS / f"{rank.number}-of-{rank.count}"


def _locked(folder: Path, seconds: float) -> Lock:
    """The lock of a folder, which is made if need be; waits for those that hold it for a moment."""
    deadline = time.monotonic() + seconds
    while True:
        with fsio.writing(folder):
            folder.mkdir(exist_ok=True)
        try:
            return Lock(folder / "lock")
        except OutputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _free(file: Path, seconds: float) -> bool:
    """Whether nobody holds a lock, or will have let go of it in a moment."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            Lock(file).release()
        except OutputError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True
