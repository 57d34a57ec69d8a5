"""Whether others used the machine while something was measured: said, not hidden."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bigconv.bench import processes

FOREIGN = 0.10  # of all cores: a desktop that does nothing stays below 5 %
STOLEN = 0.05  # of all cores, by the hypervisor
THROTTLED = 0.02  # of the time, by the cgroup's quota
DISTURBED = 0.2  # of all cores, foreign or stolen: in a tenth of a second, of which the kernel's ticks tell no more


@dataclass(frozen=True)
class Contention:
    """Shares of the measured time. None: this system doesn't tell.

    `foreign`: of the cores this process may use, what other processes used. `stolen`: taken by the hypervisor.
    `throttled`: stopped by the cgroup's quota. `pressure`: some thread of the machine waited for a core (PSI), ours
    included.
    """

    cores: int
    machine_cores: int
    quota: float | None
    foreign: float | None
    stolen: float | None
    throttled: float | None
    pressure: float | None

    @property
    def contended(self) -> bool:
        limits = ((self.foreign, FOREIGN), (self.stolen, STOLEN), (self.throttled, THROTTLED))
        return any(share is not None and share > limit for share, limit in limits)

    @property
    def disturbed(self) -> bool:
        """Whether a moment was taken from us, in which there are too few of the kernel's ticks for finer limits."""
        return max(self.foreign or 0.0, self.stolen or 0.0, self.throttled or 0.0) > DISTURBED

    def words(self) -> list[str]:
        """What a reader of the figures has to know."""
        told = []
        if self.foreign is not None and self.foreign > FOREIGN:
            told.append(f"contended: other processes used {self.foreign:.0%} of the cores while this was measured")
        if self.stolen is not None and self.stolen > STOLEN:
            told.append(f"contended: the hypervisor gave {self.stolen:.0%} of the cores' time to other machines")
        if self.throttled is not None and self.throttled > THROTTLED:
            told.append(f"contended: the cgroup's CPU quota stopped the processes {self.throttled:.0%} of the time")
        if self.quota is not None and self.quota < self.machine_cores:
            told.append(f"the cgroup's quota is {self.quota:g} of {self.machine_cores} cores")
        elif self.cores < self.machine_cores:
            told.append(f"this process may use {self.cores} of {self.machine_cores} cores (affinity)")
        return told


class Watcher:
    """From now until `result()`."""

    def __init__(self) -> None:
        self._start = _Counters.now()

    def result(self) -> Contention:
        a, b = self._start, _Counters.now()
        wall = max(b.at - a.at, 1e-9)
        foreign = stolen = None
        if a.total is not None and b.total is not None and b.total > a.total:
            assert a.busy is not None and b.busy is not None and a.stolen is not None and b.stolen is not None
            capacity = b.total - a.total
            foreign = max(0.0, (b.busy - a.busy) - (b.own - a.own)) / capacity
            stolen = (b.stolen - a.stolen) / capacity
        throttled = None if a.throttled is None or b.throttled is None else (b.throttled - a.throttled) / wall
        pressure = None if a.pressure is None or b.pressure is None else (b.pressure - a.pressure) / wall
        machine = os.cpu_count() or 1
        return Contention(processes.cores(), machine, processes.quota(), foreign, stolen, throttled, pressure)


@dataclass(frozen=True)
class _Counters:
    """Seconds since something began."""

    at: float
    own: float
    total: float | None
    busy: float | None
    stolen: float | None
    throttled: float | None
    pressure: float | None

    @classmethod
    def now(cls) -> _Counters:
        times = os.times()
        reaped = times.children_user + times.children_system
        own = reaped + processes.usage(processes.worker_pids()).cpu
        return cls(time.perf_counter(), own, *_machine(), _throttled(), _pressure())


def _machine() -> tuple[float | None, float | None, float | None]:
    """Of the cores this process may use: all time, busy time, stolen time (proc(5), /proc/stat)."""
    try:
        mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.split()[0] in mine]
        ticks = [[int(n) for n in line[1:9]] for line in lines]  # user nice system idle iowait irq softirq steal
    except (AttributeError, OSError, ValueError, IndexError):
        return None, None, None
    second = os.sysconf("SC_CLK_TCK")
    total = sum(map(sum, ticks)) / second
    stolen = sum(t[7] for t in ticks) / second
    return total, total - stolen - sum(t[3] + t[4] for t in ticks) / second, stolen


def _throttled() -> float | None:
    try:
        lines = dict(line.split() for line in Path("/sys/fs/cgroup/cpu.stat").read_text().splitlines())
        return int(lines["throttled_usec"]) / 1e6
    except (OSError, ValueError, KeyError):
        return None


def _pressure() -> float | None:
    try:
        some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        return int(some.rsplit("total=", 1)[1]) / 1e6
    except (OSError, ValueError, IndexError):
        return None
