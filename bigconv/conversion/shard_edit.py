"""A sharded directory changed in its place: parts taken out, damaged ones made again. Readers see before or after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bigconv import fsio, registry
from bigconv.class_counts import summed
from bigconv.conversion.build import FIELDS, PLAN, REPAIR, is_published, partial_folder, remove_leftovers, state_of
from bigconv.conversion.engines import engine_for
from bigconv.conversion.parts import Control, Job, Output, hash_part
from bigconv.conversion.parts_cut import Cut, cut_plan
from bigconv.conversion.parts_run import joined, listed, prepare
from bigconv.conversion.plan import Plan
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy, interruptible
from bigconv.conversion.shard_source import Pick, parse_split
from bigconv.dataset import DatasetManifest, Part, part_of, unlisted
from bigconv.digest import block_rows
from bigconv.errors import IncompleteStore, OutputError, StoreError, UsageError
from bigconv.locks import Lock
from bigconv.schema import unknown
from bigconv.stores.base import recalled
from bigconv.view.opening import Opened, OpenedDataset, open_parts, open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView

There = TypeVar("There", bound=Opened)


def drop_parts(path: Path, names: Sequence[str]) -> tuple[DatasetManifest, list[str]]:
    """Take parts out of a dataset, by name or number. The rows behind them move up; their bytes stay as they are.

    Gives the new manifest, and the names of the parts that are gone, also of those that were before.
    Raises `UsageError` for a part that isn't there, `IncompleteStore` when a part that stays turns out damaged.
    """
    with changing(path, open_parts) as (there, _):
        old = there.manifest
        gone = {_named(there, name) for name in names}
        left = [number for number, part in enumerate(old.parts) if part.name not in gone]
        if len(left) == len(old.parts):
            return old, sorted(gone)
        if not left:
            raise UsageError(f"{path}: all parts would be dropped; remove the folder instead")
        starts = np.concatenate([[0], np.cumsum(there.part_rows)])
        pieces, row = [], 0
        for number in left:
            pieces.append((row, _inner(there, number, int(starts[number]), row)))
            row += old.parts[number].rows
        parts = tuple(old.parts[number] for number in left)
        dropped = sorted({*old.dropped, *gone})
        plan = hashlib.sha256(f"{old.plan} without {' '.join(dropped)}".encode()).hexdigest()
        counts = summed(there.part(number).manifest.counts for number in left) if old.counts else {}
        recipe = {**old.recipe, "dropped": dropped}
        new = replace(old, parts=parts, rows=row, recipe=recipe, plan=plan, counts=counts)
        new = _redigested(there, new, pieces)
        listed(there, new)
        fsio.sync_folder(path)
        return new, sorted(gone)


def _inner(there: OpenedDataset, number: int, before: int, now: int) -> dict[str, bytes]:
    """Digests of the canonical blocks that lie wholly in a part which began at row `before` and begins at `now`."""
    schema = there.manifest.schema
    of_block, rows = block_rows(schema), there.manifest.parts[number].rows
    if (before - now) % of_block:
        return hash_part(there.part(number), now)
    first, last = -(-before // of_block), (before + rows) // of_block
    digests = there.manifest.digests
    cut = slice(first * digests.width, max(first, last) * digests.width)
    return {name: digests.tables[name][cut] for name in schema.names}


def _redigested(
    there: OpenedDataset, new: DatasetManifest, pieces: Sequence[tuple[int, Mapping[str, bytes]]]
) -> DatasetManifest:
    with StoreView.of([OpenedDataset(there.path, there.store, new)]) as view:
        digests = joined(view, pieces, there.manifest.digests.algorithm)
    return replace(new, digests=digests, recorded=digests.content(new.schema))


def _named(there: OpenedDataset, name: str) -> str:
    """The part that a user means, which may have been dropped before. Raises `UsageError`."""
    known = [part.name for part in there.manifest.parts]
    numbered = {n: part_of(n) for n in (*known, *there.manifest.dropped)}
    fits = [n for n, (number, uuid) in numbered.items() if name in (n, uuid, str(number), f"part-{number:05}")]
    if len(fits) != 1:
        shown = known[:8]
        raise UsageError(f"{there.path}: {unknown('part', name, shown)}{' …' if len(known) > len(shown) else ''}")
    return fits[0]


def repair_parts(path: Path, sources: Sequence[Path], policy: Policy) -> tuple[DatasetManifest, list[str]]:
    """Read every part of a dataset, and make those that are damaged or missing again, from what it was made of.

    `sources`: where that is now; else beside the dataset, under the name it had. A part takes its place when it has the
    content digest that the manifest lists, so the dataset is what it was. Gives the manifest, and the names of
    the parts that were made again. Raises `OutputError` when the source gives other rows now.
    """
    with changing(path, open_parts) as (there, folder):
        manifest = there.manifest
        bad = [number for number in range(len(manifest.parts)) if _damaged(partial(there.part, number))]
        if bad:
            found = [p.absolute() if policy.elsewhere else p for p in _sources(there, sources)]
            _remake(there, bad, found, policy, folder / REPAIR)
        try:
            manifest.digests.content(manifest.schema)
        except IncompleteStore:
            starts = np.concatenate([[0], np.cumsum(there.part_rows)]).tolist()
            pieces = [(starts[n], hash_part(there.part(n), starts[n])) for n in range(len(manifest.parts))]
            mended = _redigested(there, manifest, pieces)
            if mended.recorded != manifest.recorded:
                raise OutputError(f"{path}: the parts are whole, but not in the order of the manifest") from None
            listed(there, mended)
    return manifest, [manifest.parts[number].name for number in bad]


def _damaged(opening: Callable[[], Opened]) -> bool:
    try:
        return bool(verify(opening()))
    except StoreError:
        return True


def _remake(there: OpenedDataset, bad: Sequence[int], sources: Sequence[Path], policy: Policy, base: Path) -> None:
    """Make parts again in the folder `base`, where those that an earlier run has made are found."""
    parts = [there.manifest.parts[number] for number in bad]
    job = _job(there, parts, sources, policy, base)
    with fsio.writing(base):
        base.mkdir(exist_ok=True)
    prepare(job)
    for path in map(job.path, job.tasks):
        if path.exists() and _damaged(partial(open_store, path)):  # taken out of the directory by a run that was killed
            fsio.remove(path)
    with interruptible() as stop:
        control = Control(lambda _rows, _bytes, _rejects: None, stop.is_set)
        done = engine_for(job, len(parts)).run(job, job.tasks, control)
        results = {replace(task, isolated=False): result for task, result in done}
    for task, result in results.items():
        listed_part = parts[task.number]
        if result.content_digest != listed_part.content_digest:
            fsio.remove(base)  # of no use to the next run, whose source may be another
            raise OutputError(
                f"{there.path}: {listed_part.name} can't be made again: the source gives other rows now.\n"
                "Name the unchanged one with --source, or take the part out with --drop"
            )
    for task in results:
        fsio.publish(job.path(task), there.path / parts[task.number].name)


def _job(there: OpenedDataset, parts: Sequence[Part], sources: Sequence[Path], policy: Policy, base: Path) -> Job:
    """The tasks that make these parts, under the names they have, in a folder below `base` that only they use."""
    recipe = there.manifest.recipe
    plan, groups = _plan(there, sources, policy)
    specs = {spec.number: spec for spec in cut_plan(plan, Cut(**recipe["shards"]), groups)}
    if any(part.number not in specs for part in parts):
        raise OutputError(
            f"{there.path}: parts that were added later can't be made again one by one: take them out with --drop,\n"
            "then bigconv convert … --append reads their files again"
        )
    chosen = tuple(replace(specs[part.number], name=part.name) for part in parts)
    output = Output("", plan, there.manifest.plan, chosen)
    return Job(base / plan.hash[:16], (output,), replace(policy, max_rejects="100%"))


def _plan(there: OpenedDataset, sources: Sequence[Path], policy: Policy) -> tuple[Plan, Any]:
    """What made the dataset, planned anew from its recipe; and the runs of rows that parts keep apart."""
    recipe: dict[str, Any] = json.loads(json.dumps(dict(there.manifest.recipe)))
    shards = recipe.get("shards")
    if recipe.get("fields"):
        raise OutputError(
            f"{there.path}: fields were added or dropped since it was made, so parts can't be made again one by one.\n"
            "Make it anew from its source, or take the damaged parts out with --drop"
        )
    if shards is None:
        raise OutputError(f"{there.path}: its recipe doesn't say how it was cut")
    read = recipe.get("read", {})
    if recipe["from"] == "store" and not recipe["steps"]:
        pick = Pick(
            bool(read.get("shuffle")),
            int(read.get("seed", 0)),
            parse_split(read["split"]) if "split" in read else {},
            read.get("stratify"),
            read.get("group"),
            read.get("by"),
        )
        source, groups = pick.sources(StoreView(sources))[read.get("subset", "")]
        store, digest = recalled(registry.load("store", there.manifest.store), recipe), there.manifest.digests.algorithm
        return Plan(source, (), source.schema, source.plan(), store, None, None, read, shards, digest), groups
    free = there.path.with_name(there.path.name + ".repaired")  # a name for the plan: nothing is written there
    planned = replace(policy, engine="local")  # what is planned is one store
    request = Request(tuple(sources), free, to=there.manifest.store, policy=planned).following(recipe)
    return replace(request.plan()[0], shards=shards), ()


def _sources(there: OpenedDataset, given: Sequence[Path]) -> list[Path]:
    """What the dataset was made from. Raises `UsageError` when nobody can tell where it is."""
    if given:
        for path in given:
            if not path.exists():
                raise UsageError(f"--source {fsio.missing(path)}")
        return list(given)
    stores = there.manifest.source.get("stores", [])
    beside = [there.path.parent / str(store.get("path", "")) for store in stores]
    if beside and all(path.exists() for path in beside):
        return beside
    raise UsageError(
        f"{there.path}: parts are damaged or missing. Say what they were made from: "
        f"bigconv shard {there.path} --repair --source PATH"
    )


def _drop_finished(there: Opened, folder: Path) -> None:
    """Remove what a conversion has left whose result is there."""
    try:
        known = state_of(there.path)
    except OutputError:
        return  # not ours to judge
    if known is not None:
        if not is_published(there.path, known):
            return
        if isinstance(there, OpenedDataset) and unlisted(there.path, there.manifest, str(known["hash"])):
            return  # it adds parts, and has put some there already
        fsio.remove(folder / PLAN)
        fsio.sync_folder(folder)  # without it, the rest is nobody's work
    for file in list(folder.iterdir()):
        if file.name not in ("lock", FIELDS, REPAIR):
            fsio.remove(file)


@contextmanager
def changing(path: Path, opening: Callable[[Path], There]) -> Iterator[tuple[There, Path]]:
    """A store or dataset that nobody else changes meanwhile, and the folder for unfinished work, which is locked.

    What this change or an earlier one has made there is removed when all went well. What a conversion has left that was
    killed when it had published goes before, as nobody could tell it from an unfinished one later: that stays.
    """
    opening(path)  # or there would be no use for a folder
    folder = partial_folder(path)
    with fsio.writing(folder):
        folder.mkdir(exist_ok=True)
    lock = Lock(folder / "lock")
    try:
        there = opening(path)
        if isinstance(there, OpenedDataset):
            remove_leftovers(path, there.manifest)
        _drop_finished(there, folder)
        yield there, folder
        fsio.remove(folder / FIELDS)
        fsio.remove(folder / REPAIR)
    finally:
        if folder.exists() and [p.name for p in folder.iterdir()] == ["lock"]:
            fsio.remove(folder)
        lock.release()
