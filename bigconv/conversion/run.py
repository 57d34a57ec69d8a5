"""Run a plan into a destination: spans out, items in, checkpoints, Ctrl-C, and the decision to publish."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bigconv.conversion.build import Build, building
from bigconv.conversion.plan import Plan
from bigconv.conversion.pool import run_parallel
from bigconv.conversion.task import Item, run_span
from bigconv.errors import FindingsError, Interrupted, UsageError
from bigconv.manifest import Manifest

Progress = Callable[[int, int, int], None]  # rows, bytes and rejects since the last call


@dataclass(frozen=True)
class Policy:
    """How a run goes, which never shows in the bytes.

    `max_rejects`: a number, or a part of the inputs such as `1%`. `timeout`: seconds that one input may take.
    """

    workers: int
    max_rejects: str = "0"
    strict: bool = False
    restart: bool = False
    timeout: float | None = 120.0
    start_method: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers}: expected 0 or more")
        if self.timeout is not None and self.timeout <= 0:
            raise UsageError(f"--timeout {self.timeout:g}: expected seconds, more than 0")
        self.allowed(0)

    def allowed(self, inputs: int) -> int:
        """How many of so many inputs may be rejected. Raises `UsageError`."""
        text = self.max_rejects.strip()
        try:
            if text.endswith("%"):
                share = float(text[:-1])
                if 0 <= share <= 100:
                    return int(inputs * share / 100)
            elif int(text) >= 0:
                return int(text)
        except ValueError:
            pass
        raise UsageError(f"--max-rejects {text}: expected a number such as 10, or a part such as 1%")


@dataclass(frozen=True)
class Outcome:
    """What a conversion did. `status`: `done` or `unchanged`."""

    status: str
    manifest: Manifest
    dest: Path
    seconds: float = 0.0
    rows: int = 0  # written in this run
    bytes: int = 0  # of their values
    rejects: int = 0
    resumed_rows: int = 0


def execute(plan: Plan, dest: Path, policy: Policy, progress: Progress | None = None) -> Outcome:
    """Run a plan into `dest`, going on from unfinished work where there is some.

    Raises `FindingsError` when too many inputs had to be rejected, `Interrupted` on Ctrl-C: both leave all work for the
    next run; nothing is published.
    """
    start = time.perf_counter()
    nbytes = 0
    with building(dest, plan, policy.restart) as build:
        if progress is not None and build.resumed_rows:
            progress(build.resumed_rows, 0, build.rejects)
        with _interruptible() as stop:
            items = _items(plan, policy, build.spans)
            try:
                for _, item in items:
                    if item is None:
                        build.span_done()
                        if stop.is_set():
                            build.checkpoint()
                            raise Interrupted(f"stopped after {build.rows:,} rows. The same command goes on from there")
                        continue
                    build.append(item)
                    size = 0 if item.block is None else item.block.nbytes
                    nbytes += size
                    if progress is not None:
                        progress(0 if item.block is None else len(item.block), size, len(item.rejects))
                    if policy.strict and item.rejects:
                        break
            finally:
                items.close()
            if not policy.strict or not build.rejects:
                build.checkpoint()
            _judge(build, plan, policy)
            manifest = build.finish()
    rows = build.rows - build.resumed_rows
    return Outcome("done", manifest, dest, time.perf_counter() - start, rows, nbytes, build.rejects, build.resumed_rows)


def _items(plan: Plan, policy: Policy, done: int) -> Any:
    """Items of the spans from number `done` on, in order."""
    spans = plan.spans[done:]
    if policy.workers == 0 or plan.in_order or not spans:
        return _serial(plan, done)
    return run_parallel(plan.work, spans, policy.workers, policy.timeout, policy.start_method)


def _serial(plan: Plan, done: int) -> Iterator[tuple[int, Item | None]]:
    for number, span in enumerate(plan.spans[done:]):
        for item in run_span(plan.work, span):
            yield number, item
        yield number, None


def _judge(build: Build, plan: Plan, policy: Policy) -> None:
    """Every input is a row or a reject, and not too many are rejects."""
    inputs = build.rows + build.rejects if plan.inputs is None else plan.inputs
    if policy.strict and build.rejects:
        raise FindingsError(f"stopped at the first input that can't be read (--strict):\n{_first(build, 1)}")
    if plan.rows_stay and build.rows + build.rejects != inputs:
        raise AssertionError(f"{inputs} inputs became {build.rows} rows and {build.rejects} rejects")
    if build.rejects > policy.allowed(inputs):
        file = build.keep_rejects()
        build.keep_unpublished()
        raise FindingsError(
            f"{build.rejects:,} of {inputs:,} inputs can't be read, so nothing was published; all are in {file}:\n"
            f"{_first(build, 3)}\n"
            f"Leave them out: the same command with --max-rejects {build.rejects}. Mended later: --retry-rejects"
        )
    if build.rows == 0 and inputs:
        raise FindingsError("every input was left out: no row to publish")


def _first(build: Build, n: int) -> str:
    import json

    lines = (build.folder / "rejects.jsonl").read_text().splitlines()[:n]
    return "\n".join(f"  {entry['path']}: {entry['error']}" for entry in map(json.loads, lines))


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C (or SIGTERM) into a wish to stop at the next span; the second stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def wish(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signals = [s for s in (signal.SIGINT, getattr(signal, "SIGTERM", None)) if s is not None]
    before = {s: signal.signal(s, wish) for s in signals}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
