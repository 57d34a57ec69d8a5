"""Holding a report against an earlier one: did loading get slower?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigconv.errors import InputError, UsageError

_SAME = ("batch_size", "access", "fields", "step_ms")  # figures with other ones aren't about the same thing
_MACHINE = ("system", "machine", "cores", "cuda", "python", "torch")  # … and on other ones they can't be compared


@dataclass(frozen=True)
class Change:
    """The setting that the baseline recommends, then and now; samples/s and their 95 % intervals."""

    path: str
    setting: str
    old: float
    new: float
    old_interval: tuple[float, float]
    new_interval: tuple[float, float]

    @property
    def slower(self) -> float:
        """Share of the old rate that is lost; negative where it became faster."""
        return 1 - self.new / self.old

    @property
    def certain(self) -> bool:
        """Whether the intervals lie apart."""
        return self.new_interval[1] < self.old_interval[0] or self.old_interval[1] < self.new_interval[0]

    def fails(self, limit: float) -> bool:
        """Slower by more than `limit`, and not by chance."""
        return self.slower > limit and self.certain

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "setting": self.setting,
            "baseline_samples_per_second": self.old,
            "samples_per_second": self.new,
            "slower": self.slower,
            "certain": self.certain,
        }

    def words(self) -> str:
        much = f"{abs(self.slower):.1%} {'slower' if self.slower > 0 else 'faster'}"
        sure = "" if self.certain else ", which the intervals don't tell from chance"
        return (
            f"{self.path}, {self.setting}: {self.new:,.0f} samples/s, {much} than the baseline's {self.old:,.0f}{sure}"
        )


def load(path: Path) -> dict[str, Any]:
    """A report of `bench --json`. Raises `InputError`."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    there = isinstance(document, dict) and document.get("command") == "bench" and document.get("subjects")
    if not there or document.get("schema_version") != 1:
        raise InputError(f"{path}: not a report of bench. Make one: bigconv bench STORE --json > {path.name}")
    return dict(document)


def share(text: str) -> float:
    """`10%` or `0.1`. Raises `UsageError`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UsageError(f"--fail-if-slower {text}: expected a share below 1, as 10% or 0.1")
    return value


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every subject that both reports have. Raises `UsageError` where there is none, or they aren't alike."""
    then = {one["path"]: one for one in old["subjects"]}
    changes = []
    for now in new["subjects"]:
        before = then.get(now["path"])
        if before is None or before.get("recommendation") is None:
            continue
        for key in _SAME:
            if before.get(key) != now.get(key):
                raise UsageError(
                    f"--baseline: {now['path']} was measured with {key.replace('_', '-')} {before.get(key)} then, and "
                    f"{now.get(key)} now: measure both alike"
                )
        wanted = run_key(before["recommendation"])
        a = next(run for run in before["runs"] if run_key(run) == wanted)
        b = next((run for run in now["runs"] if run_key(run) == wanted), None)
        if b is None:
            raise UsageError(f"--baseline: {wanted}, which it recommends, was not measured now: name it with --workers")
        changes.append(Change(now["path"], wanted, *_rates(a, b), _interval(a), _interval(b)))
    if not changes:
        raise UsageError(f"--baseline: it has none of {', '.join(one['path'] for one in new['subjects'])}")
    return changes


def other_machine(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What both machines don't have in common, in words."""
    then, now = old.get("machine", {}), new.get("machine", {})
    told = [f"{key} {then.get(key)} then, {now.get(key)} now" for key in _MACHINE if then.get(key) != now.get(key)]
    return [f"the baseline may be of another machine: {'; '.join(told)}"] if told else []


def run_key(run: Mapping[str, Any]) -> str:
    """`DataLoader/2`, as `Setting.key`."""
    return f"{run['loader']}/{run['threads'] if run['loader'] == 'Loader' else run['num_workers']}"


def _rates(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    return float(a["samples_per_second"]), float(b["samples_per_second"])


def _interval(run: Mapping[str, Any]) -> tuple[float, float]:
    low, high = run["samples_per_second_95"]
    return float(low), math.inf if high is None else float(high)
