"""Everything that a source gives, in plan order, for tests of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigconv.block import Block
from bigconv.sources.base import Reject, Source


def read(source: Source) -> tuple[Block | None, list[Reject]]:
    """All rows as one block, and all rejects; every input is one or the other, and they come in order."""
    blocks: list[Block] = []
    rejects: list[Reject] = []
    inputs = 0
    for span in source.plan():
        for item in source.read(span):
            if isinstance(item, Reject):
                rejects.append(item)
                inputs += 1
                continue
            item.validate()
            blocks.append(item)
            inputs += len(item)
    assert inputs == source.inputs
    return (Block.concat(blocks) if blocks else None), rejects


def values(source: Source) -> dict[str, list[Any]]:
    """Column → plain Python values, when nothing is rejected."""
    block, rejects = read(source)
    assert rejects == []
    assert block is not None
    rows = [{n: v if isinstance(v, str) else np.asarray(v).tolist() for n, v in row.items()} for row in block]
    return {name: [row[name] for row in rows] for name in source.schema.names}


def fields(source: Source) -> list[tuple[str, str, tuple[int | None, ...], str]]:
    return [(f.name, f.dtype, f.shape, f.kind) for f in source.schema]


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path
