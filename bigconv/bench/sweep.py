"""Which settings to measure, and for how long: no longer than it takes to tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from bigconv.bench import processes
from bigconv.bench.advise import WITHIN, check_memory
from bigconv.bench.measure import Run, Running
from bigconv.bench.model import Model
from bigconv.bench.setting import Setting, threads
from bigconv.bench.setting import processes as worker_processes
from bigconv.bench.subject import Subject
from bigconv.errors import UsageError

REPEATS, FEWEST = 5, 3  # the fewest, where one round takes long and the time is over
SHORTEST, LONGEST = 0.04, 1.0  # seconds of a stretch: above a scheduler's slices, below anyone's patience
MOST_ROUNDS = 25
LONG_ROUND = 1.0  # seconds of all settings once: what is shorter gets its five repeats
PART = 0.02  # seconds of the smallest part of a batch that is measured: what a batch adds to its rows is under 1 %

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
    return [worker_processes(n) for n in counts] + [threads(n) for n in counts if n]


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
    swept, started = Swept(), {}
    begin = perf_counter()
    base = worker_processes(0, pin_memory)
    tick("calibrating", 0.0)
    each = max(SHORTEST, min(LONGEST, seconds * 0.7 / (len(settings) * REPEATS)))
    try:
        part = _part(subject, base, each / (3 * max(1, *(s.workers for s in settings))), settings)
        if part is not subject:
            swept.notes.append(
                f"a batch of {subject.batch_size} takes long: measured in parts of {part.batch_size} rows, "
                "which cost as much a row; waits are for these"
            )
            subject = part
        started[base] = calibrated = Running(subject, base, step)
        for _ in range(2):
            calibrated.repeat(each)
        swept.model = Model.of(calibrated.run, cores)
        calibrated.run.stretches.clear()  # alone on the machine: not to be compared with those measured in turn
        if not isinstance(workers, Sequence) and only is None:
            swept.skipped = [s for s in settings if not swept.model.worth_trying(s)]
            settings = [s for s in settings if s not in swept.skipped]
        _rounds(subject, settings, REPEATS, each, step, started, swept, tick, seconds, begin)
        while (middle := _between(swept.runs)) is not None and perf_counter() - begin < seconds:
            pair = [_pinned(middle, pin_memory), max(swept.runs, key=lambda r: r.rate.value).setting]
            _rounds(subject, pair, REPEATS, each, step, started, swept, tick, seconds, begin)
        _separate(subject, each, step, started, swept, tick, seconds, begin)
    except KeyboardInterrupt:
        swept.interrupted = True
    finally:
        for running in started.values():
            running.close()
    swept.runs = sorted(
        (r.run for r in started.values() if r.run.stretches), key=lambda r: (r.setting.threaded, r.setting.workers)
    )
    sums = {run.checksum for run in swept.runs}
    if len(sums) > 1:
        swept.disagree = [f"{run.setting.label} {run.checksum}" for run in swept.runs]
    return swept


def _rounds(
    subject: Subject,
    settings: list[Setting],
    repeats: int,
    each: float,
    step: float,
    started: dict[Setting, Running],
    swept: Swept,
    tick: Tick,
    seconds: float,
    begin: float,
) -> None:
    """Measure settings in turn, to and fro, so that what drifts is in every interval and favours nobody."""
    now = perf_counter()
    for number in range(repeats):
        started_round, now = now, perf_counter()
        if number >= FEWEST and now - begin > seconds and now - started_round > LONG_ROUND:
            return
        for setting in settings if number % 2 == 0 else reversed(settings):
            tick(setting.label, (perf_counter() - begin) / seconds)
            if setting not in started:
                started[setting] = Running(subject, setting, step)
            run = started[setting].run
            if run.predicted is None and swept.model is not None:
                run.predicted = swept.model.rate(setting)
            started[setting].repeat(each)
            if run not in swept.runs:
                swept.runs.append(run)


def _separate(
    subject: Subject,
    each: float,
    step: float,
    started: dict[Setting, Running],
    swept: Swept,
    tick: Tick,
    seconds: float,
    begin: float,
) -> None:
    """Go on with those of which it isn't clear whether they are within 3 % of the best."""
    for _ in range(MOST_ROUNDS - REPEATS):
        best = max(swept.runs, key=lambda r: r.rate.value)
        wanted = WITHIN * best.rate.value
        unclear = [r for r in swept.runs if r is not best and r.rate.low < wanted < r.rate.high]
        if not unclear or perf_counter() - begin >= seconds:
            return
        _rounds(subject, [r.setting for r in (*unclear, best)], 1, each, step, started, swept, tick, seconds, begin)


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


def _part(subject: Subject, base: Setting, wanted: float, settings: Sequence[Setting]) -> Subject:
    """The subject in batches of about `wanted` seconds where its own take far longer, and cost as much a row.

    A stretch needs a batch of each worker, and then they fill their queues: with batches of half a second a sweep
    would take a minute. Refuses settings for which there isn't the memory.
    """
    wanted, probe = max(wanted, PART), Running(subject, base, checked=1)
    try:
        _refuse(subject, probe.run.batch_bytes, settings)
        if probe.run.first_batch < 2 * wanted:
            return subject
        took = probe.measure(0.0).wall
    finally:
        probe.close()
    rows = max(1, int(subject.batch_size * wanted / took))
    if took < 2 * wanted or rows >= subject.batch_size:
        return subject
    part = subject.in_parts(rows)
    probe = Running(part, base, checked=1)
    try:
        alike = probe.measure(3 * wanted)
    finally:
        probe.close()
    a_row = alike.wall / alike.samples
    return part if a_row < 1.25 * took / subject.batch_size else subject


def _refuse(subject: Subject, batch_bytes: int, settings: Sequence[Setting]) -> None:
    for loader in (False, True):
        most = max((s for s in settings if s.threaded is loader), key=lambda s: s.workers, default=None)
        why = None if most is None else check_memory(subject, batch_bytes, most)
        if why is not None:
            raise UsageError(why)


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
