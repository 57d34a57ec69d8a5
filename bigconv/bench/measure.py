"""One loader, running: what it delivers in a stretch of time, and what that costs.

A stretch is measured in the steady state. While a loader isn't asked, its workers fill the queue and stop; these
batches are taken first and not counted, as they would look like speed that isn't there (a burst of prefetched batches
inflates a rate 13-fold). At that moment all workers begin new batches. The clock starts when each has delivered one of
these, and stops when each has delivered equally often: so what is counted was made in the time that is counted, and
what delays a delivery (a transform that holds Python's lock) delays the first as much as the last. It is over for the
next loader when the queue is full again: workers that fill it would take cores from that one.

Workers stay alive between stretches. A loader inside this process doesn't: batches that wait in its queue would be
memory that the next one, which shares it in this process, has to do without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bigconv.bench import payload, processes
from bigconv.bench.contention import Watcher
from bigconv.bench.setting import Setting
from bigconv.bench.stats import Rate, quantile, rate_of, ratio_of
from bigconv.bench.subject import Subject, hushed
from bigconv.errors import BigconvError, InputError, SchemaError, UsageError

CHECKED = 4  # batches whose bytes go into the checksum; they are never timed
POLL = 0.004  # seconds
REPEATS, ENOUGH = 5, 3  # stretches that are wanted, and how few will do where they take long or others disturb them
CHECKED_BYTES = 96 << 20  # 96 MiB: fewer where batches are large, but one at least


@dataclass(frozen=True)
class Stretch:
    """`samples` that came in `wall` seconds; `waits`: seconds waited for each batch; `used` by the tree meanwhile.

    `turn`: stretches of several settings with the same number were measured one right after the other. `disturbed`:
    others used the cores meanwhile.
    """

    samples: int
    wall: float
    waits: tuple[float, ...]
    used: processes.Usage
    turn: int = 0
    disturbed: bool = False

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.wall


@dataclass
class Run:
    """All that is known of one setting of a subject."""

    subject: Subject
    setting: Setting
    batch_bytes: int = 0
    checksum: str = ""
    startup: float = 0.0  # seconds of `iter(loader)`: workers are started
    first_batch: float = 0.0  # seconds from there to the first batch, start-up included
    epoch_gap: float | None = None
    memory: processes.Memory | None = None
    shm: int = 0  # peak of /dev/shm above what was there before
    stretches: list[Stretch] = field(default_factory=list)
    predicted: float | None = None  # samples/s, before anything of this setting was measured
    step: float = 0.0  # seconds that each training step takes

    @property
    def counted(self) -> list[Stretch]:
        """Those that nobody disturbed, where they are enough; else all."""
        calm = [s for s in self.stretches if not s.disturbed]
        return calm if len(calm) >= ENOUGH else self.stretches

    @property
    def rate(self) -> Rate:
        return rate_of([s.samples for s in self.counted], [s.wall for s in self.counted])

    def against(self, other: Run) -> Rate | None:
        """This rate ÷ the other's, of the turns in which both were measured; None where there are none."""
        theirs = {s.turn: s.rate for s in other.counted}
        pairs = [(s.rate, theirs[s.turn]) for s in self.counted if s.turn in theirs]
        return ratio_of(*zip(*pairs, strict=True)) if pairs else None

    @property
    def megabytes(self) -> float:
        """MB/s of payload."""
        return self.rate.value * self.batch_bytes / self.subject.batch_size / 1e6

    @property
    def waits(self) -> list[float]:
        return sorted(wait for stretch in self.counted for wait in stretch.waits)

    @property
    def cpu(self) -> float:
        """CPU seconds per 1,000 samples, of the whole tree."""
        return 1000 * sum(s.used.cpu for s in self.counted) / sum(s.samples for s in self.counted)

    @property
    def busy(self) -> float | None:
        """Share of the time in which the accelerator had a step to do; None without steps."""
        if not self.step:
            return None
        batches, wall = sum(len(s.waits) for s in self.counted), sum(s.wall for s in self.counted)
        return min(1.0, batches * self.step / wall)

    def to_json(self) -> dict[str, Any]:
        rate, waits = self.rate, self.waits
        document: dict[str, Any] = {
            "path": self.subject.name,
            **self.setting.to_json(),
            "samples_per_second": rate.value,
            "samples_per_second_95": [rate.low, rate.high if rate.repeats > 1 else None],
            "repeats": rate.repeats,
            "megabytes_per_second": self.megabytes,
            "predicted_samples_per_second": self.predicted,
            "seconds_measured": sum(s.wall for s in self.stretches),
            "first_batch_seconds": self.first_batch,
            "startup_seconds": self.startup,
            "epoch_gap_seconds": self.epoch_gap,
            "wait_ms": {name: 1e3 * quantile(waits, q) for name, q in WAITS},
            "cpu_seconds_per_1000_samples": self.cpu,
            "memory_bytes": None if self.memory is None else self.memory.private,
            "pss_bytes": None if self.memory is None else self.memory.pss,
            "shm_peak_bytes": self.shm,
            "bytes_read": sum(s.used.read for s in self.stretches),
            "checksum": self.checksum,
        }
        if self.step:
            document |= {"step_ms": 1e3 * self.step, "accelerator_busy": self.busy}
        return document


