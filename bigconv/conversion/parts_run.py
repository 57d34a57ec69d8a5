"""A sharded conversion from the plan to the published directory: parts by an engine, then the manifest, last."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigconv import __version__, dataset, fsio
from bigconv.block import Index
from bigconv.class_counts import summed
from bigconv.conversion.build import (
    begin_anew,
    known_work,
    put_in_place,
    rejects_file,
    remove_leftovers,
    remove_work,
    state_of,
)
from bigconv.conversion.engines import engine_for
from bigconv.conversion.parts import RESULTS, Control, Engine, Job, Output, Result, Task, read_result
from bigconv.conversion.parts_cut import PartSpec
from bigconv.conversion.ranks import at_work, makers, none_at_work
from bigconv.conversion.run import Outcome, Progress, interruptible, too_many
from bigconv.dataset import DatasetManifest, Part
from bigconv.digest import Digester, Digests, block_rows
from bigconv.errors import FindingsError, IncompleteStore, OutputError
from bigconv.hashes import width
from bigconv.locks import Lock
from bigconv.schema import Schema
from bigconv.view.opening import OpenedDataset
from bigconv.view.table import StoreView

Results = Mapping[Task, Result]


def execute_parts(job: Job, progress: Progress | None = None, engine: Engine | None = None) -> Outcome:
    """Make every part that isn't there yet, then publish them as a dataset, or add them to the one that is there.

    A policy's `rank` makes its own parts, and publishes nothing; with `finalize`, nothing is made.
    Raises `FindingsError` when too many inputs had to be rejected, `Interrupted` on Ctrl-C: both leave all work for the
    next run; nothing is published. Raises `IncompleteStore` when parts are missing that others were to make.
    """
    begun = time.perf_counter()
    rank = job.policy.rank
    mine = job.tasks if rank is None else rank.of(job.tasks)
    engine = engine or engine_for(job, len(mine))
    claim = _claimed(job) if rank is None else at_work(job.folder, rank, lambda: _begin(job))
    with claim, interruptible() as stop:
        control = Control(progress or (lambda _rows, _bytes, _rejects: None), stop.is_set)
        results, resumed = _made(job, mine, engine, control)
        if rank is not None:
            manifests = {output.folder: _of_rank(job, number, results) for number, output in enumerate(job.outputs)}
        else:
            judge(job, results)
            results = hashed(job, results, engine, control)
            manifests = publish(job, results)
    rows = sum(result.rows for result in results.values())
    return Outcome(
        "done" if rank is None else "made",
        next(iter(manifests.values())),
        job.dest,
        time.perf_counter() - begun,
        rows - resumed,
        sum(result.values for result in results.values()),
        sum(result.rejects for result in results.values()),
        resumed,
        manifests,
        rank,
    )


def _made(job: Job, tasks: Sequence[Task], engine: Engine, control: Control) -> tuple[dict[Task, Result], int]:
    """The results of tasks, those that weren't done before done now; and the rows of the others."""
    results = {task: result for task in tasks if (result := _done(job, task)) is not None}
    resumed = sum(result.rows for result in results.values())
    if resumed:
        control.tell(resumed, 0, sum(result.rejects for result in results.values()))
    left = [task for task in tasks if task not in results]
    if left and job.policy.finalize:
        raise _unmade(job, left)
    return results | (dict(_plain(engine.run(job, left, control))) if left else {}), resumed


def _unmade(job: Job, left: Sequence[Task]) -> IncompleteStore:
    """What `--finalize` says of parts that no rank has made yet."""
    everything = job.tasks
    names = [(job.outputs[t.output].folder + "/").lstrip("/") + f"part-{job.spec(t).number:05}" for t in left]
    told = ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
    ranks = makers(job.folder, [everything.index(task) for task in left])
    by = f"--rank {', --rank '.join(map(str, ranks[:4]))}{' …' * (len(ranks) > 4)}" if ranks else "--rank I/N"
    return IncompleteStore(
        f"{job.dest}: {len(left)} of {len(everything)} parts are not made yet: {told}.\n"
        f"Run the same command with {by} in place of --finalize; with neither, all that is missing is made here"
    )


