"""`bigconv.convert`: the whole line, plan → blocks → writer → verify → publish."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigconv import registry
from bigconv.conversion.execute import run
from bigconv.conversion.options import find_source, make_steps
from bigconv.conversion.plan import Plan, make_plan
from bigconv.conversion.publish import building, check_dest
from bigconv.errors import FindingsError, UsageError
from bigconv.manifest import Manifest
from bigconv.sources.base import Reject

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]  # rows done since the last call, bytes done since


@dataclass(frozen=True)
class Outcome:
    """What a conversion did."""

    manifest: Manifest
    dest: Path
    seconds: float
    bytes: int
    rejects: tuple[Reject, ...] = ()


@dataclass(frozen=True)
class Request:
    """A conversion as a user asks for it; the names and defaults are the command line's."""

    sources: tuple[Path, ...]
    dest: Path
    from_: str | None = None
    to: str | None = None
    steps: tuple[tuple[str, str], ...] = ()
    fit: str = "cover"
    workers: int = field(default_factory=lambda: available_cores())
    overwrite: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> Plan:
        """Look at everything and change nothing. Raises what `convert` would."""
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers}: expected 0 or more")
        store = registry.store_for(self.dest, self.to)
        check_dest(self.dest, list(self.sources), self.overwrite)
        names = dict(self.steps)
        options = dict(self.options)
        hints = {"workers": self.workers, "sizes_matter": "resize" not in names}
        source = find_source(self.sources, self.from_, options, hints)
        if options.get("keep_encoded") and {"resize", "layout"} & set(names):
            raise UsageError("--keep-encoded keeps image files as they are: it excludes --resize and --layout")
        steps, schema = make_steps(source, self.steps, self.fit)
        return make_plan(source, steps, schema, store)

    def run(self, progress: Progress | None = None) -> Outcome:
        """Convert. Raises `FindingsError` when inputs had to be rejected: then nothing is published."""
        plan = self.plan()
        return execute(plan, self.dest, self.workers, progress)


def execute(plan: Plan, dest: Path, workers: int, progress: Progress | None = None) -> Outcome:
    """Run a plan into `dest`."""
    start = time.perf_counter()
    rejects: list[Reject] = []
    with building(dest, plan.store, plan.schema, plan.inputs) as builder:
        nbytes = 0
        for item in run(plan, workers):
            if isinstance(item, Reject):
                rejects.append(item)
                continue
            builder.append(item)
            nbytes += item.nbytes
            if progress is not None:
                progress(len(item), item.nbytes)
        if builder.rows + len(rejects) != plan.inputs:
            raise AssertionError(f"{plan.inputs} inputs became {builder.rows} rows and {len(rejects)} rejects")
        if rejects:
            listed = "\n".join(f"  {r.path}: {r.error}" for r in rejects[:5])
            more = f"\n  … and {len(rejects) - 5} more" if len(rejects) > 5 else ""
            raise FindingsError(
                f"{len(rejects)} of {plan.inputs} inputs can't be read, so nothing was published:\n{listed}{more}"
            )
        manifest = builder.finish(plan.source.describe(), plan.recipe())
    return Outcome(manifest, dest, time.perf_counter() - start, nbytes, tuple(rejects))


def convert(
    sources: PathLike | Sequence[PathLike],
    dest: PathLike,
    *,
    from_: str | None = None,
    to: str | None = None,
    resize: int | str | tuple[int, int] | None = None,
    fit: str = "cover",
    dtype: str | None = None,
    layout: str | None = None,
    keep_encoded: bool = False,
    label_from: str | None = None,
    axis: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Turn raw files into a store at `dest`; the same as `bigconv convert` with the same options.

    Steps run in the order resize, dtype, layout. Returns the new store's manifest.
    Raises `InputError`, `OutputError`, `UsageError`, or `FindingsError` when inputs can't be read.
    """
    steps = []
    if resize is not None:
        steps.append(("resize", "x".join(map(str, resize)) if isinstance(resize, tuple) else str(resize)))
    steps += [(name, value) for name, value in (("dtype", dtype), ("layout", layout)) if value is not None]
    several = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    request = Request(
        tuple(Path(source) for source in several),
        Path(dest),
        from_=from_,
        to=to,
        steps=tuple(steps),
        fit=fit,
        workers=available_cores() if workers is None else workers,
        overwrite=overwrite,
        options={"keep_encoded": keep_encoded, "label_from": label_from, "axis": axis},
    )
    return request.run().manifest


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
