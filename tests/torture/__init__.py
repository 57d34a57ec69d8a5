"""Nothing lost, shown by figures. `make torture` runs it all and prints one table; `test_quick.py` a little of each.

Each module has `run(scale)`, which yields one `Case` a case tried; `scale` 1.0 is the whole, less is quicker.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One case tried; `failure` says what went wrong, empty when nothing did; `skipped` why it could not be tried."""

    name: str
    failure: str = ""
    skipped: str = ""


Figures = tuple[int, list[Case], list[Case], float]  # cases tried, failures, cases that could not be tried, seconds


TOLD_SECONDS = 60.0  # how often a test says how far it is


def figures(name: str, scale: float) -> Figures:
    """Run one test. Failures, and now and then how far it is, go to standard error at once."""
    start, tried, parent = time.perf_counter(), 0, os.getppid()
    told = start
    failures: list[Case] = []
    skipped: list[Case] = []
    for case in importlib.import_module(f"tests.torture.{name}").run(scale):
        if os.getppid() != parent:
            sys.exit("whoever asked for this has ended")
        if case.skipped:
            skipped.append(case)
            continue
        tried += 1
        if case.failure:
            failures.append(case)
            print(f"{name}: {case.name}: {case.failure}", file=sys.stderr, flush=True)
        if time.perf_counter() - told >= TOLD_SECONDS:
            told = time.perf_counter()
            print(f"{name}: {tried:,} cases in {told - start:.0f} s", file=sys.stderr, flush=True)
    return tried, failures, skipped, time.perf_counter() - start
