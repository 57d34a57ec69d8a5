"""Where a plan is cut into parts: a pure function of source and recipe, never of workers or of what turns out bad."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from bigconv.block import Index
from bigconv.conversion.apart import call_apart
from bigconv.conversion.plan import Plan
from bigconv.conversion.task import Work, run_span
from bigconv.dataset import part_name
from bigconv.digest import block_rows
from bigconv.errors import BigconvError, UsageError
from bigconv.registry import STORES
from bigconv.sources.base import Span

DEFAULT_SIZE = 256 * 10**6  # 256 MB: few files, each still quick to copy, upload, check and make again
MOST_PARTS = 100_000  # a manifest of 20 MB; more files than that in one folder help nobody
SAMPLE_SPANS = 5  # where rows are looked at when only reading tells their size: evenly over the whole
SAMPLE_INPUTS = 16  # at each of them
LENGTHS = 1 << 18  # rows whose lengths are held at once
_UNITS = {"": 1, "b": 1} | {f"{p}{i}b": b**n for n, p in enumerate("kmgt", 1) for i, b in (("", 1000), ("i", 1024))}

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Cut:
    """Rows a part, or bytes of data a part, or the number of parts: one of them."""

    rows: int | None = None
    size: int | None = None
    shards: int | None = None

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) > 1:
            raise UsageError(f"--{' and --'.join(given)} exclude one another: each says how large the parts are")
        for name in given:
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected 1 or more")

    def to_json(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def parse_size(text: str | int, option: str = "--size") -> int:
    """Bytes of `256MB`, `1GiB` or a number. Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"{option} {text}: expected bytes such as 256MB, 1GB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


@dataclass(frozen=True)
class PartSpec:
    """One part to make: inputs `start` to `stop` of the plan, in spans where nobody can count inputs ahead."""

    number: int
    name: str
    start: int
    stop: int
    value: Value = None


@dataclass(frozen=True)
class PartPlan(Plan):
    """The plan of one part: the same conversion, fewer spans."""

    whole: str = ""  # hash of the whole plan
    number: int = 0
    inputs_of: tuple[int, int] = (0, 0)  # its first input, and the first after it

    def recipe(self) -> dict[str, Any]:
        return {**super().recipe(), "part": self.number}

    def document(self) -> dict[str, Any]:
        return {"recipe": self.recipe(), "source": self.source.describe(), "whole": self.whole, "part": self.number}

    @property
    def files(self) -> tuple[int, int]:
        return self.inputs_of if self.source.inputs == len(self.source.files) else (0, 0)

    @property
    def hash(self) -> str:
        """Taken from the whole plan's: its list of files is not gone through again for each part."""
        return part_hash(self.whole, self.number)


def part_hash(whole: str, number: int) -> str:
    return hashlib.sha256(f"bigconv part {whole} {number}".encode()).hexdigest()


def part_plan(plan: Plan, whole: str, spec: PartSpec) -> PartPlan:
    told = {f.name: getattr(plan, f.name) for f in fields(Plan)}
    told["spans"] = _spans(plan, spec.start, spec.stop)
    return PartPlan(**told, whole=whole, number=spec.number, inputs_of=(spec.start, spec.stop))


def _spans(plan: Plan, start: int, stop: int) -> list[Span]:
    if plan.source.inputs is None:
        return list(plan.spans[start:stop])
    ends = np.cumsum([len(span) for span in plan.spans])
    found = []
    for i in range(int(np.searchsorted(ends, start, side="right")), len(plan.spans)):
        span, begin = plan.spans[i], int(ends[i]) - len(plan.spans[i])
        if begin >= stop:
            break
        found.append(Span(span.start + max(0, start - begin), span.start + min(len(span), stop - begin)))
    return found


def cut_plan(plan: Plan, cut: Cut, groups: Sequence[tuple[Value, int]] = (), first: int = 0) -> tuple[PartSpec, ...]:
    """The parts of a plan. `groups`: runs of rows that no part may mix, as (value, rows); `first`: number of part 0.

    Raises `UsageError` for a cut that makes no sense of these inputs.
    """
    plan_hash = plan.hash
    extension = STORES[plan.store.name].extensions[0] if plan.store.name in STORES else f".{plan.store.name}"
    pieces: list[tuple[int, int, Value]] = []
    start = 0
    for value, rows in groups or [(None, -1)]:
        stop = units(plan) if rows < 0 else start + rows
        bounds = [start, stop] if groups and not cut.to_json() else _bounds(plan, cut, start, stop)
        pieces += [(a, b, value) for a, b in pairwise(bounds)]
        start = stop
    if len(pieces) > MOST_PARTS:
        raise UsageError(f"that makes {len(pieces):,} parts; up to {MOST_PARTS:,} are sensible: choose larger ones")
    return tuple(
        PartSpec(number, part_name(plan_hash, number, extension), a, b, value)
        for number, (a, b, value) in enumerate(pieces, first)
    )


