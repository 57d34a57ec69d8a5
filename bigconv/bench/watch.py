"""`watch`: the same figures from inside a training loop."""

from __future__ import annotations

import math
import sys
import time
import weakref
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TextIO, TypeVar

from bigconv.bench import payload, processes, texttable
from bigconv.bench.texttable import Column

Batch = TypeVar("Batch")

EVERY = 10.0  # seconds between lines, and between looks at memory
COST = 0.005  # of the time that looks at memory may take: they wait longer where they are slow
STALL = 0.010  # seconds: a longer wait is a stall, that an accelerator can't hide in its queue of kernels
_BINS, _FIRST, _GROWTH = 400, 1e-7, 1.05  # of the histogram: from 0.1 µs to 30 s, each bin 5 % wider


class Waits:
    """Times in a histogram of fixed size; quantiles to 5 %."""

    def __init__(self) -> None:
        self._bins = array("q", bytes(8 * _BINS))
        self.count = 0
        self.total = self.longest = 0.0
        self.stalls = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds
        if seconds > STALL:
            self.stalls += 1
        at = int(math.log(seconds / _FIRST) * _SCALE) if seconds > _FIRST else 0
        self._bins[at if at < _BINS else _BINS - 1] += 1

    def quantile(self, q: float) -> float:
        left = q * self.count
        for i, n in enumerate(self._bins):
            left -= n
            if left <= 0 and n:
                return min(float(_FIRST * _GROWTH ** (i + 0.5)), self.longest)
        return self.longest


_SCALE = 1 / math.log(_GROWTH)


@dataclass
class _Seen:
    """What the iterators of a watched loader have seen. It knows neither, so that it can be told when they are gone."""

    out: TextIO | None
    every: float
    waits: Waits = field(default_factory=Waits)
    compute: float = 0.0
    samples: int = 0
    epochs: int = 0
    startup: list[float] = field(default_factory=list)  # seconds to the first batch, by epoch
    cpu: float = 0.0  # of workers
    worker_seconds: float = 0.0  # workers times wall
    workers: int = 0
    memory: processes.Memory | None = None
    told: bool = False

    def report(self) -> dict[str, Any]:
        waits = self.waits
        wall = waits.total + self.compute
        return {
            "schema_version": 1,
            "batches": waits.count,
            "samples": self.samples,
            "epochs": self.epochs,
            "seconds": wall,
            "samples_per_second": self.samples / wall if wall else 0.0,
            "waiting": waits.total / wall if wall else 0.0,
            "wait_seconds": waits.total,
            "compute_seconds": self.compute,
            "wait_ms": {
                "p50": 1e3 * waits.quantile(0.5),
                "p99": 1e3 * waits.quantile(0.99),
                "max": 1e3 * waits.longest,
            },
            "stalls": waits.stalls,
            "first_batch_seconds": self.startup[0] if self.startup else None,
            "epoch_gap_seconds": max(self.startup[1:], default=None),
            "workers": self.workers,
            "worker_efficiency": self.cpu / self.worker_seconds if self.worker_seconds else None,
            "memory_bytes": None if self.memory is None else self.memory.private,
            "pss_bytes": None if self.memory is None else self.memory.pss,
            "bottleneck": _sentence(self, wall),
        }

    def line(self) -> str:
        r = self.report()
        memory = "" if self.memory is None else f" · {texttable.size(self.memory.private)}"
        return (
            f"watch: {r['batches']:,} batches · {texttable.rate(r['samples_per_second'])} samples/s · waiting "
            f"{r['waiting']:.0%} (p50 {r['wait_ms']['p50']:.3g} ms, p99 {r['wait_ms']['p99']:.3g} ms){memory}"
        )

    def tell(self, text: str, end: str) -> None:
        if self.out is None:
            return
        try:
            self.out.write(text + end)
            self.out.flush()
        except (OSError, ValueError):  # closed: figures are not worth an error in somebody's training
            self.out = None

    def end(self) -> None:
        if not self.told and self.waits.count:
            self.told = True
            erase = "\r\x1b[K" if self.out is not None and self.out.isatty() else ""
            self.tell(erase + table(self), "\n")


def _sentence(seen: _Seen, wall: float) -> str:
    waiting = seen.waits.total / wall if wall else 0.0
    if not seen.waits.count:
        return "Nothing has been read yet."
    if waiting < 0.03:
        return f"Training is the bottleneck, not loading: it waited {waiting:.1%} of the time."
    busy = seen.cpu / seen.worker_seconds if seen.worker_seconds else None
    workers = f"its {seen.workers} workers compute"
    if busy is None and not seen.workers:
        how = "no worker prepares batches meanwhile: take bigconv's Loader, or num_workers"
    elif busy is None or busy > 0.8:
        how = f"{workers} {busy:.0%} of the time: take more of them" if busy is not None else "take more workers"
    else:
        how = f"{workers} {busy:.0%} of the time only: storage or the transfer holds them back"
    return f"Training waits for data {waiting:.0%} of the time; {how} (see bigconv bench)."


