"""Any bigconv store or sharded directory, or several with the same fields: format changes, merges, re-layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Block, Index
from bigconv.hashes import SHA256, XXH3
from bigconv.schema import Schema
from bigconv.sources.base import SPAN_BYTES, Reject, Span, even_spans, origins
from bigconv.sources.filelist import FileList, told
from bigconv.view.table import StoreView


@dataclass(frozen=True)
class StoreSource:
    """Rows of finished stores, as they are."""

    name: ClassVar[str] = "store"
    decodes: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()

    view: StoreView

    @classmethod
    def find(cls, paths: Sequence[Path]) -> StoreSource:
        return cls(StoreView(paths))

    @property
    def schema(self) -> Schema:
        return self.view.schema

    @property
    def files(self) -> FileList:
        if not self.view.remote:
            return FileList.named(self.view.paths)
        # parts that aren't here are listed as those that are, without a time: their digests vouch for them
        parts = [(root.part_path(i).name, size) for root in self.view.roots for i, size in enumerate(root.part_sizes)]
        return FileList.told([(name, size, 0) for name, size in parts])

    @property
    def inputs(self) -> int:
        return len(self.view)

    @property
    def digest_algorithm(self) -> str:
        """Of the stores; SHA-256 where only some have it, as that proves more."""
        known = {root.manifest.digests.algorithm for root in self.view.roots}
        return SHA256 if SHA256 in known else XXH3

    def plan(self) -> Sequence[Span]:
        total = sum(root.bytes() for root in self.view.roots)
        row = max(1, total // max(1, len(self.view)))
        return even_spans(len(self.view), max(1, SPAN_BYTES // row))

    def row_bytes(self, rows: Index) -> Index:
        """int64 `[rows]`: bytes of each row's values."""
        each = np.full(len(rows), sum(f.row_bytes for f in self.schema if not f.ragged), np.int64)
        for f in self.schema:
            if f.ragged:
                each += self.view.lengths(f.name, rows) * f.row_bytes
        return each

    def read(self, span: Span) -> Iterator[Block | Reject]:
        row = span.start
        for block in self.view.blocks(span.start, span.stop):
            store, inside = self.view.whence(np.arange(row, row + len(block)))
            yield Block(block.schema, block.columns, origins(store, inside))
            row += len(block)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "stores": [
                {"path": told(s.path), "rows": s.manifest.rows, "content_digest": s.manifest.content_digest}
                for s in self.view.roots
            ],
        }
