"""A store in the making, in `DEST.partial/` under a lock: begun or gone on with, checkpointed, proven, published."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import __version__, dataset, fsio, provenance, registry
from bigconv.block import Index
from bigconv.class_counts import ClassCounts, Counts
from bigconv.conversion import journal
from bigconv.conversion.plan import Plan, differences, resuming
from bigconv.conversion.proof import in_thread, prove
from bigconv.conversion.task import Item
from bigconv.digest import Digests, InnerDigester, block_rows
from bigconv.errors import OutputError, StoreError
from bigconv.locks import Lock
from bigconv.manifest import Manifest
from bigconv.schema import Schema
from bigconv.sources.filelist import FileList
from bigconv.stores.base import Store, StoreWriter
from bigconv.view.opening import Opened, open_store
from bigconv.view.table import StoreView

PROVENANCE = "provenance"  # in DEST.partial: of work that is whole and wasn't published
PLAN = "plan.json"  # in DEST.partial: what is being made
REPLACES = "replaces"  # in DEST.partial: the plan of the store at DEST whose place is taken
FIELDS, REPAIR = "fields", "repair"  # in DEST.partial: what changes of a store in its place are made of
#: all that may stand in DEST.partial beside the store; some of it is made by parts.py and ranks.py
NOTES = frozenset(
    (
        *(PLAN, PROVENANCE, REPLACES, "lock", "journal", "origin", "seen", "rejects.jsonl"),
        *("results", "cut", "ranks", FIELDS, REPAIR),
    )
)
CHECKPOINT_SECONDS = 5.0  # at least; a checkpoint that takes long is followed by a longer stretch
CHECKPOINT_SHARE = 0.1  # of the time at most goes into checkpoints


class Build:
    """One destination being written. Use `building`, which cleans up."""

    def __init__(self, dest: Path, plan: Plan, restart: bool = False) -> None:
        self.dest, self.plan = dest, plan
        self.folder = partial_folder(dest)
        with fsio.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        self._lock = Lock(self.folder / "lock")
        self.inner: dict[str, bytes] = {}  # of a part: digests of the dataset's canonical blocks that lie in it
        self._fresh = not (self.folder / PLAN).exists()  # nothing in the folder is worth keeping
        try:
            self._begin(restart)
        except BaseException:
            if self._fresh:
                fsio.remove(self.folder)
            self._lock.release()
            raise

    def _begin(self, restart: bool) -> None:
        hashed = self.plan.hash
        known = None if restart else known_work(self.dest, self.plan)
        self.journal = journal.Journal(self.folder / "journal", hashed) if known else None
        if self.journal is None or not self.journal.records:
            self._fresh = True
            if self.journal is not None:
                self.journal.close()
            begin_anew(self.folder, self.plan)
            self.journal = journal.Journal(self.folder / "journal", hashed)
        self.work = work_path(self.folder, self.dest)
        store: Store = self.plan.store
        self.blocks: list[tuple[int, str]] = []
        self.spans = self.rows = self.rejects = 0
        origin_bytes = reject_bytes = seen_bytes = 0
        announced = self.plan.inputs if self.plan.rows_stay else None
        if self.journal.records:
            last = self.journal.records[-1]
            self.blocks = [block for record in self.journal.records for block in record.blocks]
            self.spans, self.rows, self.rejects = last.spans, last.rows, last.rejects
            origin_bytes, reject_bytes, seen_bytes = last.origin_bytes, last.reject_bytes, last.seen_bytes
            self.writer: StoreWriter = store.resume(self.work, self.plan.schema, announced, last.state)
        else:
            self.writer = store.create(self.work, self.plan.schema, announced)
        self.resumed_rows = self.rows
        self._origin = fsio.AppendFile(self.folder / "origin", origin_bytes)
        self._seen = fsio.AppendFile(self.folder / "seen", seen_bytes)
        self._rejects = fsio.AppendFile(self.folder / "rejects.jsonl", reject_bytes)
        self._counts = ClassCounts(self.plan.schema)
        self._recorded = len(self.blocks)
        self._last = time.monotonic()
        self._pause = CHECKPOINT_SECONDS

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, item: Item) -> None:
        """Write what became of some inputs."""
        if item.block is not None:
            self.writer.append(item.block)
            self._counts.update(item.block)
            self.rows += len(item.block)
            self.blocks.append((len(item.block), item.digest.hex()))
            if item.block.origin is not None:
                self._origin.write(provenance.runs_of(item.block.origin).tobytes())
            if item.seen:
                self._seen.write(item.seen)
        for reject in item.rejects:
            entry = {"path": reject.path, "row": reject.row, "stage": reject.stage, "error": reject.error}
            self._rejects.write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
            self.rejects += 1

    def span_done(self) -> None:
        """A span is whole: the only place where a checkpoint can be."""
        self.spans += 1
        if time.monotonic() - self._last >= self._pause:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make everything so far durable, then say so in the journal."""
        assert self.journal is not None
        start = time.monotonic()
        state = self.writer.checkpoint()
        self._origin.sync()
        self._seen.sync()
        self._rejects.sync()
        self.journal.append(
            journal.Record(
                self.spans,
                self.rows,
                self.rejects,
                self._rejects.tell(),
                self._origin.tell(),
                self._seen.tell(),
                state,
                tuple(self.blocks[self._recorded :]),
            )
        )
        self._recorded = len(self.blocks)
        self._last = time.monotonic()
        self._pause = max(CHECKPOINT_SECONDS, (self._last - start) / CHECKPOINT_SHARE)

    def keep_rejects(self) -> Path:
        """Put the list of rejects beside the destination."""
        file = rejects_file(self.dest)
        if self.rejects:
            fsio.replace_file(file, (self.folder / "rejects.jsonl").read_bytes())
        else:
            fsio.remove(file)
        return file

    def keep_unpublished(self) -> None:
        """Note what made the rows, so that `--retry-rejects` can tell which inputs are missing."""
        fsio.replace_file(self.folder / PROVENANCE, self._provenance().to_bytes())

    # -- finishing -----------------------------------------------------------------------------------------------

    def finish(self, start: int | None = None) -> Manifest:
        """Lay out, read everything back against the digests, seal, make durable, rename.

        `start`: row of a dataset at which this store, one of its parts, begins; `inner` is found then.
        """
        self.writer.close()
        schema: Schema = self.plan.schema
        whole = self.plan.stands_for or self.plan
        manifest = Manifest(
            schema=schema,
            rows=self.rows,
            store=self.plan.store.name,
            digests=Digests.blank(schema, self.rows, self.plan.digest),
            source=whole.source.describe(),
            recipe=whole.recipe(),
            bigconv_version=__version__,
            plan=whole.hash,
        )
        opened = Opened(self.work, self.plan.store, manifest)
        manifest = replace(manifest, counts=self._all_counts(opened))
        self.writer.attach(provenance.NAME, self._provenance().to_bytes())
        if hasattr(self.writer, "reserve"):
            self.writer.reserve(manifest)
        # all that files will hold is in them, but for the manifest: they are read for both at the same time
        files = in_thread(lambda: self.plan.store.files(self.work, self.plan.digest))
        # a part that begins with a canonical block of the dataset has the dataset's: nothing is hashed twice
        apart = start is not None and start % block_rows(schema)
        inner = InnerDigester(schema, start or 0, self.plan.digest) if apart else None
        digests = prove(opened, self.blocks, inner)
        self.inner = digests.whole() if inner is None else inner.finish()
        self.writer.seal(replace(manifest, digests=digests, files=files.result()))
        fsio.sync_tree(self.work)
        self.keep_rejects()
        put_in_place(self.work, self.dest, self.plan.hash)
        return open_store(self.dest).manifest  # as it was sealed, and as every reader will see it

    def _all_counts(self, opened: Opened) -> Counts:
        """Rows of each class: those of this run were counted as they came, those before it are read."""
        fields = self._counts.fields
        if fields and self.resumed_rows:
            with StoreView.of([opened], fields) as view:
                for block in view.blocks(0, self.resumed_rows):
                    self._counts.update(block)
        return self._counts.finish()

    def _provenance(self) -> provenance.Provenance:
        files: FileList = self.plan.source.files
        raw = (self.folder / "origin").read_bytes()
        runs: Index = np.frombuffer(raw, np.int64).reshape(-1, provenance.RUN_COLUMNS)
        seen = np.frombuffer((self.folder / "seen").read_bytes(), "<i8").reshape(-1, 3)
        digests = np.zeros((len(files) if len(seen) else 0, 2), np.int64)
        digests[seen[:, 0]] = seen[:, 1:]
        runs = provenance.joined(runs)
        whole = provenance.Provenance(files.names, files.ends, files.sizes, files.mtimes, runs, digests)
        return whole if self.plan.files is None else whole.narrowed(*self.plan.files)

    def close(self, keep: bool) -> None:
        """Let go of files; without `keep`, or before a first checkpoint, remove all traces."""
        self.writer.abort()
        self._origin.close()
        self._seen.close()
        self._rejects.close()
        assert self.journal is not None
        self.journal.close()
        if not keep or not self.journal.records:
            remove_work(self.folder)
        self._lock.release()


