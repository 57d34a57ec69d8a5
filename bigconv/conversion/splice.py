"""`--append` and `--retry-rejects`: rows of a finished store, copied as they are, and inputs that are read now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from bigconv import provenance
from bigconv.block import Array, Block, Index
from bigconv.conversion.plan import Plan
from bigconv.conversion.task import Work, run_span
from bigconv.errors import InputError, OutputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span, even_spans
from bigconv.sources.filelist import FileList
from bigconv.view.opening import Opened
from bigconv.view.table import StoreView

SPAN_INPUTS = 256


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of the old store (`old`), or inputs of the source that are read now."""

    old: bool
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Spliced:
    """Segments one after another; the old store's rows are copied, all others go through the plan's steps.

    `shift`: number of the first file of the source in `files`. `relabel`: field -> int64 `[classes]`, new numbers.
    """

    name: ClassVar[str] = "spliced"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()
    one_file_a_row: ClassVar[bool] = True

    view: StoreView
    origin: Index  # int64 [runs, 5] of the old rows
    work: Work
    segments: tuple[Segment, ...]
    files: FileList
    numbers: Index  # int64 [files of the source]: their numbers in `files`
    relabel: dict[str, Index]
    schema: Schema
    digests: Index  # int64 [files of the old store, 2]
    held: str  # which rows the old store has: its content digest, or the hash of the plan that made it

    @property
    def inputs(self) -> int:
        return sum(s.stop - s.start for s in self.segments)

    def file_digest(self, file: int) -> tuple[int, int]:
        """Of a file whose rows are copied, what was noted when it was read: it may have gone since."""
        if file < len(self.digests) and self.digests[file].any():
            high, low = self.digests[file].tolist()
            return high, low
        return self.files.digest(file)

    def plan(self) -> Sequence[Span]:
        spans, start = [], 0
        for s in self.segments:
            size = SPAN_INPUTS * (16 if s.old else 1)
            spans += [Span(start + x.start, start + x.stop) for x in even_spans(s.stop - s.start, size)]
            start += s.stop - s.start
        return spans

    def read(self, span: Span) -> Iterator[Block | Reject]:
        at = 0
        for s in self.segments:
            a, b = max(span.start, at), min(span.stop, at + s.stop - s.start)
            if a < b:
                first, last = s.start + a - at, s.start + b - at
                yield from self._old(first, last) if s.old else self._new(first, last)
            at += s.stop - s.start

    def _old(self, start: int, stop: int) -> Iterator[Block]:
        origin = provenance.expanded(self.origin, start, stop)
        at = start
        for block in self.view.blocks(start, stop):
            yield Block(self.schema, block.columns, origin[at - start : at - start + len(block)])
            at += len(block)

    def _new(self, start: int, stop: int) -> Iterator[Block | Reject]:
        for item in run_span(self.work, Span(start, stop)):
            yield from item.rejects
            if item.block is None:
                continue
            if len(item.block) + len(item.rejects) > stop - start:
                raise InputError("a step that multiplies rows can't be used with --append or --retry-rejects")
            columns = dict(item.block.columns)
            for name, numbers in self.relabel.items():
                labels: Any = columns[name]
                columns[name] = numbers[labels]
            origin = item.block.origin
            if origin is not None:
                origin = np.column_stack([self.numbers[origin[:, 0]], origin[:, 1]])
            yield Block(self.schema, columns, origin)

    def describe(self) -> dict[str, Any]:
        segments = [[s.old, s.start, s.stop] for s in self.segments]
        return {**self.work.source.describe(), "spliced": self.held, "segments": segments}


def appended(plan: Plan, there: Opened) -> Plan | None:
    """A plan that keeps all rows that are there and adds those of new files; None when there are no new files.

    Raises `OutputError` when files have changed, `UsageError` for sources that aren't one row a file.
    """
    old = _old_files(plan, there, "--append")
    held = there.manifest.content_digest
    files = plan.source.files
    known = {old.name(i): i for i in range(len(old.ends))}
    names = [files.name(i) for i in range(len(files))]
    changed = [n for i, n in enumerate(names) if n in known and int(old.sizes[known[n]]) != int(files.sizes[i])]
    if changed:
        raise OutputError(
            f"{there.path}: --append adds new files only, but {len(changed)} of the old ones changed: {changed[0]} …\n"
            "Make the store anew with --overwrite"
        )
    fresh = np.array([i for i, name in enumerate(names) if name not in known], np.int64)
    if not len(fresh):
        return None
    merged = FileList(
        files.root,
        old.names + b"".join(_raw_name(files, int(i)) for i in fresh),
        np.concatenate([old.ends, len(old.names) + np.cumsum([len(_raw_name(files, int(i))) for i in fresh])]),
        np.concatenate([old.sizes, files.sizes[fresh]]),
        np.concatenate([old.mtimes, files.mtimes[fresh]]),
    )
    numbers = np.array([known.get(name, 0) for name in names], np.int64)
    numbers[fresh] = len(old.ends) + np.arange(len(fresh))
    segments = [Segment(True, 0, there.manifest.rows), *runs(fresh)]
    schema, relabel = merged_schema(there.manifest.schema, plan.schema)
    return _spliced(plan, there, old, segments, merged, numbers, relabel, schema, held)


