"""`python -m tests.torture [SCALE] [NAME...]`: all tests, one table: test, cases tried, failures, seconds.

As many run at once as there are cores, each in a process of its own; JOBS=1 for one after the other.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from bigconv.conversion.request import available_cores
from tests.torture import Figures, figures

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if not p.stem.startswith("test_"))
#: Begun first, as they take longest.
LONG = ("round_trip", "flips", "faults", "syscalls", "power", "memory", "kills", "loading", "fuzz")


def main() -> int:
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    names = sorted(sys.argv[2:] or NAMES, key=lambda name: (*LONG, name).index(name))
    jobs = min(len(names), int(os.environ.get("JOBS", available_cores())))
    print(f"{'test':16} {'cases':>9} {'failures':>9} {'seconds':>8}", flush=True)
    begun, sums = time.perf_counter(), [0, 0]
    for name, (tried, failures, skipped, seconds) in _done(names, scale, jobs):
        print(f"{name:16} {tried:9,} {len(failures):9,} {seconds:8.1f}", flush=True)
        for case in skipped:
            print(f"    NOT TRIED: {case.name}: {case.skipped}", flush=True)
        for case in failures[:5]:
            print(f"    {case.name}: {case.failure}", flush=True)
        sums = [sums[0] + tried, sums[1] + len(failures)]
    print(f"{'all':16} {sums[0]:9,} {sums[1]:9,} {time.perf_counter() - begun:8.1f}", flush=True)
    return 1 if sums[1] else 0


def _done(names: list[str], scale: float, jobs: int) -> Iterator[tuple[str, Figures]]:
    """Each test with its figures, as they come."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, jobs), context, max_tasks_per_child=1) as pool:
        running = {pool.submit(figures, name, scale): name for name in names}
        for future in as_completed(running):
            yield running[future], future.result()


if __name__ == "__main__":
    sys.exit(main())
