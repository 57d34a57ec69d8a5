"""One part of a sharded conversion: a task that can be done again without harm, and whose status is in storage.

`run_task(job, task)` takes paths and numbers only, so any engine can run it anywhere the folder can be seen. What a
part has become is noted in `DEST.partial/results/`, durably, when the part is: whoever asks again is told from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bigconv import class_counts, fsio
from bigconv.class_counts import Counts
from bigconv.conversion.build import building, partial_folder, rejects_file, work_path
from bigconv.conversion.parts_cut import PartPlan, PartSpec, part_hash, part_plan
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, Progress, all_there, fill, strictly
from bigconv.digest import Digester, InnerDigester
from bigconv.errors import IncompleteStore, OutputError
from bigconv.hashes import width
from bigconv.locks import Lock
from bigconv.view.opening import Opened, OpenedDataset, open_store
from bigconv.view.table import StoreView

RESULTS = "results"
PATIENCE_SECONDS = 10.0  # for a worker of a run that was killed to be gone too


@dataclass(frozen=True)
class Output:
    """One dataset to make. `folder`: below the destination, empty for itself; `kept`: parts that are there already."""

    folder: str
    plan: Plan
    whole: str  # the plan's hash
    parts: tuple[PartSpec, ...]
    kept: OpenedDataset | None = None

    @property
    def base(self) -> int:
        """Rows before those of the parts to make."""
        return 0 if self.kept is None else self.kept.manifest.rows


@dataclass(frozen=True)
class Job:
    """What all tasks share; it travels to a worker once."""

    dest: Path
    outputs: tuple[Output, ...]
    policy: Policy

    @property
    def plan(self) -> Plan:
        """The plan that the unfinished work goes by."""
        return self.outputs[0].plan

    @property
    def folder(self) -> Path:
        return partial_folder(self.dest)

    @property
    def work(self) -> Path:
        """What will be the destination."""
        return work_path(self.folder, self.dest)

    @property
    def tasks(self) -> list[Task]:
        """Every part, in order."""
        return [Task(o, n) for o, output in enumerate(self.outputs) for n in range(len(output.parts))]

    def spec(self, task: Task) -> PartSpec:
        return self.outputs[task.output].parts[task.number]

    def path(self, task: Task) -> Path:
        """Where the part is made."""
        return self.work / self.outputs[task.output].folder / self.spec(task).name

    def result_file(self, task: Task) -> Path:
        return self.folder / RESULTS / f"{task.output}-{self.spec(task).name}.json"

    def rejects_file(self, task: Task) -> Path:
        return self.result_file(task).with_suffix(".rejects.jsonl")

    def part_hash(self, task: Task) -> str:
        return part_hash(self.outputs[task.output].whole, self.spec(task).number)

    def part_plan(self, task: Task) -> PartPlan:
        output = self.outputs[task.output]
        return part_plan(output.plan, output.whole, self.spec(task))


@dataclass(frozen=True)
class Task:
    """Make part `number` of an output; with `start`, only hash it anew as of the row where it turned out to begin.

    `isolated`: read input by input, in a process that may die, to find the input that ends it.
    """

    output: int
    number: int
    start: int | None = None
    isolated: bool = False

    def retried(self) -> Task:
        return replace(self, isolated=True)


@dataclass(frozen=True)
class Result:
    """What a part has become. `inner`: field → hex digests of the dataset's canonical blocks that lie wholly in it,
    if it begins at row `start`; `bytes`: on disk; `counts`: rows of each class; `values`: bytes written in this run."""

    rows: int
    rejects: int
    bytes: int
    content_digest: str
    start: int
    inner: Mapping[str, str]
    counts: Counts
    values: int = 0


@dataclass(frozen=True)
class Control:
    """How a task and who runs it talk. `tell(rows, bytes, rejects)`: done since the last call; `stopped()`: whether to
    stop at the next checkpoint; `reading(yes)`: inputs are read from now on, which may hang, or no longer."""

    tell: Progress
    stopped: Callable[[], bool]
    reading: Callable[[bool], None] = lambda _yes: None


class Engine(Protocol):
    """Runs tasks somewhere, in any order. A task that fails raises; one whose process dies is run again, isolated."""

    def run(self, job: Job, tasks: Sequence[Task], control: Control) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, as they are done. Raises `Interrupted` when `control.stopped()` says so."""