def units(plan: Plan) -> int:
    """What parts are counted in: inputs, or spans where only reading counts inputs."""
    return len(plan.spans) if plan.source.inputs is None else sum(len(span) for span in plan.spans)


def _bounds(plan: Plan, cut: Cut, start: int, stop: int) -> list[int]:
    total = stop - start
    if cut.shards is not None:
        if cut.shards > total:
            what = "spans that can be read apart" if plan.source.inputs is None else "rows"
            raise UsageError(f"--shards {cut.shards}: there are only {total} {what}")
        return [start + total * i // cut.shards for i in range(cut.shards + 1)]
    if cut.rows is not None:
        if plan.source.inputs is None:
            raise UsageError(
                f"--rows: how many rows {plan.source.name} input has is only known when it is read.\n"
                "Give --shard-size or --shards, or convert to one store first and shard that"
            )
        return _even(start, stop, cut.rows)
    size = DEFAULT_SIZE if cut.size is None else cut.size
    if plan.source.inputs is None:
        return _by_weight([len(span) for span in plan.spans], size / _bytes_an_input(plan))
    if plan.rows_stay and not any(f.ragged for f in plan.schema):
        rows = max(1, size // max(1, sum(f.row_bytes for f in plan.schema)))
        of_block = block_rows(plan.schema)
        # whole canonical blocks, so that no block's digest has to be put together from two parts, unless a part has so
        # few of them that it would become much smaller
        return _even(start, stop, rows // of_block * of_block if rows >= 8 * of_block else rows)
    measure = getattr(plan.source, "row_bytes", None)
    if measure is not None and not plan.steps:
        return _by_bytes(measure, start, stop, size)
    return _even(start, stop, max(1, int(size / _bytes_an_input(plan))))


def _even(start: int, stop: int, rows: int) -> list[int]:
    return [*range(start, stop, rows), stop]


def _by_weight(weights: Sequence[int], size: float) -> list[int]:
    """Spans in runs of about `size` units."""
    bounds, held = [0], 0
    for i, weight in enumerate(weights):
        if held and held + weight > size:
            bounds.append(i)
            held = 0
        held += weight
    return [*bounds, len(weights)]


def _by_bytes(measure: Any, start: int, stop: int, size: int) -> list[int]:
    """Rows in runs of at most `size` bytes, or of one row that is larger. `measure(rows)`: int64 bytes of each."""
    bounds, held = [start], 0
    for a in range(start, stop, LENGTHS):
        each: Index = measure(np.arange(a, min(a + LENGTHS, stop), dtype=np.int64))
        total, at = np.cumsum(each), 0
        while at < len(each):
            before = int(total[at - 1]) if at else 0
            fits = int(np.searchsorted(total, size - held + before, side="right"))
            if fits == len(each):
                held += int(total[-1]) - before
                break
            if fits == at and not held:
                fits += 1  # one row that is larger than a part
            held, at = 0, fits
            if a + fits < stop:
                bounds.append(a + fits)
    return [*bounds, stop]


def _bytes_an_input(plan: Plan) -> float:
    """About how many bytes of data an input (or one unit of a span) becomes, by a few of them, read apart."""
    count = min(SAMPLE_SPANS, len(plan.spans))
    some = [plan.spans[i] for i in sorted({round(i) for i in np.linspace(0, len(plan.spans) - 1, count)})]
    if plan.source.inputs is not None:
        some = [Span(s.start, min(s.stop, s.start + SAMPLE_INPUTS)) for s in some]
    try:
        total: int = call_apart(_sample, (plan.work, some), None)
    except BigconvError:  # an input that ends the process: the run will name it
        total = 0
    if total:
        return total / sum(map(len, some))
    return max(1.0, float(plan.source.files.sizes.sum()) / max(1, sum(map(len, plan.spans))))


def _sample(tell: Any, work: Work, spans: list[Span]) -> int:
    return sum(0 if item.block is None else item.block.nbytes for span in spans for item in run_span(work, span))
