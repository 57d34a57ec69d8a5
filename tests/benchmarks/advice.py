"""Is the advice of `bigconv bench` good? The six things that the issue wants shown.

1  the recommended setting within 5 % of an exhaustive sweep, in a quarter of its time, on five data sets
2  no workers for undecoded rows; as many as cores for a transform of 2 ms
3  reported rates within 5 % of a known truth
4  two runs agree within their intervals, 9 pairs of 10; a busy loop on every core is told as "contended"
5  cold is proven; wrong bytes change the checksum (tests/bench/test_known_truth.py)
6  `--fail-if-slower 10%`: a loader slowed by 20 % fails, the same one doesn't, each ten times

`python -m tests.benchmarks.advice [1] [4] …` runs the parts named, else all; `--seconds S` for each sweep (default 6);
`--only WORD`, of the data sets of part 1 those that have it in their name (each takes a minute and a half).
The exhaustive sweep measures every number of workers and threads up to twice the cores, with three prefetch depths,
five times 0.6 s each, in turn. What counts of the advice is the rate which that sweep has for the setting advised.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

import bigconv
from bigconv.bench import api, cold, processes, setting
from bigconv.bench.api import Question
from bigconv.bench.measure import Running
from bigconv.bench.setting import Setting
from bigconv.bench.subject import Subject, store_subject
from tests.benchmarks import _photos

SLOW = """
import time
def slow(row):
    end = time.thread_time() + 0.002
    while time.thread_time() < end:
        pass
    return row
