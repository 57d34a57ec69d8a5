"""Reading from storage, with proof that the page cache had nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bigconv.bench import processes, residency
from bigconv.bench.setting import Setting
from bigconv.bench.stats import Rate, rate_of
from bigconv.bench.subject import Subject

REPEATS = 5


@dataclass
class ColdRun:
    """The first samples after the files were dropped from the page cache, from the start of the workers on.

    `before`, `after`: resident share of the files, at most over all repeats; None where it can't be told.
    """

    subject: Subject
    setting: Setting
    samples: list[int] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    bytes_read: int = 0
    before: float | None = None
    after: float | None = None

    @property
    def rate(self) -> Rate:
        return rate_of(self.samples, self.wall)

    @property
    def cold(self) -> bool:
        return self.before is not None and self.before <= residency.COLD

    def to_json(self) -> dict[str, Any]:
        rate = self.rate
        return {
            "path": self.subject.name,
            **self.setting.to_json(),
            "cold": self.cold,
            "resident_before": self.before,
            "resident_after": self.after,
            "samples_per_second": rate.value,
            "samples_per_second_95": [rate.low, rate.high if rate.repeats > 1 else None],
            "repeats": rate.repeats,
            "bytes_read": self.bytes_read,
        }

    def words(self) -> str | None:
        """Why this is not called cold, where it isn't."""
        if self.cold:
            return None
        if self.before is None:
            return "not called cold: this system doesn't tell what is in the page cache"
        return (
            f"not called cold: {self.before:.0%} of the files stayed in the page cache "
            "(mapped by another process, or in a file system that keeps its pages)"
        )


def measure(
    subject: Subject, settings: Sequence[Setting], seconds: float, step: float, tick: Callable[[str], None]
) -> list[ColdRun]:
    """Each setting `REPEATS` times in turn, with dropped files each time, never more than one epoch."""
    runs = [ColdRun(subject, setting) for setting in settings]
    each = seconds / (REPEATS * len(runs))
    for _ in range(REPEATS):
        for run in runs:
            tick(f"cold, {run.setting.label}")
            _once(run, each, step)
    return runs


def _once(run: ColdRun, seconds: float, step: float) -> None:
    subject: Any = run.subject
    if hasattr(subject.dataset, "view"):
        subject.dataset.view.close()  # mapped pages can't be dropped
    residency.drop(subject.files)
    before = residency.resident(subject.files)
    run.before = None if before is None else max(run.before or 0.0, before.share)
    others = processes.worker_pids()
    batches = subject.iterate(run.setting)
    workers = processes.worker_pids() - others
    used, start = processes.usage(workers), time.perf_counter()
    taken = 0
    for _ in islice(batches, max(1, subject.rows // subject.batch_size)):
        taken += 1
        if step:
            time.sleep(step)
        if time.perf_counter() - start >= seconds:
            break
    run.wall.append(time.perf_counter() - start)
    run.samples.append(taken * subject.batch_size)
    run.bytes_read += (processes.usage(workers) - used).read
    del batches
    after = residency.resident(subject.files)
    run.after = None if after is None else max(run.after or 0.0, after.share)
