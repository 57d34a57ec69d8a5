"""What a source is: raw files seen as blocks, in spans with fixed boundaries."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from bigconv.block import Block, Index
from bigconv.errors import InputError
from bigconv.schema import Schema
from bigconv.sources.filelist import FileList

SHOWN = 20  # columns that a message names
SPAN_BYTES = 8 << 20  # 8 MiB of rows a block: past this a copy no longer gets faster


@dataclass(frozen=True)
class Span:
    """A piece of a source, `start` to `stop` (exclusive), in the source's own unit: files, rows or bytes.

    Boundaries are a pure function of the source, never of the workers.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Reject:
    """One input that could not become a row. `path` is relative to the source; `row` its number in that file."""

    path: str
    row: int
    stage: str  # "read", "decode", or the transform's name
    error: str


class Source(Protocol):
    """Raw files as rows. Frozen, picklable, holds paths and numbers but nothing open.

    Made by `Class.find(paths, **options)`, which raises `InputError` when the paths aren't of its kind. `options` names
    the keywords that are the user's (`--label-from` is `label_from`), `hints` those that only spare work
    (`workers`, `sizes_matter`).
    """

    name: ClassVar[str]
    decodes: ClassVar[bool]  # False: rows are copied as they are, in large slices, and workers don't help
    options: ClassVar[tuple[str, ...]]
    hints: ClassVar[tuple[str, ...]]

    @property
    def schema(self) -> Schema: ...

    @property
    def inputs(self) -> int | None:
        """How many inputs there are: rows, if none is rejected. None when only reading tells (lines of a table)."""
        ...

    @property
    def files(self) -> FileList:
        """The files that are read, which `Block.origin` counts."""
        ...

    def plan(self) -> Sequence[Span]:
        """Spans that cover all inputs in their defined order."""
        ...

    def read(self, span: Span) -> Iterator[Block | Reject]:
        """Rows of one span in order, with their `origin`. Each input is in a block or is a reject.

        Blocks have about `SPAN_BYTES` at most, and may share no memory that the next step overwrites.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: JSON values, paths relative to the source, nothing of this machine."""
        ...


class OnlySome(InputError):
    """Not all columns of a table or datasets of a file can make one store. `columns`: those that can."""

    def __init__(self, why: str, columns: Sequence[str]) -> None:
        shown = ",".join(columns[:SHOWN]) + (",…" if len(columns) > SHOWN else "")
        super().__init__(f"{why}.\nTake those that fit: --columns {shlex.quote(shown)}" if columns else why)
        self.why, self.columns = why, list(columns)


def origins(files: Index | int, rows: Index | int = 0) -> Index:
    """int64 `[rows, 2]` for `Block.origin`; one of the two is an array, the other may be one number for all."""
    file, row = np.broadcast_arrays(np.asarray(files, np.int64), np.asarray(rows, np.int64))
    return np.stack([file, row], axis=1)


def even_spans(inputs: int, size: int) -> list[Span]:
    """Spans of `size` inputs; the last may be shorter."""
    return [Span(i, min(i + size, inputs)) for i in range(0, inputs, max(1, size))]
