"""Files that become one row each, or several: what their headers tell, their labels, and the place of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bigconv.block import Block, Index
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import SPAN_BYTES, Reject, Span
from bigconv.sources.filelist import FileList
from bigconv.sources.labels import Classes, class_names, numbered, told_of
from bigconv.sources.named import NamedFiles
from bigconv.sources.rowwise import SPAN_INPUTS, Row, assembled

MAX_ROW_BYTES = 2 << 30  # 2 GiB decoded: what one row may have; LMDB holds no more in a value

Head = TypeVar("Head")


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows in the order of the files, and in the order that they have within each.

    `ends`: int64 `[files]`, number of the first row behind each file's own; a file that can't be read has one, which
    becomes a reject. `sizes`: int64 `[files]`, bytes of each of its rows, decoded. `labels`: int64 `[files]`, or None.
    """

    found: NamedFiles
    ends: Index
    sizes: Index
    label_from: str
    label: Field | None
    labels: Index | None

    @classmethod
    def of(
        cls, found: NamedFiles, counts: Sequence[int], sizes: Sequence[int], paths: Sequence[Path], how: Labelling
    ) -> FileRows:
        """`counts`: rows of each file. Raises `InputError`, `UsageError`."""
        label_from, label, labels = how.of(found, paths)
        return cls(found, np.cumsum(counts, dtype=np.int64), np.array(sizes, np.int64), label_from, label, labels)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, i: int) -> tuple[int, int]:
        """Number of the file of row `i`, and of the row in it."""
        file = int(np.searchsorted(self.ends, i, side="right"))
        return file, i - (int(self.ends[file - 1]) if file else 0)

    def plan(self, least: int = 1) -> list[Span]:
        """Spans of about `SPAN_BYTES` and at most `SPAN_INPUTS` rows, but of `least` rows where a file has so many."""
        spans: list[Span] = []
        start, held = 0, 0  # of the span that is being filled
        first = 0
        for end, size in zip(self.ends.tolist(), self.sizes.tolist(), strict=True):
            step = min(SPAN_INPUTS, max(least, SPAN_BYTES // max(1, size)))
            if end - first > 1:  # rows of one file: a span of its own for every few of them
                if first > start:
                    spans.append(Span(start, first))
                spans += [Span(i, min(i + step, end)) for i in range(first, end, step)]
                start, held = end, 0
            else:
                held += size
                if held >= SPAN_BYTES or end - start >= SPAN_INPUTS:
                    spans.append(Span(start, end))
                    start, held = end, 0
            first = end
        if first > start:
            spans.append(Span(start, first))
        return spans

    def read(self, schema: Schema, span: Span, row: Callable[[int, int], dict[str, Any]]) -> Iterator[Block | Reject]:
        """Blocks and rejects of a span. `row(file, number)`: all fields but the label."""

        def made(i: int) -> Row:
            file, number = self.place(i)
            self.found.unchanged(file)
            cells = row(file, number)
            return cells if self.labels is None else {**cells, "label": np.array(self.labels[file])}

        yield from assembled(schema, range(span.start, span.stop), made, self.place, self.found.files)

    @property
    def label_fields(self) -> tuple[Field, ...]:
        return () if self.label is None else (self.label,)

    def told(self) -> dict[str, Any]:
        """What the manifest keeps."""
        files = self.found.files
        return {
            "files": len(files),
            "bytes": int(files.sizes.sum()),
            **told_of(self.label_from, self.labels),
        }


class OfFileRows:
    """What sources have in common whose `rows` are `FileRows`."""

    rows: FileRows

    @property
    def files(self) -> FileList:
        return self.rows.found.files

    @property
    def inputs(self) -> int:
        return len(self.rows)

    def plan(self) -> Sequence[Span]:
        return self.rows.plan()


@dataclass(frozen=True)
class Labelling:
    """How files get labels: `label_from` as typed, or None, which then means `default` (None: as for images).

    `classes`: see `labels.numbered`.
    """

    label_from: str | None
    classes: Classes | None
    what: str  # the files, in plural, as messages call them
    default: str | None = None

    def of(self, found: NamedFiles, paths: Sequence[Path]) -> tuple[str, Field | None, Index | None]:
        """Where labels come from, their field, and int64 `[files]`. Raises `InputError`, `UsageError`."""
        how = self.label_from or self.default
        if how == "none":
            return "none", None, None
        if not (len(paths) == 1 and paths[0].is_dir()):
            if how is None:
                return "none", None, None
            raise UsageError(f"--label-from: labels need one folder of {self.what}; these are named one by one")
        told, names = class_names(found.files, how, self.what)
        return (told, None, None) if names is None else (told, *numbered(names, self.classes))


def heads(found: NamedFiles, look: Callable[[str], Head], what: str, workers: int) -> list[Head | None]:
    """What `look` tells of every path; None where it raises `InputError` or `OSError`: such a file becomes a reject.

    Raises `InputError`, with the reason of the first, when no file can be read.
    """

    def some(start: int) -> list[Head | None]:
        told: list[Head | None] = []
        for path in found.paths[start : start + SPAN_INPUTS]:
            try:
                told.append(look(path))
            except (InputError, OSError):
                told.append(None)
        return told

    starts = range(0, len(found), SPAN_INPUTS)
    with ThreadPoolExecutor(max(1, workers)) as pool:  # which wait for the disk together
        told = [head for piece in pool.map(some, starts) for head in piece]
    if all(head is None for head in told):
        try:
            look(found.paths[0])
            why = "changed while it was read"
        except (InputError, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"none of {len(found)} {what} can be read. The first, {found.name(0)}: {why}")
    return told


def first_of(told: Sequence[Head | None]) -> Head:
    """The head of the first file that can be read, of which there is one."""
    return next(head for head in told if head is not None)


def alike(found: NamedFiles, told: Sequence[Head | None], what: str, of: Callable[[Head], object]) -> None:
    """Raise `InputError`, naming two files, unless `of` is the same for all that can be read."""
    good = [(i, of(head)) for i, head in enumerate(told) if head is not None]
    first, wanted = good[0]
    for i, here in good:
        if here != wanted:
            raise InputError(
                f"mixed {what}: {found.name(i)} has {here}, {found.name(first)} has {wanted}.\n"
                "Samples of one store have the same: convert the odd ones, or keep them in folders of their own"
            )


def common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int | None, ...]:
    """Extents that all shapes share, and None for those that vary; the shapes have equally many axes."""
    return tuple(n[0] if len(set(n)) == 1 else None for n in zip(*shapes, strict=True))


def reason(error: Exception, path: str) -> str:
    """An error of a decoder as one line that does not name the folder."""
    text = " ".join(str(error).replace(path, "the file").split())
    return text[:200] or type(error).__name__