def run_task(job: Job, task: Task, control: Control, workers: int = 0) -> Result:
    """Do a task, or find it done. `workers`: processes that decode, besides this one.

    Raises what a conversion raises, and `Interrupted` when `control.stopped()` says so.
    """
    path = job.path(task)
    known = read_result(job, task)
    if known is not None and not (known.rows and not path.exists()):
        if task.start is None or task.start == known.start:
            return replace(known, values=0)
        inner = hash_part(open_store(path), task.start, control.tell)
        return _record(job, task, replace(known, values=0, start=task.start, inner=_hex(inner)))
    start = job.spec(task).start if job.outputs[task.output].plan.source.inputs is not None else 0
    start += job.outputs[task.output].base
    if path.exists():  # published, but its maker was killed before it could say so
        return _record(job, task, _result(job, task, start, hash_part(open_store(path), start, control.tell), 0))
    with fsio.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        job.result_file(task).parent.mkdir(exist_ok=True)
    return _record(job, task, _made(job, task, start, control, workers))


def _made(job: Job, task: Task, start: int, control: Control, workers: int) -> Result:
    path, plan = job.path(task), job.part_plan(task)
    _await_lock(partial_folder(path))
    with building(path, plan) as build:
        if build.resumed_rows:
            control.tell(build.resumed_rows, 0, build.rejects)
        control.reading(True)
        values = fill(build, plan, job.policy, workers or int(task.isolated), control.stopped, control.tell)
        control.reading(False)
        if job.policy.strict and build.rejects:
            raise strictly(build)
        all_there(plan, build.rows, build.rejects)
        if build.rows:
            build.finish(start)
        else:
            build.keep_rejects()
        return _result(job, task, start, build.inner, values)


def _result(job: Job, task: Task, start: int, inner: Mapping[str, bytes], values: int) -> Result:
    """The result of a part that has been published, or that has no row; its list of rejects is put aside."""
    path, rejects = job.path(task), job.rejects_file(task)
    beside = rejects_file(path)
    if beside.exists():
        with fsio.writing(rejects):
            os.replace(beside, rejects)
        fsio.sync_folder(rejects.parent)
    lines = rejects.read_bytes().count(b"\n") if rejects.exists() else 0
    if not path.exists():
        return Result(0, lines, 0, "", start, {}, {}, values)
    found = open_store(path)
    manifest = found.manifest
    told = (manifest.rows, lines, found.bytes(), manifest.content_digest, start)
    return Result(*told, _hex(inner), manifest.counts, values)


def _hex(tables: Mapping[str, bytes]) -> dict[str, str]:
    return {name: table.hex() for name, table in tables.items()}


def hash_part(part: Opened, start: int, tell: Progress | None = None) -> dict[str, bytes]:
    """Field → digests of the canonical blocks inside a store that begins at row `start` of a dataset.

    What is read is proven on the way: raises `IncompleteStore` when it is not what its manifest says.
    """
    schema, algorithm = part.manifest.schema, part.manifest.digests.algorithm
    own, inner = Digester(schema, algorithm=algorithm), InnerDigester(schema, start, algorithm)
    with StoreView.of([part]) as view:
        for block in view.blocks():
            own.update(block)
            inner.update(block)
            if tell is not None:
                tell(0, 0, 0)
    found = own.finish()
    for f in schema:
        if found.tables[f.name] != part.manifest.digests.tables[f.name]:
            wrong = next(
                i for i in range(found.blocks) if found.block(f.name, i) != part.manifest.digests.block(f.name, i)
            )
            raise IncompleteStore(
                f"{part.path}: field {f.name}, from row {wrong * found.block_rows} on: not the bytes that were written"
            )
    return inner.finish()


def _record(job: Job, task: Task, result: Result) -> Result:
    """Note a result where everybody finds it."""
    body = asdict(result)
    del body["values"]
    body["counts"] = class_counts.to_json(result.counts)
    body["plan"] = job.part_hash(task)
    fsio.replace_file(job.result_file(task), json.dumps(body, sort_keys=True).encode())
    return result


def read_result(job: Job, task: Task) -> Result | None:
    """What was noted of a part; None when nothing, or nothing that can be believed, was."""
    try:
        body: dict[str, Any] = json.loads(job.result_file(task).read_bytes())
        if body.pop("plan") != job.part_hash(task):
            return None
        plan = job.outputs[task.output].plan
        counts = class_counts.from_json(body.pop("counts"), plan.schema, body["rows"])
        result = Result(**body, counts=counts)
        size = 2 * width(plan.digest)  # hex
        return result if all(len(table) % size == 0 for table in result.inner.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _await_lock(folder: Path) -> None:
    """Wait until nobody writes in a folder: the worker of a run that was killed takes a moment to end, too."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (folder / "lock").exists():
        try:
            Lock(folder / "lock").release()
            return
        except OutputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
