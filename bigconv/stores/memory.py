"""memory: rows kept in this process. The oracle that every other store is held against in tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Block, Column, Index, Ragged
from bigconv.errors import NotAStore
from bigconv.hashes import XXH3
from bigconv.manifest import Manifest
from bigconv.schema import Schema
from bigconv.stores.base import Whereabouts

#: Finished and unfinished memory stores of this process, by path.
_HELD: dict[str, _Held] = {}


@dataclass
class _Held:
    blocks: list[Block]
    manifest: bytes | None = None
    attachments: dict[str, bytes] = default(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Rows kept in this process, under the path they were written to."""

    name: ClassVar[str] = "memory"

    def create(self, path: Path, schema: Schema, rows: int | None = None) -> MemoryWriter:
        _HELD[os.fspath(path)] = held = _Held([])
        return MemoryWriter(held)

    def resume(self, path: Path, schema: Schema, rows: int | None, state: Mapping[str, Any]) -> MemoryWriter:
        raise NotAStore(f"{path}: memory does not outlive its process")

    def open(self, path: Path, schema: Schema, rows: int) -> MemoryReader:
        return MemoryReader(_held(path).blocks, schema, rows)

    def manifest(self, path: Path) -> bytes:
        raw = _held(path).manifest
        if raw is None:
            raise NotAStore(f"{path}: no manifest in memory")
        return raw

    def attachment(self, path: Path, name: str) -> bytes | None:
        return _held(path).attachments.get(name)

    def files(self, path: Path, algorithm: str = XXH3) -> dict[str, tuple[int, str]]:
        return {}

    def check(self, path: Path, manifest: Manifest) -> None:
        _held(path)

    def describe(self, schema: Schema, path: Path | None = None) -> dict[str, str]:
        return {f.name: "in memory" for f in schema}


def _held(path: Path) -> _Held:
    try:
        return _HELD[os.fspath(path)]
    except KeyError:
        raise NotAStore(f"{path}: nothing in memory under this name") from None


class MemoryWriter:
    """Keeps copies of the blocks."""

    def __init__(self, held: _Held) -> None:
        self._held = held

    def append(self, block: Block) -> None:
        columns: dict[str, Column] = {}
        for f in block.schema:
            column = block.columns[f.name]
            columns[f.name] = (
                column.take(np.arange(len(column)))
                if isinstance(column, Ragged)
                else np.array(column, f.dtype, order="C")
            )
        self._held.blocks.append(Block(block.schema, columns))

    def checkpoint(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass

    def attach(self, name: str, data: bytes) -> None:
        self._held.attachments[name] = bytes(data)

    def seal(self, manifest: Manifest) -> None:
        self._held.manifest = manifest.to_bytes()

    def abort(self) -> None:
        self._held.blocks.clear()


class MemoryReader:
    """Reads by numpy's own indexing."""

    def __init__(self, blocks: list[Block], schema: Schema, rows: int) -> None:
        self.rows = rows
        empty = {f.name: Ragged.of([], f) if f.ragged else np.empty((0, *f.item_shape), f.dtype) for f in schema}
        self._all = Block.concat(blocks) if blocks else Block(schema, empty)

    def locate(self) -> Whereabouts | None:
        return None

    def take(self, rows: Index, fields: tuple[str, ...]) -> Block:
        picked = self._all.take(rows)
        return Block(self._all.schema.select(fields), {name: picked.columns[name] for name in fields})

    def close(self) -> None:
        pass
