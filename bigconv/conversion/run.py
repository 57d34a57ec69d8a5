"""Run a plan into a destination: spans out, items in, checkpoints, Ctrl-C, and the decision to publish."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from bigconv.conversion.build import Build, building
from bigconv.conversion.limits import share, workers_within
from bigconv.conversion.plan import Plan
from bigconv.conversion.pool import run_parallel
from bigconv.conversion.ranks import Rank
from bigconv.conversion.task import Item, Work, run_span
from bigconv.errors import FindingsError, Interrupted, UsageError
from bigconv.manifest import Manifest
from bigconv.remote.urls import Url
from bigconv.schema import unknown
from bigconv.sources.base import Span

ENGINES = ("serial", "local", "dask")

Progress = Callable[[int, int, int], None]  # rows, bytes and rejects since the last call


@dataclass(frozen=True)
class Policy:
    """How a run goes, which never shows in the bytes.

    `max_rejects`: a number, or a part of the inputs such as `1%`. `timeout`: seconds that one input may take.
    `memory_limit`: bytes that all processes may take together: fewer workers then, each held to its share.
    `engine`: where parts are made: `serial` (here, without any other process), `local`, `dask` or `dask:ADDRESS`.
    `rank`: make this rank's parts only, and publish nothing; `finalize`: publish what all ranks have made.
    """

    workers: int
    max_rejects: str = "0"
    strict: bool = False
    restart: bool = False
    timeout: float | None = 120.0
    start_method: str | None = None
    memory_limit: int | None = None
    engine: str = "local"
    rank: Rank | None = None
    finalize: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers}: expected 0 or more")
        if self.timeout is not None and self.timeout <= 0:
            raise UsageError(f"--timeout {self.timeout:g}: expected seconds, more than 0")
        self.allowed(0)
        self._check_engine()
        if self.engine == "serial":
            object.__setattr__(self, "workers", 0)
        object.__setattr__(self, "workers", workers_within(self.workers, self.memory_limit))

    @property
    def worker_bytes(self) -> int | None:
        """What each worker process may allocate; None for any."""
        return share(self.workers, self.memory_limit)

    @property
    def elsewhere(self) -> bool:
        """Whether parts may be made by processes in another folder: then paths have to be absolute."""
        return self.engine.startswith("dask:")

    def inputs(self, whole: int | None) -> int | None:
        """About how many of all inputs are this process's."""
        return whole if whole is None or self.rank is None else -(-whole // self.rank.count)

    def _check_engine(self) -> None:
        name, colon, address = self.engine.partition(":")
        if name not in ENGINES:
            raise UsageError(f"--engine: {unknown('engine', name, ENGINES)}")
        if colon and (name != "dask" or not address):
            raise UsageError(f"--engine {self.engine}: expected {name}" + ":HOST:PORT" * (name == "dask"))
        if self.rank is None:
            return
        if self.finalize:
            raise UsageError("--finalize comes after all ranks are done: leave --rank out")
        if name == "dask":
            raise UsageError("--rank and --engine dask exclude one another: each shares the parts out")
        if self.restart:
            raise UsageError("--restart would drop the work of other ranks: remove DEST.partial before they begin")

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
    """What a conversion did. `status`: `done`, `unchanged`, or of a rank `made`, as it publishes nothing."""

    status: str
    manifest: Manifest
    dest: Path | Url
    seconds: float = 0.0
    rows: int = 0  # written in this run
    bytes: int = 0  # of their values
    rejects: int = 0
    resumed_rows: int = 0
    datasets: Mapping[str, Manifest] = field(default_factory=dict)  # of a sharded run: folder below `dest` → manifest
    rank: Rank | None = None  # that has made its parts: the manifests list those alone


def execute(plan: Plan, dest: Path, policy: Policy, progress: Progress | None = None) -> Outcome:
    """Run a plan into `dest`, going on from unfinished work where there is some.

    Raises `FindingsError` when too many inputs had to be rejected, `Interrupted` on Ctrl-C: both leave all work for the
    next run; nothing is published.
    """
    start = time.perf_counter()
    with building(dest, plan, policy.restart) as build:
        if progress is not None and build.resumed_rows:
            progress(build.resumed_rows, 0, build.rejects)
        with interruptible() as stop:
            alone = policy.workers == 0 or plan.in_order
            nbytes = fill(build, plan, policy, 0 if alone else policy.workers, stop.is_set, progress)
            _judge(build, plan, policy)
            manifest = build.finish()
    rows = build.rows - build.resumed_rows
    return Outcome("done", manifest, dest, time.perf_counter() - start, rows, nbytes, build.rejects, build.resumed_rows)


def fill(
    build: Build, plan: Plan, policy: Policy, workers: int, stopped: Callable[[], bool], progress: Progress | None
) -> int:
    """Read and write the spans that are left, by `workers` processes or here; bytes of the values that were written.

    No checkpoint at the end: it would wait for the disk, which writes on while all is read back. Raises `Interrupted`
    after one, at the end of a span, when `stopped()` says so.
    """
    nbytes, spans = 0, plan.spans[build.spans :]
    items: Any = _serial(plan.work, spans)
    if workers and spans:
        items = run_parallel(plan.work, spans, workers, policy.timeout, policy.start_method, policy.worker_bytes)
    try:
        for _, item in items:
            if item is None:
                build.span_done()
                if stopped():
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
    return nbytes


def _serial(work: Work, spans: Sequence[Span]) -> Iterator[tuple[int, Item | None]]:
    for number, span in enumerate(spans):
        for item in run_span(work, span):
            yield number, item
        yield number, None


def _judge(build: Build, plan: Plan, policy: Policy) -> None:
    """Every input is a row or a reject, and not too many are rejects."""
    inputs = build.rows + build.rejects if plan.inputs is None else plan.inputs
    if policy.strict and build.rejects:
        raise strictly(build)
    all_there(plan, build.rows, build.rejects)
    if build.rejects > policy.allowed(inputs):
        build.checkpoint()
        build.keep_unpublished()
        raise too_many(build.rejects, inputs, build.keep_rejects(), plan, plan.file_a_row)
    if build.rows == 0 and inputs:
        build.checkpoint()
        raise FindingsError("every input was left out: no row to publish")


def all_there(plan: Plan, rows: int, rejects: int) -> None:
    """Nothing was lost: each input is a row or a reject."""
    if plan.rows_stay and plan.inputs is not None and rows + rejects != plan.inputs:
        raise AssertionError(f"{plan.inputs} inputs became {rows} rows and {rejects} rejects")


def strictly(build: Build) -> FindingsError:
    """What `--strict` says of the first reject."""
    file = build.folder / "rejects.jsonl"
    return FindingsError(f"stopped at the first input that can't be read (--strict):\n{_first(file, 1, build.plan)}")


def too_many(rejects: int, inputs: int, file: Path, plan: Plan, retried: bool) -> FindingsError:
    """What is said when more inputs were rejected than may be.

    `file`: their list; `retried`: whether `--retry-rejects` can read them again.
    """
    mended = " Mended later: --retry-rejects" if retried else ""
    return FindingsError(
        f"{rejects:,} of {inputs:,} inputs can't be read, so nothing was published; all are in {file}:\n"
        f"{_first(file, 3, plan)}\n"
        f"Leave them out: the same command with --max-rejects {rejects}.{mended}"
    )


def _first(file: Path, n: int, plan: Plan) -> str:
    """Where and why, of the first rejects. The row in a file of many: what reads one says the line of it itself."""
    source = (plan.stands_for or plan).source
    many = len(source.files) != source.inputs
    with open(file, encoding="utf-8") as lines:
        entries = [json.loads(line) for line in islice(lines, n)]
    rows = [f", row {e['row']}" if many and e["stage"] not in ("read", "decode") else "" for e in entries]
    return "\n".join(f"  {e['path']}{row}: {e['error']}" for e, row in zip(entries, rows, strict=True))


@contextmanager
def interruptible() -> Iterator[threading.Event]:
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