def _of_rank(job: Job, number: int, results: Results) -> DatasetManifest:
    """What a rank has made of an output; its content digest is empty, as that is of all rows."""
    output = job.outputs[number]
    made = [(job.spec(task), result) for task, result in results.items() if task.output == number and result.rows]
    return _listing(output, sorted(made, key=lambda one: one[0].number))


def _plain(done: Iterator[tuple[Task, Result]]) -> Iterator[tuple[Task, Result]]:
    """Results by the tasks that were given, whatever was made of them on the way."""
    for task, result in done:
        yield Task(task.output, task.number), result


def _done(job: Job, task: Task) -> Result | None:
    """The result of a part that is there, or that has no row."""
    result = read_result(job, task)
    return None if result is None or (result.rows and not job.path(task).exists()) else result


def prepare(job: Job) -> None:
    """Make the folder of unfinished work, or find it. Raises `OutputError` when it is another conversion's.

    The caller holds its lock.
    """
    with fsio.writing(job.folder):
        job.folder.mkdir(exist_ok=True)
    if job.policy.restart or known_work(job.dest, job.plan) is None:
        _drop_unlisted(job)
        begin_anew(job.folder, job.plan)
    with fsio.writing(job.folder):
        (job.folder / RESULTS).mkdir(exist_ok=True)
        job.work.mkdir(exist_ok=True)
    _take_back(job)


def _take_back(job: Job) -> None:
    """Parts that a run put into a dataset, and was killed before it could list them, are work to go on from."""
    kept = job.outputs[0].kept
    if kept is not None and kept.origin is None:
        for path in dataset.unlisted(job.dest, kept.manifest, job.plan.hash):
            if not (job.work / path.name).exists():
                with fsio.writing(path):
                    os.rename(path, job.work / path.name)


def _drop_unlisted(job: Job) -> None:
    """Remove parts that unfinished work which is given up has put into a dataset already."""
    kept = job.outputs[0].kept
    with suppress(OutputError):
        given_up = state_of(job.dest)
        if kept is not None and given_up is not None:
            for path in dataset.unlisted(job.dest, kept.manifest, str(given_up["hash"])):
                fsio.remove(path)


def _begin(job: Job) -> None:
    """`prepare`, and make sure that everybody who works there cuts the inputs alike. Raises `OutputError`.

    Where parts are cut by bytes, it takes a look at what inputs become, and another version of a decoder might see
    something else.
    """
    prepare(job)
    specs = [(output.folder, part.number, part.start, part.stop) for output in job.outputs for part in output.parts]
    cut, file = hashlib.sha256(json.dumps(specs).encode()).hexdigest().encode(), job.folder / "cut"
    if not file.exists():
        fsio.replace_file(file, cut)
    elif file.read_bytes() != cut:
        raise OutputError(
            f"{job.folder}: begun with parts that are cut otherwise than here (other versions of packages?).\n"
            "Go on where it was begun, or drop it with --restart"
        )


@contextmanager
def _claimed(job: Job) -> Iterator[None]:
    """The folder of unfinished work, locked; it goes when it is of no more use."""
    with fsio.writing(job.folder):
        job.folder.mkdir(exist_ok=True)
    lock = Lock(job.folder / "lock")
    try:
        none_at_work(job.folder)
    except BaseException:
        lock.release()
        raise
    try:
        _begin(job)
        yield
    except BaseException:
        if (job.folder / RESULTS).is_dir() and not any(job.folder.joinpath(RESULTS).iterdir()) and not _begun(job):
            fsio.remove(job.folder)
        raise
    else:
        remove_work(job.folder)
    finally:
        lock.release()