WAITS = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


class Running:
    """A loader with its workers, from the first batch until `close`."""

    def __init__(self, subject: Subject, setting: Setting, step: float = 0.0, checked: int | None = None) -> None:
        """`step`: seconds of training for a batch as it is asked for. `checked`: batches of the checksum."""
        self.run = Run(subject, setting, step=step * subject.batch_size / subject.asked_size)
        self._shm, before = processes.shm_used(), processes.worker_pids()
        self._order, self._together = subject.batches(), subject.together(setting)
        self._batches: Iterator[Any] | None = None
        try:
            start = time.perf_counter()
            self._batches = subject.iterate(setting, self._order)
            self.run.startup = time.perf_counter() - start
            batch = next(self._batches)
            self.run.first_batch = time.perf_counter() - start
        except Exception as error:
            raise _told(error, subject, setting) from error
        self.workers = processes.worker_pids() - before
        self.run.batch_bytes = payload.nbytes(batch)
        self._check(batch, checked)

    def _check(self, batch: Any, checked: int | None) -> None:
        """The checksum of the first batches; they count as warming up, too."""
        checksum, sizes = payload.Checksum(), []
        wanted = checked or checked_batches(self.run.batch_bytes)
        while True:
            checksum.add(batch)
            sizes.append(payload.nbytes(batch))
            if checksum.batches == wanted:
                break
            batch = self._next()
        self.run.checksum, self.run.batch_bytes = checksum.hex, round(sum(sizes) / len(sizes))
        if not self.run.setting.processes:
            self.close()

    def _next(self) -> Any:
        if self._batches is None:
            self._batches = self.run.subject.iterate(self.run.setting, self._order)
        try:
            return next(self._batches)
        except Exception as error:
            raise _told(error, self.run.subject, self.run.setting) from error

    def measure(self, seconds: float, use: Callable[[Any], None] | None = None) -> Stretch:
        """At least so long after each worker has delivered once, and until all have delivered equally often.

        `use`: done with each batch.
        """
        setting, step = self.run.setting, self.run.step
        # with steps, batches come one by one, whatever is made at once
        rounds = max(setting.workers, 1) * (1 if step else self._together)
        for _ in range(setting.ahead if setting.processes else 0):  # nothing is in the queue of a new loader
            self._next()
        before = processes.usage(self.workers)
        for _ in range(rounds):
            batch = self._next()
            if step:
                time.sleep(step)
        clock, waits = time.perf_counter, list[float]()
        assert self._batches is not None
        ask = self._batches.__next__
        span, moments = None, [clock()]  # after so many batches
        try:
            while span is None:
                batch = ask()
                waits.append(clock() - moments[-1])
                if use is not None:
                    use(batch)
                if step:
                    time.sleep(step)
                moments.append(clock())
                if moments[-1] - moments[0] >= seconds:
                    span = self._span(waits, moments, rounds, seconds)
        except Exception as error:
            raise _told(error, self.run.subject, self.run.setting) from error
        del batch
        first, last = span
        share = (last - first) / (len(waits) + rounds)  # of the batches since `before`
        used = (processes.usage(self.workers) - before) * share
        self.run.shm = max(self.run.shm, processes.shm_used() - self._shm)
        if self.run.memory is None:
            self.run.memory = processes.memory(self.workers)
        del ask
        wall = moments[last] - moments[first]
        self._rest(1.5 * setting.ahead * wall / (last - first))
        return Stretch((last - first) * self.run.subject.batch_size, wall, tuple(waits[first:last]), used)

    def _span(
        self, waits: Sequence[float], moments: Sequence[float], rounds: int, seconds: float
    ) -> tuple[int, int] | None:
        """From which to which batch to count; None: not over yet.

        Batches may come in bursts, after one that was waited for long. To stop after that one would leave out what was
        made with it: a stretch begins and ends where a burst is over, as the next wait tells. Where no such end comes
        with all workers even, it ends without.
        """
        taken = len(waits)
        if not self.run.setting.workers or self.run.step:
            return (0, taken) if taken % rounds == 0 else None
        long = (moments[-1] - moments[0]) / taken / 2
        first = next((i for i in range(min(taken, self.run.setting.ahead + rounds)) if waits[i] >= long), 0)
        last = taken - 1
        even = last > first and (last - first) % rounds == 0
        over = waits[last] >= long and waits[last - 1] < 4 * long  # nothing is left of a burst
        if even and over and moments[last] - moments[first] >= seconds / 2:
            return first, last
        late = moments[-1] - moments[0] >= 1.5 * seconds
        return (0, taken) if late and taken % rounds == 0 else None

    def _rest(self, most: float) -> None:
        """Wait until the queue is full and nobody computes, `most` seconds: the next to be measured wants the cores."""
        if not self.run.setting.processes:
            self.close()
            return
        end, before = time.perf_counter() + most, processes.usage(self.workers).cpu
        while time.perf_counter() < end:
            time.sleep(POLL)
            now = processes.usage(self.workers).cpu
            if now - before < POLL / 4:
                return
            before = now

    def repeat(self, seconds: float, turn: int | None = None) -> None:
        """Measure, and add it to the run. `turn`: None for the next one."""
        number = len(self.run.stretches) if turn is None else turn
        watcher = Watcher()
        stretch = self.measure(seconds)
        self.run.stretches.append(replace(stretch, turn=number, disturbed=watcher.result().disturbed))

    def close(self) -> None:
        """End workers and threads: nobody else holds the iterator, and they end with it."""
        self._batches = None


