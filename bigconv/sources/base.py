"""What a source is: raw files seen as blocks, in spans with fixed boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from bigconv.block import Block
from bigconv.schema import Schema

SPAN_BYTES = 8 << 20  # 8 MiB of rows a block: past this a copy no longer gets faster


@dataclass(frozen=True)
class Span:
    """Inputs `start` to `stop` (exclusive) of a source; a pure function of the source, never of the workers."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Reject:
    """One input that could not become a row. `path` is relative to the source; `row` its number there."""

    path: str
    row: int
    stage: str  # "read", "decode", or the transform's name
    error: str


class Source(Protocol):
    """Raw files as rows. Frozen, picklable, holds paths and numbers but nothing open.

    Made by `Class.find(paths, options)`, which raises `InputError` when the paths aren't of its kind.
    """

    name: ClassVar[str]
    decodes: ClassVar[bool]  # False: rows are copied as they are, in large slices, and workers don't help

    @property
    def schema(self) -> Schema: ...

    @property
    def inputs(self) -> int:
        """How many inputs there are: rows, if none is rejected."""
        ...

    def plan(self) -> Sequence[Span]:
        """Spans that cover all inputs in their defined order."""
        ...

    def read(self, span: Span) -> Iterator[Block | Reject]:
        """Rows of one span in order. len(span) = rows of the blocks + rejects."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: JSON values, paths relative to the source, nothing of this machine."""
        ...


def even_spans(inputs: int, size: int) -> list[Span]:
    """Spans of `size` inputs; the last may be shorter."""
    return [Span(i, min(i + size, inputs)) for i in range(0, inputs, max(1, size))]
