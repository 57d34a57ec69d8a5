"""A source of rows that a test gives, so that stores are filled through the real line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Block
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, execute
from bigconv.manifest import Manifest
from bigconv.schema import Schema
from bigconv.sources.base import Reject, Span, even_spans, origins
from bigconv.sources.filelist import FileList


@dataclass(frozen=True, eq=False)
class Given:
    """The rows of `block`, `step` at a time; `rejects` more inputs at the end are bad.

    `announce`: whether the number of inputs is known before they are read.
    """

    name: ClassVar[str] = "given"
    decodes: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()

    block: Block
    step: int
    announce: bool = True
    rejects: int = 0

    @property
    def schema(self) -> Schema:
        return self.block.schema

    @property
    def inputs(self) -> int | None:
        return len(self.block) + self.rejects if self.announce else None

    @property
    def files(self) -> FileList:
        return FileList.named([])

    def plan(self) -> Sequence[Span]:
        return even_spans(len(self.block) + self.rejects, self.step)

    def read(self, span: Span) -> Iterator[Block | Reject]:
        piece = self.block.slice(span.start, min(span.stop, len(self.block)))
        if len(piece):
            where = origins(0, np.arange(span.start, span.start + len(piece)))
            yield Block(piece.schema, piece.columns, where)
        for row in range(max(span.start, len(self.block)), span.stop):
            yield Reject("given", row, "read", "bad on purpose")

    def describe(self) -> dict[str, Any]:
        return {"kind": self.name}


def write(path: Path, store: Any, block: Block, step: int, announce: bool = True, rejects: int = 0) -> Manifest:
    """Publish a block as a store, appended `step` rows at a time."""
    source = Given(block, step, announce, rejects)
    plan = Plan(source, (), block.schema, source.plan(), store)
    return execute(plan, path, Policy(0, max_rejects=str(rejects))).manifest