def retried(plan: Plan, there: Opened, made_from: provenance.Provenance | None = None) -> Plan | None:
    """A plan that keeps all rows that are there and reads again the inputs that made none; None when all did.

    `made_from`: of rows that were never published. The result is what converting everything anew would give.
    """
    old = _old_files(plan, there, "--retry-rejects", made_from)
    held = there.manifest.content_digest if made_from is None else there.manifest.plan
    files = plan.source.files
    if old.names != files.names or not np.array_equal(old.ends, files.ends):
        raise OutputError(f"{there.path}: --retry-rejects needs the same files; add new ones with --append")
    made = provenance.expanded(old.runs, 0, there.manifest.rows)[:, 0]
    if plan.schema != there.manifest.schema or (np.diff(made) < 0).any():
        raise OutputError(f"{there.path}: was not made by this conversion; make it anew with --overwrite")
    missing = np.setdiff1d(np.arange(len(files)), made)
    if not len(missing):
        return None
    good = np.ones(len(files), bool)
    good[missing] = False
    if (files.sizes[good] != old.sizes[good]).any():
        raise OutputError(f"{there.path}: files of good rows have changed; make it anew with --overwrite")
    segments: list[Segment] = []
    row = 0
    for run in runs(missing):
        before = int(np.searchsorted(made, run.start))
        if before > row:
            segments.append(Segment(True, row, before))
        segments.append(run)
        row = before
    if row < there.manifest.rows:
        segments.append(Segment(True, row, there.manifest.rows))
    numbers = np.arange(len(files), dtype=np.int64)
    return _spliced(plan, there, old, segments, files, numbers, {}, plan.schema, held)


def _spliced(
    plan: Plan,
    there: Opened,
    old: provenance.Provenance,
    segments: list[Segment],
    files: FileList,
    numbers: Index,
    relabel: dict[str, Index],
    schema: Schema,
    held: str,
) -> Plan:
    view = StoreView.of([there])
    source = Spliced(view, old.runs, plan.work, tuple(segments), files, numbers, relabel, schema, old.digests, held)
    return replace(plan, source=source, steps=(), schema=schema, spans=source.plan(), stands_for=plan)


def _old_files(
    plan: Plan, there: Opened, option: str, made_from: provenance.Provenance | None = None
) -> provenance.Provenance:
    if not plan.file_a_row:
        raise UsageError(f"{option} needs input with one row a file, such as a folder of images, and no --limit")
    if dict(there.manifest.recipe) != plan.recipe():
        raise OutputError(f"{there.path}: made by another recipe; {option} needs the same options")
    if made_from is not None:
        return made_from
    raw = there.store.attachment(there.path, provenance.NAME)
    if raw is None:
        raise OutputError(f"{there.path}: holds no provenance, so {option} can't tell which files it has")
    return provenance.Provenance.from_bytes(raw, str(there.path))


def merged_schema(old: Schema, new: Schema) -> tuple[Schema, dict[str, Index]]:
    """The old fields, with new classes behind the old ones, and the numbers that new labels get."""
    fields: list[Field] = []
    relabel: dict[str, Index] = {}
    for a, b in zip(old, new, strict=True):
        if a.classes is not None and b.classes is not None and a.classes != b.classes:
            classes = (*a.classes, *(c for c in b.classes if c not in a.classes))
            relabel[a.name] = np.array([classes.index(c) for c in b.classes], np.int64)
            fields.append(a.with_(classes=classes))
            continue
        if a != b:
            raise OutputError(
                f"field {a.name}: the store has {a.dtype} {list(a.shape)}, the new files give {b.dtype} {list(b.shape)}"
            )
        fields.append(a)
    return Schema(tuple(fields)), relabel


def runs(numbers: Array) -> list[Segment]:
    """Neighbouring numbers as segments of inputs."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [Segment(False, int(piece[0]), int(piece[-1]) + 1) for piece in np.split(numbers, cuts)]


def _raw_name(files: FileList, i: int) -> bytes:
    start = int(files.ends[i - 1]) if i else 0
    return files.names[start : int(files.ends[i])]