"""


def subjects(folder: Path) -> dict[str, Subject]:
    rng = np.random.default_rng(0)
    np.save(folder / "small.npy", rng.standard_normal((200_000, 128)).astype(np.float32))
    np.save(folder / "image.npy", rng.integers(0, 255, (20_000, 3, 64, 64), dtype=np.uint8))
    np.save(folder / "volume.npy", rng.integers(0, 255, (64, 1, 128, 128, 128), dtype=np.uint8))
    _photos.folder(folder / "photos", 1000, 375, 500, 0)
    for name in ("small", "image", "volume"):
        bigconv.convert(folder / f"{name}.npy", folder / f"{name}.h5")
    bigconv.convert(folder / "photos", folder / "photos.h5", keep_encoded=True)
    (folder / "slow.py").write_text(SLOW)
    slow = api.subject_of(folder / "small.h5", Question(batch_size=32, transform=f"{folder / 'slow.py'}:slow"))
    return {
        "small rows, 512 B": store_subject(folder / "small.h5", 256, "shuffled"),
        "rows of 12 KiB": store_subject(folder / "image.h5", 256, "shuffled"),
        "encoded photos": store_subject(folder / "photos.h5", 64, "shuffled"),
        "volumes of 2 MiB": store_subject(folder / "volume.h5", 4, "shuffled"),
        "transform of 2 ms": slow,
    }


def exhaustive(subject: Subject) -> tuple[dict[str, float], float]:
    """Samples/s of each loader and number of workers, at its best depth; and the seconds it took."""
    start, most = time.perf_counter(), 2 * processes.cores()
    made = [Setting("DataLoader", 0)]
    made += [Setting("DataLoader", n, depth) for n in range(1, most + 1) for depth in (1, 2, 4)]
    made += [Setting("Loader", n, depth * n) for n in range(1, most + 1) for depth in (1, 2, 4)]
    running = [Running(subject, one) for one in made]
    try:
        for _ in range(5):
            for one in running:
                one.repeat(0.6)
    finally:
        for one in running:
            one.close()
    best: dict[str, float] = {}
    for one in running:
        key = one.run.setting.key
        best[key] = max(best.get(key, 0.0), one.run.rate.value)
    return best, time.perf_counter() - start


def part_1_and_2(folder: Path, seconds: float) -> None:
    print("1, 2  the advice against an exhaustive sweep")
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
    for name, subject in subjects(folder).items():
        if only not in name:
            continue
        start = time.perf_counter()
        report = api.measure([subject], Question(seconds=seconds))
        took = time.perf_counter() - start
        advised = report.winner.advice.setting
        rates, whole = exhaustive(subject)
        best = max(rates, key=lambda key: rates[key])
        allowed = max(rate for key, rate in rates.items() if int(key.rpartition("/")[2]) <= processes.cores())
        contended = ", contended" if report.contention.contended else ""
        print(
            f"  {name:20s} {advised.label:24s} {rates[advised.key] / rates[best]:.3f} of {best:13s} "
            f"({rates[advised.key] / allowed:.3f} of the best within cores) "
            f"in {took:4.1f} s of {whole:5.1f} s ({took / whole:.2f}){contended}",
            flush=True,
        )


class Priced(Dataset[Any]):
    """Exactly one sample every `cost` seconds in each thread: what the system is late by, the next one makes up for."""

    def __init__(self, cost: float, busy: bool) -> None:
        self.cost, self.busy = cost, busy
        self.due: dict[int, float] = {}

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, i: int) -> torch.Tensor:
        me, now = threading.get_ident(), time.perf_counter()
        due = self.due.get(me, 0.0) + self.cost
        if now - due > 20 * self.cost:  # nobody asked for a while
            due = now + self.cost
        self.due[me] = due
        if not self.busy and due > now:
            time.sleep(due - now)
        while time.perf_counter() < due:
            pass
        return torch.zeros(1)


def part_3() -> None:
    print("3     reported ÷ true rate")
    for busy in (False, True):
        for how in (setting.processes(0), setting.processes(1), setting.processes(2), setting.threads(1)):
            running = Running(Subject("priced", "raw", Priced(0.003, busy), (), 16, "shuffled", ""), how)
            for _ in range(5):
                running.repeat(0.3)
            running.close()
            ratio = running.run.rate.value * 0.003 / max(how.workers, 1)
            print(f"  {'computes' if busy else 'sleeps'} 3 ms, {how.label:22s} {ratio:.3f}", flush=True)


def part_4(folder: Path, seconds: float) -> None:
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 255, (20_000, 12_288), dtype=np.uint8))
    bigconv.convert(folder / "x.npy", folder / "x.mmap")
    asked = Question((0, 1), seconds=seconds)
    agree = pairs = 0
    for _ in range(10):
        a, b = (api.bench([folder / "x.mmap"], asked).winner.swept.runs for _ in range(2))
        for one, other in zip(a, b, strict=True):
            pairs, agree = pairs + 1, agree + one.rate.agrees(other.rate)
    print(f"4     intervals of two runs touch: {agree} of {pairs} pairs")
    code = "while True: pass"
    strangers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes.cores())]
    try:
        report = api.bench([folder / "x.mmap"], Question((0,), seconds=2))
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()
    print(f"      under a busy loop on every core: {report.notes}")


def part_5(folder: Path) -> None:
    np.save(folder / "y.npy", np.random.default_rng(0).integers(0, 255, (20_000, 12_288), dtype=np.uint8))
    bigconv.convert(folder / "y.npy", folder / "y.h5")
    subject = store_subject(folder / "y.h5", 256, "shuffled")
    runs = cold.measure(subject, [setting.processes(0)], 2.0, 0.0, lambda _: None)
    warm = Running(subject, setting.processes(0))
    warm.repeat(0.5)
    warm.close()
    run = runs[0]
    rates = f"cold {run.rate.value:,.0f}, warm {warm.run.rate.value:,.0f} samples/s"
    print(f"5     {run.before:.1%} resident before, {run.after:.1%} after; {rates}")


def part_6(folder: Path, seconds: float) -> None:
    (folder / "cost.py").write_text(
        "import time\n"
        "def wait(row, s):\n    end = time.perf_counter() + s\n"
        "    while time.perf_counter() < end: pass\n    return row\n"
        "def even(row): return wait(row, 0.0010)\n"
        "def slower(row): return wait(row, 0.00125)\n"
    )
    np.save(folder / "z.npy", np.zeros((5_000, 512), np.uint8))
    bigconv.convert(folder / "z.npy", folder / "z.mmap")

    def asked(name: str) -> Question:
        return Question((0,), 16, transform=f"{folder / 'cost.py'}:{name}", seconds=seconds)

    old = api.bench([folder / "z.mmap"], asked("even")).to_json()
    failed: Callable[[str], bool] = lambda name: api.compare(api.bench([folder / "z.mmap"], asked(name)), old, 0.10)  # noqa: E731
    print(f"6     the same loader fails {sum(failed('even') for _ in range(10))} times of 10", flush=True)
    print(f"      slowed by 20 %, it fails {sum(failed('slower') for _ in range(10))} times of 10")


def main() -> None:
    seconds = float(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 6.0
    parts = {"1": part_1_and_2, "3": lambda *_: part_3(), "4": part_4, "5": lambda f, _: part_5(f), "6": part_6}
    chosen = [a for a in sys.argv[1:] if a in parts] or list(parts)
    for part in chosen:
        with tempfile.TemporaryDirectory() as name:
            parts[part](Path(name), seconds if part == "1" else seconds / 3)


if __name__ == "__main__":
    main()
