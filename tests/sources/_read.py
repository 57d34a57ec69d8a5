"""Rows and rejects of a source, in plan order."""

from __future__ import annotations

from typing import Any

from bigconv.block import Block
from bigconv.sources.base import Reject, Source


def read_rows(source: Source) -> tuple[list[dict[str, Any]], list[Reject]]:
    """All rows as dicts, and all rejects; every input is one or the other."""
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for span in source.plan():
        for item in source.read(span):
            if isinstance(item, Block):
                item.validate()
                rows += item
            else:
                rejects.append(item)
    assert len(rows) + len(rejects) == source.inputs
    return rows, rejects
