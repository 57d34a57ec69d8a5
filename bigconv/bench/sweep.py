"""Which settings to measure, and for how long: no longer than it takes to tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any

from bigconv.bench import processes
from bigconv.bench.advise import WITHIN, undecided
from bigconv.bench.measure import ENOUGH, REPEATS, Run, Running
from bigconv.bench.model import Model
from bigconv.bench.parts import affordable
from bigconv.bench.setting import Setting, threads
from bigconv.bench.setting import processes as worker_processes
from bigconv.bench.subject import Subject
from bigconv.errors import UsageError

SHORTEST, LONGEST = 0.04, 1.0  # seconds of a stretch: above a scheduler's slices, below anyone's patience
MOST_TURNS = 60
LONG_TURN = 1.0  # seconds of all settings once: what is shorter gets its five repeats
TO_BEGIN = 0.5  # share of the seconds for the first five of all; the rest is for those that are hard to tell apart

#: `tick(what, share)`: called before each measurement, with the share of the sweep that is done.
Tick = Callable[[str, float], None]


def quiet(what: str, share: float) -> None:
    """A `Tick` that tells nobody."""


@dataclass
class Swept:
    """Runs of one subject in the order of their settings, the model, and what was left out and why."""

    runs: list[Run] = field(default_factory=list)
    model: Model | None = None
    skipped: list[Setting] = field(default_factory=list)
    interrupted: bool = False
    disagree: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan(workers: int | Sequence[int]) -> list[Setting]:
    """Settings for a ceiling (0, 1, 2, 4, … and the ceiling itself) or for a list, of both loaders.

    Threads stop at the ceiling, too.
    """
    if isinstance(workers, int):
        counts = [0, *(1 << i for i in range(workers.bit_length()) if 1 << i <= workers), workers]
    else:
        counts = list(workers)
    if not counts or min(counts) < 0:
        raise UsageError("--workers: expected a number, or a list as 0,2,4, none of them negative")
    counts = sorted(set(counts))
    return [make(n) for make in (worker_processes, threads) for n in counts]


def sweep(
    subject: Subject,
    workers: int | Sequence[int] | None,
    seconds: float,
    step: float,
    pin_memory: bool,
    tick: Tick,
    only: Setting | None = None,
) -> Swept:
    """Measure a subject within about `seconds`. Ctrl-C ends it with what is known.

    `workers`: a ceiling, or a list, which is then measured as it is; None: as many as there are cores. `only`: this
    setting instead.
    Raises `UsageError` for more workers than the memory allows, `SchemaError` for samples that can't be stacked.
    """
    cores = processes.cores()
    settings = [_pinned(s, pin_memory) for s in plan(cores if workers is None else workers)] if only is None else [only]
    base = worker_processes(0, pin_memory)
    contest = _Contest(subject, step, seconds, len(settings), tick)
    swept = contest.swept
    tick("calibrating", 0.0)
    try:
        part = affordable(subject, base, contest.left, settings, REPEATS + 1, cores)
        if part is not subject:
            swept.notes.append(
                f"a batch of {subject.batch_size} takes long: measured in parts of {part.batch_size} rows, "
                "which cost as much a row; waits are for these"
            )
            contest.subject = part
        swept.model = Model.of(contest.calibrate(base), cores)
        if not isinstance(workers, Sequence) and only is None:
            swept.skipped = [s for s in settings if not swept.model.worth_trying(s)]
            settings = [s for s in settings if s not in swept.skipped]
            contest.share_among(len(settings))
        contest.turns(settings)
        while (middle := _between(swept.runs)) is not None and contest.left > 0:
            contest.turns([_pinned(middle, pin_memory), max(swept.runs, key=lambda r: r.rate.value).setting])
        contest.decide()
    except KeyboardInterrupt:
        swept.interrupted = True
    finally:
        contest.close()
    swept.runs.sort(key=lambda run: (run.setting.threaded, run.setting.workers))
    all_of_them = [stretch for run in swept.runs for stretch in run.stretches]
    disturbed = len(all_of_them) - sum(len(run.counted) for run in swept.runs)
    if disturbed:
        swept.notes.append(f"{disturbed} of {len(all_of_them)} stretches are not counted: others used the cores")
    sums = {run.checksum for run in swept.runs}
    if len(sums) > 1:
        swept.disagree = [f"{run.setting.label} {run.checksum}" for run in swept.runs]
    return swept


class _Contest:
    """Settings of a subject that are measured in turn, in `seconds` from now on."""

    def __init__(self, subject: Subject, step: float, seconds: float, settings: int, tick: Tick) -> None:
        self.subject, self.swept = subject, Swept()
        self._step, self._seconds, self._tick = step, seconds, tick
        self.share_among(settings)
        self._begin, self._turn, self._started = perf_counter(), 0, dict[Setting, Running]()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - (perf_counter() - self._begin)

    def share_among(self, settings: int) -> None:
        """How long a stretch is, for so many settings."""
        self.each = max(SHORTEST, min(LONGEST, self._seconds * TO_BEGIN / (settings * (REPEATS + 1))))

    def start(self, settings: Sequence[Setting]) -> None:
        """Those that aren't yet, and then warm up: memory gets mapped, and the runtime finds its pace.

        Processes first: what this process writes to after a fork is copied once more, as the child has it, too.
        """
        new = [s for s in settings if s not in self._started]
        for setting in sorted(new, key=lambda s: s.processes, reverse=True):
            self._started[setting] = Running(self.subject, setting, self._step)
        forked = any(s.processes for s in new)
        for setting, running in self._started.items():
            if setting in new or (forked and not setting.processes):
                running.measure(self.each / 2)

    def calibrate(self, base: Setting) -> Run:
        """No workers, and alone on the machine: not to be compared with those that are measured in turn."""
        running = Running(self.subject, base, self._step)
        try:
            for _ in range(2):
                running.repeat(self.each)
        finally:
            running.close()
        return running.run

    def turn(self, settings: Sequence[Setting]) -> None:
        """Each of them once, in an order of chance: what drifts is in every interval, and nobody always follows one."""
        self._turn += 1
        for setting in Random(self._turn).sample(settings, len(settings)):
            self._tick(setting.label, 1 - self.left / self._seconds)
            running = self._started[setting]
            if running.run.predicted is None and self.swept.model is not None:
                running.run.predicted = self.swept.model.rate(setting)
            running.repeat(self.each, self._turn)
            if running.run not in self.swept.runs:
                self.swept.runs.append(running.run)

    def turns(self, settings: Sequence[Setting]) -> None:
        """`REPEATS` times, or fewer where one takes long."""
        self._tick("starting", 1 - self.left / self._seconds)
        self.start(settings)
        took = 0.0
        for number in range(REPEATS):
            if number >= ENOUGH and self.left < 0 and took > LONG_TURN:
                return
            start = perf_counter()
            self.turn(settings)
            took = perf_counter() - start

    def decide(self) -> None:
        """Go on with those on which the advice depends, until it is clear or the time is over."""
        for _ in range(MOST_TURNS - REPEATS):
            unclear = undecided(self.swept.runs)
            if not unclear or self.left <= 0:
                return
            self.turn([run.setting for run in unclear])

    def close(self) -> None:
        for running in self._started.values():
            running.close()


def _between(runs: Sequence[Run]) -> Setting | None:
    """Halfway between the best number of workers and the next smaller one, if that one is clearly slower."""
    best = max(runs, key=lambda r: r.rate.value)
    own = sorted({r.setting.workers for r in runs if r.setting.loader == best.setting.loader} | {0})
    at = own.index(best.setting.workers)
    if at == 0 or own[at] - own[at - 1] < 2:
        return None
    below = [r.rate for r in runs if (r.setting.loader, r.setting.workers) == (best.setting.loader, own[at - 1])]
    if below and below[0].high >= WITHIN * best.rate.value:
        return None
    middle = (own[at] + own[at - 1]) // 2
    return threads(middle) if best.setting.threaded else worker_processes(middle)


def _pinned(setting: Setting, pin_memory: bool) -> Setting:
    return Setting(setting.loader, setting.workers, setting.prefetch, pin_memory)


def random_samples(subject: Subject, batches: int) -> bool:
    """Whether reading the same rows twice gives different bytes, as random transforms do."""
    from itertools import islice

    from torch.utils.data import default_collate

    from bigconv.bench.payload import Checksum

    dataset: Any = subject.dataset
    whole = getattr(dataset, "__getitems__", None)
    found = []
    for _ in range(2):
        checksum = Checksum()
        for rows in islice(subject.batches(), batches):
            checksum.add(default_collate([dataset[i] for i in rows.tolist()] if whole is None else whole(rows)))
        found.append(checksum.hex)
    return found[0] != found[1]