def checked_batches(batch_bytes: int) -> int:
    return max(1, min(CHECKED, CHECKED_BYTES // max(batch_bytes, 1)))


def epoch_gap(subject: Subject, setting: Setting) -> float:
    """Seconds from the end of an epoch to the first batch of the next, with workers that persist."""
    from itertools import islice

    from torch.utils.data import DataLoader, Subset

    from bigconv.runtime.loader import Loader

    rows = [r for batch in islice(subject.batches(), 2 * max(setting.workers, 1)) for r in batch.tolist()]
    dataset: Any = Subset(subject.dataset, rows)
    if setting.threaded:
        loader: Any = Loader(dataset, subject.batch_size, threads=setting.workers, prefetch=setting.prefetch)
    else:
        own: dict[str, Any] = (
            {"prefetch_factor": setting.prefetch, "persistent_workers": True} if setting.workers else {}
        )
        with hushed():
            loader = DataLoader(dataset, subject.batch_size, num_workers=setting.workers, **own)
    gaps = []
    with hushed():
        for epoch in range(4):
            start = time.perf_counter()
            batches = iter(loader)
            next(batches)
            if epoch:
                gaps.append(time.perf_counter() - start)
            for _ in batches:
                pass
    return sorted(gaps)[1]


def _told(error: Exception, subject: Subject, setting: Setting) -> Exception:
    """An error of reading, in words for whoever reads the figures."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    where = f"{subject.name}, {setting.label}"
    if isinstance(error, SchemaError) and "stacked" in str(error):
        return SchemaError(
            f"{subject.name}: {lines[0].rstrip('.')}.\n"
            "Name fields that can be stacked: --fields, or convert with --resize"
        )
    if isinstance(error, BigconvError):
        return error
    if "equal size" in str(error) or "must have the same size" in str(error):
        return SchemaError(
            f"{subject.name}: samples of different sizes can't be stacked into a batch: {last.rstrip('.')}.\n"
            "Images: give --resize. Else convert, and measure the --fields that can be stacked"
        )
    if "exited unexpectedly" in str(error) or "killed by signal" in str(error):
        return UsageError(
            f"{where}: a worker was killed, as happens when memory runs out.\n"
            "Try fewer --workers, or a smaller --batch-size"
        )
    return InputError(f"{where}: a sample can't be made: {type(error).__name__}: {last}")
