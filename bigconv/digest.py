"""Proof that nothing was lost: digests per field and canonical block of rows.

A *canonical block* is a number of rows that follows from the schema alone, so neither store, chunk,
shard nor worker count shows in a digest. Digests are xxh3-128, or SHA-256 where that is asked for, over the
little-endian bytes of the rows; the content digest is SHA-256 over schema, row count and all of them. See
docs/format.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bigconv.block import Array, Block, Ragged
from bigconv.hashes import XXH3, hasher, width
from bigconv.schema import Schema

BLOCK_BYTES = 8 << 20  # 8 MiB: names a damaged place closely, at 2 bytes of manifest a MiB and field
MAX_BLOCK_ROWS = 65536  # labels alone: 512 KiB a block
RAGGED_BLOCK_ROWS = 1024  # sizes aren't known from the schema


def block_rows(schema: Schema) -> int:
    """Rows of a canonical block: a pure function of the schema."""
    if any(f.ragged for f in schema):
        return RAGGED_BLOCK_ROWS
    row = sum(f.row_bytes for f in schema)
    return max(1, min(MAX_BLOCK_ROWS, BLOCK_BYTES // max(1, row)))


@dataclass(frozen=True)
class Digests:
    """One digest a field and canonical block of `block_rows` rows; the last block may be shorter."""

    rows: int
    block_rows: int
    tables: Mapping[str, bytes]  # field -> `width` bytes a block
    algorithm: str = XXH3

    @classmethod
    def blank(cls, schema: Schema, rows: int, algorithm: str) -> Digests:
        """As many digests as so many rows have, all zero: for what needs only their size."""
        made = cls(rows, block_rows(schema), {}, algorithm)
        size = made.blocks * made.width
        return cls(rows, made.block_rows, {f.name: bytes(size) for f in schema}, algorithm)

    @property
    def width(self) -> int:
        """Bytes of a digest."""
        return width(self.algorithm)

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    def block(self, field: str, number: int) -> bytes:
        return self.tables[field][number * self.width : (number + 1) * self.width]

    def whole(self) -> dict[str, bytes]:
        """The tables without the last block, if that is shorter than the others."""
        end = self.rows // self.block_rows * self.width
        return {name: table[:end] for name, table in self.tables.items()}

    def content(self, schema: Schema) -> str:
        """Hex SHA-256: equal for equal samples in equal order and one algorithm, whatever the store."""
        head = {
            "fields": [{"name": f.name, "dtype": f.dtype, "shape": list(f.shape), "kind": f.kind} for f in schema],
            "rows": self.rows,
            "block_rows": self.block_rows,
            "algorithm": self.algorithm,
        }
        total = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
        for f in schema:
            total.update(self.tables[f.name])
        return total.hexdigest()


class Digester:
    """Hashes blocks of any size as they go by; `finish()` gives the table."""

    def __init__(self, schema: Schema, rows_a_block: int | None = None, algorithm: str = XXH3) -> None:
        """`rows_a_block`: of the whole schema, when `schema` has only some of its fields."""
        self._block_rows = rows_a_block or block_rows(schema)
        self._rows = 0
        self._algorithm = algorithm
        self._open = {f.name: _BlockHash(f.has_shapes, algorithm) for f in schema if f.ragged}
        self._flat = {f.name: hasher(algorithm) for f in schema if not f.ragged}
        self._tables: dict[str, bytearray] = {f.name: bytearray() for f in schema}

    @property
    def rows(self) -> int:
        return self._rows

    def knows(self, block: Block) -> bool:
        """Whether the rows that come next are one canonical block, whose `block_digest` is what they add."""
        return self._algorithm == XXH3 and len(block) == self._block_rows and self._rows % self._block_rows == 0

    def update(self, block: Block, known: bytes = b"") -> None:
        """Add rows. `known`: their `block_digest`, which is not made again where it serves."""
        if known and self.knows(block):
            size = width(XXH3)
            for number, name in enumerate(block.columns):
                self._tables[name] += known[number * size : (number + 1) * size]
            self._rows += len(block)
            return
        start = 0
        while start < len(block):
            stop = min(len(block), start + self._block_rows - self._rows % self._block_rows)
            for name, column in block.columns.items():
                piece = column[start:stop]
                if isinstance(piece, Ragged):
                    self._open[name].update(piece)
                else:
                    self._flat[name].update(raw(piece))
            self._rows += stop - start
            start = stop
            if self._rows % self._block_rows == 0:
                self._cut()

    def _cut(self) -> None:
        for name, flat in self._flat.items():
            self._tables[name] += flat.digest()
            self._flat[name] = hasher(self._algorithm)
        for name, ragged in self._open.items():
            self._tables[name] += ragged.cut()

    def finish(self) -> Digests:
        if self._rows % self._block_rows:
            self._cut()
        tables = {name: bytes(table) for name, table in self._tables.items()}
        return Digests(self._rows, self._block_rows, tables, self._algorithm)


class InnerDigester:
    """Canonical blocks of a larger table that lie wholly in a run of its rows, which begins at row `start`.

    Other runs hold the rest of the blocks at its ends: those are hashed where both sides are there.
    """

    def __init__(self, schema: Schema, start: int, algorithm: str = XXH3) -> None:
        self._digester = Digester(schema, algorithm=algorithm)
        self._skip = -start % block_rows(schema)

    def update(self, block: Block) -> None:
        if self._skip:
            before = min(self._skip, len(block))
            self._skip -= before
            block = block.slice(before, len(block))
        if len(block):
            self._digester.update(block)

    def finish(self) -> dict[str, bytes]:
        """Field → the digests of its whole blocks."""
        return self._digester.finish().whole()


def block_digest(block: Block) -> bytes:
    """A digest a field, in the schema's order: proof that a block arrived where it was written to. It is held against
    what is read back and then dropped, so it is xxh3 always."""
    digests = []
    for column in block.columns.values():
        if isinstance(column, Ragged):
            one = _BlockHash(column.shapes is not None, XXH3)
            one.update(column)
            digests.append(one.cut())
        else:
            flat = hasher(XXH3)
            flat.update(raw(column))
            digests.append(flat.digest())
    return b"".join(digests)


class _BlockHash:
    """Digest of one ragged block: lengths, shapes and values are hashed apart as they arrive,
    and the three digests together make the block's, so no value has to wait for a later length."""

    def __init__(self, has_shapes: bool, algorithm: str) -> None:
        self._has_shapes, self._algorithm = has_shapes, algorithm
        self._begin()

    def _begin(self) -> None:
        self._lengths, self._shapes, self._values = (hasher(self._algorithm) for _ in range(3))

    def update(self, piece: Ragged) -> None:
        self._lengths.update(raw(piece.lengths))
        if piece.shapes is not None:
            self._shapes.update(raw(piece.shapes))
        self._values.update(raw(piece.values))

    def cut(self) -> bytes:
        parts = [self._lengths, self._shapes, self._values] if self._has_shapes else [self._lengths, self._values]
        whole = hasher(self._algorithm)
        for part in parts:
            whole.update(part.digest())
        self._begin()
        digest: bytes = whole.digest()
        return digest


def little_endian(array: Array) -> Array:
    """The same array, C-contiguous and little-endian: as every store holds it."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def raw(array: Array) -> memoryview:
    """The bytes of an array as every store holds them."""
    return little_endian(array).reshape(-1).view(np.uint8).data