def _begun(job: Job) -> bool:
    """Whether anything has been made that is worth going on from."""
    return any(files for _, _, files in os.walk(job.work))


def judge(job: Job, results: Results) -> None:
    """Not too many inputs are rejects. Their list is put beside the destination. Raises `FindingsError`."""
    rejects = sum(result.rejects for result in results.values())
    rows = sum(result.rows for result in results.values())
    counts = [output.plan.inputs for output in job.outputs]
    inputs = rows + rejects if None in counts else sum(count or 0 for count in counts)
    file = rejects_file(job.dest)
    if rejects:
        lists = [job.rejects_file(task) for task in job.tasks]
        fsio.replace_file(file, b"".join(path.read_bytes() for path in lists if path.exists()))
    else:
        fsio.remove(file)
    if rejects > job.policy.allowed(inputs):
        plan = job.outputs[0].plan  # all have one source
        raise too_many(rejects, inputs, file, plan, retried=False)  # made of parts: each would have to be
    for number, output in enumerate(job.outputs):
        if not any(result.rows for task, result in results.items() if task.output == number):
            where = f" for {output.folder}" if output.folder else ""
            raise FindingsError(f"every input was left out: no row to publish{where}")


def hashed(job: Job, results: Results, engine: Engine, control: Control) -> dict[Task, Result]:
    """The same results, each with digests for the row where its part begins.

    Where inputs were rejected or dropped, later parts begin at other rows than anybody could know when they were made,
    and the canonical blocks of the dataset lie otherwise in them: those are read and hashed once more.
    """
    again: list[Task] = []
    for number, output in enumerate(job.outputs):
        of_block, start = block_rows(output.plan.schema), output.base
        for task in (task for task in job.tasks if task.output == number):
            if results[task].rows and (start - results[task].start) % of_block:
                again.append(replace(task, start=start))
            start += results[task].rows
    found = dict(results)
    found.update(_plain(engine.run(job, again, control)) if again else {})
    return found


def publish(job: Job, results: Results) -> dict[str, DatasetManifest]:
    """Write the manifests, make everything durable, and give it its name. Folder of each output → its manifest."""
    manifests = {}
    for number, output in enumerate(job.outputs):
        done = [results[task] for task in job.tasks if task.output == number]
        folder = job.work / output.folder
        manifest = described(output, folder, done)
        _sweep(folder, {part.name for part in manifest.parts})
        name = dataset.digests_name(manifest.content_digest)
        fsio.write_file(folder / name, dataset.digests_to_bytes(manifest.digests, manifest.schema))
        fsio.write_file(folder / dataset.NAME, manifest.to_bytes())
        fsio.sync_folder(folder)
        manifests[output.folder] = manifest
    kept = job.outputs[0].kept
    if kept is None or kept.origin is not None:  # behind a URL: what is new is uploaded from here
        fsio.sync_folder(job.work)
        put_in_place(job.work, job.dest, job.plan.hash, job.outputs[0].folder)
    else:
        added(job.work, kept, manifests[""])
    return manifests


def _sweep(folder: Path, parts: set[str]) -> None:
    """Remove what makers of parts left that were killed when they had published."""
    for path in list(folder.iterdir()):
        if path.name not in parts:
            fsio.remove(path)