@contextmanager
def building(dest: Path, plan: Plan, restart: bool = False) -> Iterator[Build]:
    """A build; what has been checkpointed is kept when the body fails, to go on from."""
    build = Build(dest, plan, restart)
    try:
        yield build
    except BaseException:
        build.close(keep=True)
        raise
    else:
        build.close(keep=False)


def partial_folder(dest: Path) -> Path:
    return dest.with_name(dest.name + fsio.PARTIAL)


def work_path(folder: Path, dest: Path) -> Path:
    """Where a destination is made in its folder of unfinished work: under its own name, unless a note there has it."""
    return folder / (f"{dest.name}.store" if dest.name.lower() in NOTES else dest.name)


def rejects_file(dest: Path) -> Path:
    return dest.with_name(dest.name + ".rejects.jsonl")


def known_work(dest: Path, plan: Plan) -> dict[str, Any] | None:
    """The unfinished work for a destination, if it is this plan's. Raises `OutputError` for that of another.

    What a run left that was killed when it had published is nobody's work any more.
    """
    folder = partial_folder(dest)
    known = journal.read_plan(folder / PLAN)
    if known is not None and known["hash"] != plan.hash:
        if is_published(dest, known):
            return None
        told = "; ".join(differences(plan, known["document"])) or "another version of bigconv"
        raise OutputError(
            f"{folder}: unfinished work of another conversion ({told}).\n"
            f"Finish it with {resuming(known, dest) or 'its own command'}, or drop it with --restart"
        )
    return known


