"""Digests: they follow rows and nothing else, as docs/format.md has them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.block import Block, Ragged
from bigconv.digest import MAX_BLOCK_ROWS, RAGGED_BLOCK_ROWS, Digester, Digests, block_digest, block_rows
from bigconv.schema import Field, Schema
from bigconv.testing import cases

SCHEMA = Schema((Field("x", "float32", (3,)), Field("tokens", "uint16", (None,)), Field("img", "uint8", (None, None))))


def digests(block: Block, cuts: list[int], rows: int | None = None, algorithm: str = "xxh3-128") -> Digests:
    digester = Digester(block.schema, rows, algorithm)
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(block)]):
        digester.update(block.slice(start, stop))
    assert digester.rows == len(block)
    return digester.finish()


@given(st.lists(st.integers(0, 23), max_size=8), st.integers(1, 30))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_how_rows_arrive_leaves_no_trace(cuts: list[int], rows: int) -> None:
    """Any cuts, empty blocks among them, any canonical size."""
    block = cases.block(SCHEMA, 23)
    found = digests(block, cuts, rows)
    assert found == digests(block, [], rows)
    assert found.blocks == -(-23 // rows)
    assert found.block_rows == rows
    assert all(len(table) == 16 * found.blocks for table in found.tables.values())


@given(st.lists(st.integers(0, 23), max_size=8), st.integers(1, 12), st.sampled_from(["xxh3-128", "sha256"]))
@settings(derandomize=True, max_examples=80, deadline=None)
def test_digests_that_are_known_are_the_same(cuts: list[int], rows: int, algorithm: str) -> None:
    """Blocks that are canonical ones, and others, in any mixture."""
    block = cases.block(SCHEMA, 23)
    digester = Digester(SCHEMA, rows, algorithm)
    bounds = sorted({0, 23, *cuts, *range(0, 23, rows)})
    for start, stop in itertools.pairwise(bounds):
        piece = block.slice(start, stop)
        digester.update(piece, block_digest(piece))
    assert digester.finish() == digests(block, [], rows, algorithm)


@pytest.mark.parametrize(
    ("algorithm", "hashed"),
    [("xxh3-128", xxhash.xxh3_128_digest), ("sha256", lambda data: hashlib.sha256(data).digest())],
    ids=["xxh3", "sha256"],
)
def test_bytes_of_the_specification(algorithm: str, hashed: Callable[[bytes], bytes]) -> None:
    """Written anew from docs/format.md."""
    block = cases.block(SCHEMA, 5)
    found = digests(block, [1, 4], 3, algorithm)
    expected: dict[str, bytes] = {"x": b"", "tokens": b"", "img": b""}
    for start, stop in ((0, 3), (3, 5)):
        expected["x"] += hashed(np.asarray(block["x"])[start:stop].astype("<f4").tobytes())
        for name in ("tokens", "img"):
            rows = [block[name][i] for i in range(start, stop)]
            lengths = np.array([row.size for row in rows], "<i8").tobytes()
            shapes = np.array([row.shape for row in rows], "<i8").tobytes()
            values = b"".join(row.tobytes() for row in rows)
            parts = [lengths, shapes, values] if name == "img" else [lengths, values]
            expected[name] += hashed(b"".join(map(hashed, parts)))
    assert dict(found.tables) == expected
    assert found.block("img", 1) == expected["img"][found.width :]
    head = {
        "fields": [{"name": f.name, "dtype": f.dtype, "shape": list(f.shape), "kind": f.kind} for f in SCHEMA],
        "rows": 5,
        "block_rows": 3,
        "algorithm": algorithm,
    }
    canonical = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    assert found.content(SCHEMA) == hashlib.sha256(canonical + b"".join(expected.values())).hexdigest()


def test_a_known_digest() -> None:
    """The figures of a store on somebody's disk: when they change, the format's version must."""
    schema = Schema((Field("x", "uint8", (2,)), Field("t", "uint8", (None,), "text")))
    text = Ragged.of([np.frombuffer(b, np.uint8) for b in (b"ab", b"", b"c")], schema["t"])
    block = Block(schema, {"x": np.arange(6, dtype=np.uint8).reshape(3, 2), "t": text})
    found = digests(block, []).content(schema)
    assert found == "e1755ef96bd49f618be9add8b0907fb5d82b62b1b48c86c226eafd0d41cb5b3b"


def test_every_bit_counts() -> None:
    block = cases.block(SCHEMA, 9)
    whole = digests(block, [], 4)
    for name in SCHEMA.names:
        for row in range(9):
            column = block[name]
            if isinstance(column, Ragged):
                if not column.lengths[row]:
                    continue
                values = column.values.copy()
                values[column.offsets[row]] ^= 1
                changed = Ragged(values, column.offsets, column.shapes)
            else:
                changed = np.array(column)
                changed.view(np.uint8).reshape(9, -1)[row, 0] ^= 1
            found = digests(Block(SCHEMA, {**block.columns, name: changed}), [], 4)
            wrong = [
                (other, number)
                for other in SCHEMA.names
                for number in range(3)
                if found.block(other, number) != whole.block(other, number)
            ]
            assert wrong == [(name, row // 4)]
            assert found.content(SCHEMA) != whole.content(SCHEMA)


def test_the_same_bytes_in_other_rows() -> None:
    """Boundaries and shapes are part of what is hashed, not only values."""
    flat = Field("x", "uint8", (None,))
    values = np.arange(6, dtype=np.uint8)

    def content(field: Field, offsets: list[int], shapes: list[list[int]] | None = None) -> str:
        column = Ragged(values, np.array(offsets), None if shapes is None else np.array(shapes))
        block = Block(Schema((field,)), {"x": column})
        block.validate()
        return digests(block, []).content(block.schema)

    image = Field("x", "uint8", (None, None))
    found = {
        content(flat, [0, 2, 6]),
        content(flat, [0, 4, 6]),
        content(flat, [0, 0, 6]),
        content(flat, [0, 6]),
        content(image, [0, 6], [[2, 3]]),
        content(image, [0, 6], [[3, 2]]),
    }
    assert len(found) == 6


def test_what_the_content_digest_knows_of_fields() -> None:
    """Name, dtype, shape, kind and order count; classes and axis order are no samples."""
    zeros = np.zeros(4, np.uint8)

    def content(*fields: Field) -> str:
        schema = Schema(fields)
        return digests(Block(schema, {f.name: zeros.view(f.dtype) for f in fields}), []).content(schema)

    a, b = Field("a", "uint8"), Field("b", "uint8")
    different = [(a,), (b,), (a, b), (b, a), (Field("a", "int8"),), (Field("a", "uint8", kind="label"),)]
    assert len({content(*fields) for fields in different}) == len(different)
    assert content(a.with_(classes=("x",))) == content(a)


def test_byte_order_and_memory_layout_do_not_count() -> None:
    schema = Schema((Field("x", "float64", (3,)),))
    plain = np.random.default_rng(0).random((5, 3))
    ways = [plain, plain.astype(">f8"), np.asfortranarray(plain), np.repeat(plain, 2, axis=0)[::2]]
    assert len({digests(Block(schema, {"x": x}), []).content(schema) for x in ways}) == 1


def test_zeros_and_nans_of_other_bits_differ() -> None:
    schema = Schema((Field("x", "float32"),))
    values = [0.0, -0.0, np.float32(np.nan), np.frombuffer(b"\x01\x00\xc0\x7f", "<f4")[0]]
    found = {digests(Block(schema, {"x": np.array([v], np.float32)}), []).content(schema) for v in values}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ((Field("x", "uint8"),), MAX_BLOCK_ROWS),
        ((Field("x", "uint8", (0,)),), MAX_BLOCK_ROWS),
        ((Field("x", "uint8", (1 << 20,)),), 8),
        ((Field("x", "uint8", (1 << 20,)), Field("y", "uint8", (1 << 20,))), 4),
        ((Field("x", "float64", (1 << 40,)),), 1),
        ((Field("x", "uint8", (1 << 20,)), Field("t", "uint8", (None,))), RAGGED_BLOCK_ROWS),
    ],
)
def test_canonical_blocks_follow_from_the_schema(fields: tuple[Field, ...], rows: int) -> None:
    assert block_rows(Schema(fields)) == rows


def test_no_rows() -> None:
    found = digests(cases.block(SCHEMA, 0), [])
    assert (found.rows, found.blocks) == (0, 0)
    assert found.tables == dict.fromkeys(SCHEMA.names, b"")
    assert found.content(SCHEMA) != digests(cases.block(SCHEMA, 1), []).content(SCHEMA)


def test_fields_alone_have_the_digests_of_the_whole() -> None:
    """As `inspect --verify` reads them: one field at a time."""
    block = cases.block(SCHEMA, 10)
    whole = digests(block, [], 4)
    for f in SCHEMA:
        alone = Block(Schema((f,)), {f.name: block.columns[f.name]})
        assert digests(alone, [3], 4).tables[f.name] == whole.tables[f.name]
