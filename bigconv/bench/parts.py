"""Batches that the time allows: a sweep measures parts of batches where whole ones take too long."""

from __future__ import annotations

from collections.abc import Sequence

from bigconv.bench.advise import check_memory
from bigconv.bench.measure import Running
from bigconv.bench.setting import Setting
from bigconv.bench.subject import Subject
from bigconv.errors import UsageError

PART = 0.02  # seconds of the smallest part of a batch that is measured: what a batch adds to its rows is under 1 %
TURN = 8  # batches that a worker makes each time, about: those that are measured, and those that fill its queue


def affordable(
    subject: Subject, base: Setting, seconds: float, settings: Sequence[Setting], turns: int, cores: int
) -> Subject:
    """The subject in the largest batches for which `seconds` are enough to measure all settings so many times.

    Its own, where they are short enough; else parts of them, if these cost as much a row. Refuses settings for which
    there isn't the memory.
    """
    each = seconds / (turns * TURN * sum(max(1.0, s.workers / cores) for s in settings))
    wanted, probe = max(each, PART), Running(subject, base, checked=1)
    try:
        _refuse(subject, probe.run.batch_bytes, settings)
        if probe.run.first_batch < wanted:
            return subject
        took = min(probe.measure(0.0).waits)
        if took < 8 * wanted:  # once more: the first batches have to get their memory mapped
            took = min(took, *probe.measure(0.0).waits)
    finally:
        probe.close()
    rows = max(1, int(subject.batch_size * wanted / took))
    if took < 1.25 * wanted or rows >= subject.batch_size:
        return subject
    part = subject.in_parts(rows)
    probe = Running(part, base, checked=1)
    try:
        alike = min(probe.measure(3 * wanted).waits)
    finally:
        probe.close()
    return part if alike / rows < 1.25 * took / subject.batch_size else subject


def _refuse(subject: Subject, batch_bytes: int, settings: Sequence[Setting]) -> None:
    for loader in (False, True):
        most = max((s for s in settings if s.threaded is loader), key=lambda s: s.workers, default=None)
        why = None if most is None else check_memory(subject, batch_bytes, most)
        if why is not None:
            raise UsageError(why)
