"""Rates with intervals, and quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLOOR = (
    0.01  # of the rate: clocks, caches and memory layout move it by as much from run to run, whatever the repeats say
)

# Student's t, 97.5 %, by degrees of freedom from 1 on
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Rate:
    """Samples a second: all samples ÷ all wall time, and the 95 % interval of that ratio over the repeats."""

    value: float
    low: float
    high: float
    repeats: int

    @property
    def spread(self) -> float:
        """Half the interval, as a share of the rate."""
        return (self.high - self.low) / 2 / self.value if self.value else math.inf

    def agrees(self, other: Rate) -> bool:
        """Whether the intervals touch."""
        return self.low <= other.high and other.low <= self.high


def rate_of(samples: Sequence[int], seconds: Sequence[float]) -> Rate:
    """The ratio of the sums; its variance is that of a ratio estimator (Cochran 1977, Sampling Techniques, 6.4).

    One repeat has no interval: it then reaches from 0 to infinity.
    """
    k, wall = len(seconds), sum(seconds)
    value = sum(samples) / wall
    if k < 2:
        return Rate(value, 0.0, math.inf, k)
    residuals = sum((n - value * s) ** 2 for n, s in zip(samples, seconds, strict=True))
    error = math.sqrt(residuals / (k * (k - 1))) / (wall / k)
    half = max(error * _t(k), FLOOR * value)
    return Rate(value, max(0.0, value - half), value + half, k)


def ratio_of(a: Sequence[float], b: Sequence[float]) -> Rate:
    """The ratio of rates that were measured in pairs, one right after the other: the geometric mean of `aᵢ ÷ bᵢ`.

    What slows both of a pair cancels out, so this tells two apart long before their own intervals do.
    One pair has no interval: it then reaches from 0 to infinity.
    """
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    k = len(logs)
    mean = sum(logs) / k
    if k < 2:
        return Rate(math.exp(mean), 0.0, math.inf, k)
    half = _t(k) * math.sqrt(sum((x - mean) ** 2 for x in logs) / (k * (k - 1)))
    return Rate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), k)


def _t(repeats: int) -> float:
    return _T[repeats - 2] if repeats - 2 < len(_T) else 1.96


def quantile(ordered: Sequence[float], q: float) -> float:
    """Of values in ascending order, by nearest rank: a value that did occur."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]