def is_published(dest: Path, known: Mapping[str, Any]) -> bool:
    """Whether what some work was to make is at its destination; of a split, each dataset is in a folder of its own."""
    there = dest.is_dir() and registry.recognise(dest) is None
    return any(_plan_at(path) == known.get("makes") for path in (sorted(dest.iterdir()) if there else [dest]))


def begin_anew(folder: Path, plan: Plan) -> None:
    """Empty a folder but for its lock, and note what is being made there."""
    for path in list(folder.iterdir()):
        if path.name != "lock":
            fsio.remove(path)
    makes = (plan.stands_for or plan).hash  # the plan that the store will be known by
    document = {"version": journal.VERSION, "hash": plan.hash, "makes": makes, "document": plan.document()}
    journal.write_plan(folder / PLAN, document)


def put_in_place(work: Path, dest: Path, hashed: str, first: str = "") -> None:
    """Publish a finished store. `hashed`: of the plan that the unfinished work goes by; `first`: folder of the first of
    several datasets.

    Where it replaces another, the two change names, and a run that goes on after a kill has to tell them apart: by the
    plan of the old one, which is noted before. Of one plan, they can't be told apart, so then it begins anew.
    """
    folder = partial_folder(dest)
    if dest.exists():
        old = _plan_at(dest / first)
        if old != hashed:
            fsio.replace_file(folder / REPLACES, old.encode())
        else:
            fsio.remove(folder / PLAN)
            fsio.sync_folder(folder)
    fsio.publish(work, dest)


def replaced(dest: Path, hashed: str, first: str = "") -> bool:
    """Whether the store at a destination was put there by a run of this plan that was killed before it could end."""
    try:
        return (partial_folder(dest) / REPLACES).read_bytes() != hashed.encode() == _plan_at(dest / first).encode()
    except OSError:
        return False


def _plan_at(path: Path) -> str:
    """Hash of the plan of a store; empty for what can't be opened."""
    try:
        return open_store(path).manifest.plan
    except StoreError:
        return ""


def remove_work(folder: Path) -> None:
    """Remove a folder of unfinished work. The note of what it replaces goes last: without it, what is left of a store
    would be taken for work to go on from."""
    if (folder / REPLACES).exists():
        for path in list(folder.iterdir()):
            if path.name not in (REPLACES, "lock"):
                fsio.remove(path)
        fsio.sync_folder(folder)
    fsio.remove(folder)


def drop_leftovers(dest: Path, hashed: str) -> None:
    """Remove what a run left that was killed after it had published; unfinished work of another plan stays.

    `hashed`: of the plan that the store is known by.
    """
    folder = partial_folder(dest)
    if not folder.is_dir():
        return
    try:
        lock = Lock(folder / "lock")
        known = journal.read_plan(folder / PLAN)
        if known is None or known.get("makes") == hashed:
            if registry.is_dataset(dest):
                remove_leftovers(dest, dataset.read(dest))
            remove_work(folder)
        lock.release()
    except OutputError:
        return  # in use, or not ours to judge


def remove_leftovers(path: Path, manifest: dataset.DatasetManifest) -> None:
    """Remove from a dataset what its manifest names no more, for good: then the unfinished work may go, which tells
    that such files may be there."""
    old = dataset.leftovers(path, manifest)
    for file in old:
        fsio.remove(file)
    if old:
        fsio.sync_folder(path)


def state_of(dest: Path) -> Mapping[str, Any] | None:
    """The plan of unfinished work at a destination; None when there is none."""
    return journal.read_plan(partial_folder(dest) / PLAN)
