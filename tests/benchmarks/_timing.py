"""Interleaved repeats and medians: the machine is shared, so only ratios within one run mean anything."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable

#: Of commands that are timed: modules stay compiled, as pip leaves them, whatever the shell of the developer says.
INSTALLED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def lasting(way: Callable[[], int], seconds: float = 0.2) -> Callable[[], int]:
    """A way again and again for at least so long: an epoch of some milliseconds is over before threads that slept while
    others had their turn are awake and their cores' caches warm, which takes the first 10 ms of a turn."""

    def run() -> int:
        items, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            items += way()
        return items

    return run


def rates(
    ways: dict[str, Callable[[], int]],
    repeats: int = 5,
    warm: bool = True,
    after: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median of items ÷ wall seconds of each way, all ways in turn, `repeats` times.

    In another order each time: a way may find memory and disk as the one before has left them. `after`: clears away
    what a way has made, out of its time.
    """
    order, rng = list(ways.items()), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in ways}
    if warm:
        for way in ways.values():
            way()
            after()
    for _ in range(repeats):
        rng.shuffle(order)
        for name, way in order:
            start = time.perf_counter()
            items = way()
            found[name].append(items / (time.perf_counter() - start))
            after()
    return {name: statistics.median(values) for name, values in found.items()}


def table(title: str, found: dict[str, float], against: str, unit: str = "rows/s") -> None:
    """Print each rate and its ratio to one of them."""
    print(title)
    for name, rate in found.items():
        print(f"  {name:44s} {rate:14,.0f} {unit}   {rate / found[against]:6.2f}")
