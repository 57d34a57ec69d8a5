"""Rows of raw input, as `convert` would make them. Apart from those of stores, which need none of what converts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bigconv.block import Block
from bigconv.conversion.options import make_steps
from bigconv.conversion.task import Work, run_span
from bigconv.errors import BigconvError
from bigconv.inspection.rows import FIRST, Picked, spaced
from bigconv.schema import Schema
from bigconv.sources.base import Reject, Source, Span

KEPT_REJECTS = 100  # named one by one; the others are only counted


@dataclass
class SourceRows:
    """Rows that `convert` would make of a source. Inputs that can't be read are counted in `rejected` as they go by."""

    source: Source
    rejects: list[Reject] = field(default_factory=list)
    rejected: int = 0

    def __post_init__(self) -> None:
        steps, schema = make_steps(self.source, (), "cover", isolated=False)
        self._work = Work(self.source, tuple(steps), schema)

    @property
    def schema(self) -> Schema:
        return self._work.schema

    @property
    def count(self) -> int | None:
        return self.source.inputs

    def blocks(self) -> Iterator[Block]:
        self.rejects, self.rejected = [], 0
        for span in self.source.plan():
            for item in run_span(self._work, span):
                self.rejected += len(item.rejects)
                self.rejects += item.rejects[: KEPT_REJECTS - len(self.rejects)]
                if item.block is not None:
                    yield item.block

    def first(self) -> Block | None:
        spans = self.source.plan()
        if not spans:
            return None
        span = spans[0]
        # a span whose unit is the input can be cut
        stop = span.stop if self.source.inputs is None else min(span.stop, span.start + FIRST)
        return self._block(Span(span.start, stop))

    def some(self, wanted: int, seed: int | None = None) -> list[Picked]:
        inputs = self.source.inputs
        if inputs is not None:
            numbers = spaced(inputs, wanted, seed)
            return [found for i in numbers for found in self._picked(Span(i, i + 1), 1, i)]
        spans = self.source.plan()
        chosen = spaced(len(spans), wanted, seed)
        each = -(-wanted // max(1, len(chosen)))
        return [found for i in chosen for found in self._picked(spans[i], each, 0)][:wanted]

    def _block(self, span: Span) -> Block | None:
        """The first block of a span; none where it can't be read."""
        try:
            return next((item.block for item in run_span(self._work, span) if item.block is not None), None)
        except (BigconvError, OSError):
            return None

    def _picked(self, span: Span, wanted: int, number: int) -> list[Picked]:
        """Rows of one span's first block, evenly spaced."""
        block = self._block(span)
        if block is None:
            return []
        return [Picked(number, self._place(block, i), block.row(i)) for i in spaced(len(block), wanted)]

    def _place(self, block: Block, i: int) -> str:
        files = self.source.files
        if block.origin is None or not len(files):
            return f"row {i:,}"
        file, row = (int(n) for n in block.origin[i])
        return files.name(file) if len(files) == self.source.inputs else f"{files.name(file)}, row {row:,}"
