"""What a tree of processes uses, as the kernel counts it. Linux; elsewhere what is unknown is None."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SHM = "/dev/shm"


@dataclass(frozen=True)
class Memory:
    """Bytes. `pss`: proportional set size of all processes, mapped files included (proc(5), smaps_rollup).

    `private`: what nobody else could have meanwhile: anonymous and shared memory without files of the page cache.
    """

    pss: int
    private: int


def memory(workers: Iterable[int] = ()) -> Memory | None:
    """Of this process and its workers, as if they were alone: other children that share its pages don't lessen it."""
    own = _rollup("self")
    if own is None:
        return None
    others = [found for pid in workers if (found := _rollup(str(pid))) is not None]
    pss = sum(one["Pss"] for one in (own, *others))
    # pages that children share with this process are its own; what is theirs alone comes on top
    anonymous = own["Anonymous"] + sum(min(one["Private_Dirty"], one["Anonymous"]) for one in others)
    return Memory(pss, anonymous + sum(one["Pss_Shmem"] for one in (own, *others)))


def _rollup(pid: str) -> dict[str, int] | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        found = {name: int(rest.split()[0]) << 10 for name, rest in (line.split(":", 1) for line in lines)}
    except (OSError, ValueError, IndexError):
        return None
    return found if {"Pss", "Anonymous", "Private_Dirty", "Pss_Shmem"} <= found.keys() else None


def available_memory() -> int | None:
    """Bytes that processes could still take: of the machine, or of the cgroup where that leaves less."""
    found: list[int] = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) << 10)
    except (OSError, ValueError, KeyError):
        pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(found)) if found else None


def shm_used() -> int:
    """Bytes in /dev/shm, of whomever."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def shm_free() -> int | None:
    try:
        found = os.statvfs(SHM)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def worker_pids() -> set[int]:
    """Child processes that multiprocessing has started, DataLoader workers among them."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


@dataclass(frozen=True)
class Usage:
    """Sums since the processes began. `cpu`, `waiting` for a core: seconds; `read`: bytes from storage."""

    cpu: float
    waiting: float
    read: int

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu - other.cpu, self.waiting - other.waiting, self.read - other.read)

    def __mul__(self, share: float) -> Usage:
        return Usage(self.cpu * share, self.waiting * share, round(self.read * share))


def usage(workers: Iterable[int] = ()) -> Usage:
    """Of this process and its workers. In nanoseconds, unlike the ticks of /proc/PID/stat."""
    cpu, waiting, read = time.process_time(), _scheduled("self")[1], _read("self")
    for pid in workers:
        ran, waited = _scheduled(str(pid))
        cpu, waiting, read = cpu + ran, waiting + waited, read + _read(str(pid))
    return Usage(cpu, waiting, read)


def _scheduled(pid: str) -> tuple[float, float]:
    """Seconds that the threads of a process ran, and waited for a core (Documentation/scheduler/sched-stats)."""
    ran = waited = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            fields = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    except (OSError, ValueError, IndexError):
        pass  # ended meanwhile, or a kernel without
    return ran / 1e9, waited / 1e9


def _read(pid: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def cores() -> int:
    """Cores this process may use: its affinity, and a cgroup's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = quota()
    return allowed if limit is None else max(1, min(allowed, round(limit)))


def quota() -> float | None:
    """Cores that the cgroup may use (cgroup v2, cpu.max); None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None