def described(output: Output, folder: Path, results: Sequence[Result]) -> DatasetManifest:
    """The manifest of a dataset whose new parts lie in `folder`; parts without rows are left out."""
    plan, schema = output.plan, output.plan.schema
    there = [(spec, result) for spec, result in zip(output.parts, results, strict=True) if result.rows]
    manifest = _listing(output, there)
    parts = manifest.parts
    roots = [OpenedDataset(folder, plan.store, manifest)]
    starts = output.base + np.concatenate([[0], np.cumsum([part.rows for part in parts])]).astype(np.int64)
    pieces = [
        (int(start), {name: bytes.fromhex(table) for name, table in result.inner.items()})
        for start, (_, result) in zip(starts, there, strict=False)
    ]
    if output.kept is not None:
        old = output.kept.manifest
        whole = old.rows // block_rows(schema) * old.digests.width
        pieces.insert(0, (0, {name: old.digests.tables[name][:whole] for name in schema.names}))
        roots.insert(0, replace(output.kept, manifest=replace(old, schema=schema)))
        counts = summed([old.counts, manifest.counts])
        manifest = replace(manifest, rows=old.rows + manifest.rows, parts=(*old.parts, *parts), counts=counts)
    with StoreView.of(roots) as view:
        digests = joined(view, pieces, plan.digest)
    return replace(manifest, digests=digests, recorded=digests.content(schema))


def _listing(output: Output, made: Sequence[tuple[PartSpec, Result]]) -> DatasetManifest:
    """A manifest that lists parts, without digests of their rows as one table."""
    plan = output.plan
    parts = tuple(Part(s.name, r.rows, r.bytes, r.content_digest, s.value) for s, r in made)
    told = plan.stands_for or plan
    return DatasetManifest(
        schema=plan.schema,
        rows=sum(part.rows for part in parts),
        store=plan.store.name,
        digests=Digests(0, 1, {}, plan.digest),
        source=told.source.describe(),
        recipe=told.recipe(),
        bigconv_version=__version__,
        plan=output.whole if plan.stands_for is None else plan.stands_for.hash,
        counts=summed(result.counts for _, result in made),
        parts=parts,
    )


def joined(view: StoreView, pieces: Sequence[tuple[int, Mapping[str, bytes]]], algorithm: str) -> Digests:
    """The digests of all rows as one table: those of whole canonical blocks are there, those that a boundary cuts are
    hashed now. `pieces`: (row at which it begins, field → digests of the blocks wholly inside)."""
    schema: Schema = view.schema
    rows, of_block = len(view), block_rows(schema)
    blocks, size = -(-rows // of_block), width(algorithm)
    tables = {name: bytearray(blocks * size) for name in schema.names}
    missing = np.ones(blocks, bool)
    for start, inner in pieces:
        first = -(-start // of_block)
        for name, table in inner.items():
            tables[name][first * size : first * size + len(table)] = table
            missing[first : first + len(table) // size] = False
    wanted: Index = np.flatnonzero(missing)
    for number in wanted.tolist():
        digester = Digester(schema, algorithm=algorithm)
        for block in view.blocks(number * of_block, min(rows, (number + 1) * of_block)):
            digester.update(block)
        for name, table in digester.finish().tables.items():
            tables[name][number * size : (number + 1) * size] = table
    return Digests(rows, of_block, {name: bytes(table) for name, table in tables.items()}, algorithm)


def added(work: Path, there: OpenedDataset, manifest: DatasetManifest) -> None:
    """Put new parts into a dataset, then its new manifest: readers see all of them or none.

    Killed before the manifest, the parts are there but not listed; the same command, run again, takes them back.
    """
    for part in manifest.parts[len(there.manifest.parts) :]:
        target = there.path / part.name
        with fsio.writing(target):
            if (work / part.name).exists():
                if target.exists():
                    fsio.remove(target)
                os.rename(work / part.name, target)
    listed(there, manifest)


def listed(there: OpenedDataset, manifest: DatasetManifest) -> None:
    """Exchange the manifest of a dataset, and with it the digests, in one step, and remove what it no longer names.

    Raises `IncompleteStore`.
    """
    for part in manifest.parts:
        if not (there.path / part.name).exists():
            raise IncompleteStore(f"{there.path}: {part.name} is missing")
    name = dataset.digests_name(manifest.content_digest)
    fsio.replace_file(there.path / name, dataset.digests_to_bytes(manifest.digests, manifest.schema))
    fsio.replace_file(there.path / dataset.NAME, manifest.to_bytes())
    remove_leftovers(there.path, manifest)
