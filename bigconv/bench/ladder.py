"""Where the time goes: from the limit of memory up, one thing more on each rung, all measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from bigconv.bench import payload
from bigconv.bench.measure import Running, Stretch
from bigconv.bench.processes import Usage
from bigconv.bench.setting import Setting, processes
from bigconv.bench.stats import Rate, rate_of
from bigconv.bench.subject import Subject
from bigconv.runtime import StoreDataset

REPEATS = 5
LIMIT_BYTES = 256 << 20  # 256 MiB: past every cache, and still there on a small machine


@dataclass(frozen=True)
class Rung:
    """What is done a sample, and how many samples a second when that is all."""

    name: str
    rate: Rate

    def to_json(self) -> dict[str, Any]:
        high = self.rate.high if self.rate.repeats > 1 else None
        return {
            "rung": self.name,
            "samples_per_second": self.rate.value,
            "samples_per_second_95": [self.rate.low, high],
            "microseconds_per_sample": 1e6 / self.rate.value,
        }


def climb(subject: Subject, batch_bytes: int, seconds: float, tick: Callable[[str], None]) -> list[Rung]:
    """Every rung that this subject has, in `seconds` in all.

    Gather limit (`np.take` of as many bytes into a warm buffer), store read (or file read), decode and transform,
    collate, the transfer from one worker, page-locked memory and copy where there is a CUDA device, and the replay of
    batches that are ready, which is what the loop itself can take.
    """
    ways = list(_ways(subject, batch_bytes))
    each = seconds / ((REPEATS + 1) * (len(ways) + 1))
    try:
        for name, way in ways:
            tick(name)
            way(0.0)
        found: dict[str, list[Stretch]] = {name: [] for name, _ in ways}
        for _ in range(REPEATS):
            for name, way in ways:
                tick(name)
                found[name].append(way(each))
    finally:
        for _, way in ways:
            if isinstance(way, _Sent):
                way.close()
    return [Rung(name, rate_of([s.samples for s in some], [s.wall for s in some])) for name, some in found.items()]


Way = Callable[[float], Stretch]


def _ways(subject: Subject, batch_bytes: int) -> Iterator[tuple[str, Way]]:
    dataset: Any = subject.dataset
    yield "gather limit", _gather_limit(subject.batch_size, batch_bytes)
    if isinstance(dataset, StoreDataset):
        yield "store read", _of(subject, dataset.view.take)
        decodes = any(f.kind == "encoded" for f in dataset.schema)
        names = [name for name, there in (("decode", decodes), ("transform", dataset.transform is not None)) if there]
        if names:
            yield " + ".join(names), _of(subject, dataset.__getitems__)
        yield "collate", _of(subject, lambda rows: default_collate(dataset.__getitems__(rows)))
    else:
        made = _of(subject, lambda rows: [dataset[i] for i in rows.tolist()])
        if len(subject.files) == subject.rows:
            yield "file read", _of(subject, lambda rows: [subject.files[i].read_bytes() for i in rows.tolist()])
            yield "decode", made
        else:
            yield "sample read", made
        yield "collate", _of(subject, lambda rows: default_collate([dataset[i] for i in rows.tolist()]))
    yield "worker transfer", _Sent(subject, copied=False)
    if torch.cuda.is_available():
        yield "pin and copy", _Sent(subject, copied=True)
    yield "replay", _replay(subject)


def _timed(subject_batch: int, seconds: float, once: Callable[[], object]) -> Stretch:
    start = now = time.perf_counter()
    batches = 0
    while now - start < seconds or not batches:
        once()
        batches += 1
        now = time.perf_counter()
    return Stretch(batches * subject_batch, now - start, (), Usage(0, 0, 0))


def _of(subject: Subject, read: Callable[[Any], object]) -> Way:
    rows = iter(subject.batches())
    return lambda seconds: _timed(subject.batch_size, seconds, lambda: read(next(rows)))


def _gather_limit(batch: int, batch_bytes: int) -> Way:
    row = max(1, batch_bytes // batch)
    table = np.ones((max(batch, LIMIT_BYTES // row), row), np.uint8)
    out, rng = np.empty((batch, row), np.uint8), np.random.default_rng(0)
    order = [rng.integers(0, len(table), batch) for _ in range(64)]
    at = iter(range(1 << 62))
    return lambda seconds: _timed(
        batch, seconds, lambda: np.take(table, order[next(at) % 64], axis=0, out=out, mode="clip")
    )


class _Sent:
    """Through a DataLoader with one worker; with `copied` through page-locked memory to the device, too."""

    def __init__(self, subject: Subject, copied: bool) -> None:
        self._subject, self._copied = subject, copied
        self._running: Running | None = None

    def __call__(self, seconds: float) -> Stretch:
        if self._running is None:
            self._running = Running(self._subject, processes(1, self._copied))
        return self._running.measure(seconds, _to_device if self._copied else None)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()


def _to_device(batch: Any) -> None:
    for leaf in payload.leaves(batch):
        if isinstance(leaf, torch.Tensor):
            leaf.to("cuda", non_blocking=True)
    torch.cuda.synchronize()


class _Ready:
    """Batches that are made already, as a dataset of batches."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, i: int) -> Any:
        return self._batches[i % len(self._batches)]