class Watched(Generic[Batch]):
    """A loader that notes how long its batches are waited for. Everything else of it is as it was."""

    def __init__(self, loader: Iterable[Batch], every: float, out: TextIO | None) -> None:
        self._loader = loader
        self._seen = _Seen(out, every)
        self.close = weakref.finalize(self, _Seen.end, self._seen)

    def __iter__(self) -> Iterator[Batch]:
        return _Iterator(self._loader, self._seen)

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)  # while it is unpickled
        return getattr(self._loader, name)

    def __enter__(self) -> Watched[Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self) -> dict[str, Any]:
        """All figures so far, as JSON values; seconds and bytes."""
        return self._seen.report()

    def __str__(self) -> str:
        return table(self._seen)


class _Iterator(Iterator[Batch]):
    def __init__(self, loader: Iterable[Batch], seen: _Seen) -> None:
        self._seen, self._clock = seen, time.perf_counter
        self._start = self._clock()
        before = processes.worker_pids()
        self._batches = iter(loader)
        self._workers = processes.worker_pids() - before or _persistent(loader, before)
        seen.epochs += 1
        seen.workers = max(seen.workers, len(self._workers))
        self._given = 0.0  # when the newest batch was handed out
        self._looked, self._used = self._start, processes.usage(self._workers).cpu - time.process_time()
        self._pause = seen.every
        self._size: int | None = None

    def __next__(self) -> Batch:
        seen, asked = self._seen, self._clock()
        if self._given:
            seen.compute += asked - self._given
        try:
            batch = next(self._batches)
        except BaseException:
            if self._given:
                seen.waits.total += self._clock() - asked
            self._given = 0.0
            self._look(self._clock())
            raise
        now = self._clock()
        if not self._given:
            seen.startup.append(now - self._start)
        seen.waits.add(now - (asked if self._given else self._start))
        seen.samples += payload.samples(batch)
        if now - self._looked > self._pause:
            self._look(now)
            if seen.out is not None:
                live = seen.out.isatty()
                seen.tell(("\r\x1b[K" if live else "") + seen.line(), "" if live else "\n")
            now = self._clock()
        self._given = now
        return batch

    def _look(self, now: float) -> None:
        """At the workers and at memory, which costs milliseconds."""
        seen = self._seen
        if self._workers:
            used = processes.usage(self._workers).cpu - time.process_time()
            if used >= self._used:  # else they have ended
                seen.cpu += used - self._used
                seen.worker_seconds += (now - self._looked) * len(self._workers)
                self._used = used
        found = processes.memory(self._workers)
        if found is not None and (seen.memory is None or found.private > seen.memory.private):
            seen.memory = found
        self._looked = self._clock()
        self._pause = max(seen.every, (self._looked - now) / COST)


def _persistent(loader: Any, children: set[int]) -> set[int]:
    """Workers of an earlier epoch that have stayed: as many children as the loader says it has."""
    return children if getattr(loader, "num_workers", 0) == len(children) else set()


def table(seen: _Seen) -> str:
    """The report for a terminal."""
    r = seen.report()
    share = {"waiting for data": r["wait_seconds"], "training step": r["compute_seconds"]}
    wall = max(r["seconds"], 1e-9)
    parts = [
        Column("watch", tuple(share), right=False),
        Column("seconds", tuple(f"{s:,.2f}" for s in share.values())),
        Column("share", tuple(f"{s / wall:.1%}" for s in share.values())),
        Column("p50", (texttable.time(seen.waits.quantile(0.5)), "")),
        Column("p99", (texttable.time(seen.waits.quantile(0.99)), "")),
        Column("max", (texttable.time(seen.waits.longest), "")),
    ]
    more = [
        f"{r['batches']:,} batches, {r['samples']:,} samples in {r['epochs']} epochs",
        f"{texttable.rate(r['samples_per_second'])} samples/s",
        f"{r['stalls']:,} stalls over {1e3 * STALL:.0f} ms",
    ]
    if r["worker_efficiency"] is not None:
        more.append(f"{r['workers']} workers {r['worker_efficiency']:.0%} busy")
    if seen.memory is not None:
        more.append(f"{texttable.size(seen.memory.private)} of memory")
    return "\n".join([*texttable.lines(parts, 100), " · ".join(more), r["bottleneck"]])


def watch(loader: Iterable[Batch], every: float = EVERY, quiet: bool = False) -> Watched[Batch]:
    """Watch a DataLoader or a Loader while something is trained: `for batch in (loader := bigconv.watch(loader)):`.

    Measures waiting against training, stalls, memory of all processes, and how busy the workers are. Tells a line every
    `every` seconds and a table at the end (when it is closed or gone, or at the end of the program) on stderr; `quiet`
    tells nothing. `.report()` gives all figures at any time; everything else is the loader's own.
    """
    return Watched(loader, every, None if quiet else sys.stderr)