def _replay(subject: Subject) -> Way:
    loader = subject.iterate(processes(0))
    ready: Any = _Ready([next(loader) for _ in range(2)])
    batches = iter(DataLoader(ready, sampler=range(1 << 62), batch_size=None, collate_fn=_as_it_is))
    return lambda seconds: _timed(subject.batch_size, seconds, lambda: next(batches))


def _as_it_is(batch: Any) -> Any:
    return batch


def bottleneck(rungs: list[Rung], gain: float, setting: Setting, busy: float | None) -> str:
    """One plain sentence about the recommended `setting`.

    `gain`: its rate ÷ that of 0 workers, both measured in turn, as the rungs are: ratios stay true while the machine's
    speed drifts. `busy`: the accelerator's share with it.
    """
    if busy is not None and busy > 0.97:
        return f"Training is the bottleneck, not loading: the accelerator is busy {busy:.0%} with {setting.label}."
    seconds = {rung.name: 1 / rung.rate.value for rung in rungs}
    limit, collate = seconds["gather limit"], seconds["collate"]
    share = limit / collate * gain
    reach = (
        f"{'under 1%' if share < 0.01 else f'{share:.0%}'} of the limit"
        if share <= 1
        else f"{share:.1f}x what one core can gather"
    )
    read = next((s for name, s in seconds.items() if name.endswith(" read")), limit)
    made = max(s for name, s in seconds.items() if name not in ("worker transfer", "pin and copy", "replay"))
    steps = [(name, s) for name, s in seconds.items() if name in ("decode", "transform", "decode + transform")]
    parts = {"reading": max(0.0, read - limit), "collating": max(0.0, collate - (steps[0][1] if steps else read))}
    if steps:
        parts[_NOUNS[steps[0][0]]] = max(0.0, steps[0][1] - read)
    slowest, took = max(parts.items(), key=lambda part: part[1])
    sent = seconds["worker transfer"]
    if (
        sent > 1.1 * made and not setting.processes
    ):  # one worker delivers less than no worker: what is saved in the worker is lost on the way
        return f"{reach}; worker transfer costs {1 - made / sent:.0%}: use {setting.label}."
    if took < 0.25 * made:
        return f"{reach}; nothing but copying the bytes is left: use {setting.label}."
    return f"{reach}; {slowest} takes {took / made:.0%} of a sample's time: use {setting.label}."


_NOUNS = {"decode": "decoding", "transform": "the transform", "decode + transform": "decoding and the transform"}
