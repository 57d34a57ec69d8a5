"""Blocks and ragged columns against plain lists of arrays."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.block import Block, Ragged, cell
from bigconv.errors import RowError, SchemaError
from bigconv.schema import Field, Schema
from bigconv.testing import cases

FLAT = Field("flat", "int32", (None,))
ITEMS = Field("items", "float32", (None, 2))
SHAPES = Field("shapes", "uint8", (None, None, 3))
FIXED_FIRST = Field("last", "uint16", (2, None))


def rows_of(field: Field, lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [tuple(n if extent is None else extent for extent in field.shape) for n in lengths]
    return [cases.values(field.dtype, shape, rng) for shape in shapes]


def same_rows(column: Ragged, rows: list[np.ndarray]) -> None:
    assert len(column) == len(rows)
    for found, row in zip(column, rows, strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (row.dtype, row.shape, row.tobytes())


any_field = st.sampled_from([FLAT, ITEMS, SHAPES, FIXED_FIRST])
any_lengths = st.lists(st.integers(0, 4), max_size=8)


@given(any_field, any_lengths, st.data())
@settings(derandomize=True, max_examples=150, deadline=None)
def test_ragged_is_a_list_of_rows(field: Field, lengths: list[int], data: st.DataObject) -> None:
    """Rows, slices with any step, take and concat: all as a list does it."""
    rows = rows_of(field, lengths)
    column = Ragged.of(rows, field)
    Block(Schema((field,)), {field.name: column}).validate()
    same_rows(column, rows)
    np.testing.assert_array_equal(column.lengths, [r.size if field.has_shapes else len(r) for r in rows])
    part = data.draw(st.slices(len(rows)))
    same_rows(column[part], rows[part])
    Block(Schema((field,)), {field.name: column[part]}).validate()
    if rows:
        some = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=12))
        taken = column.take(np.array(some, np.int64))
        same_rows(taken, [rows[i] for i in some])
        Block(Schema((field,)), {field.name: taken}).validate()
        for i in (0, len(rows) - 1, -1, -len(rows)):
            assert column[np.int64(i)].tobytes() == rows[i].tobytes()
    cut = data.draw(st.integers(0, len(rows)))
    same_rows(Ragged.concat([column[:cut], column[cut:], column]), [*rows, *rows])


@pytest.mark.parametrize("field", [FLAT, SHAPES])
def test_rows_that_are_not_there(field: Field) -> None:
    column = Ragged.of(rows_of(field, [1, 2]), field)
    for row in (2, -3, 10**6):
        with pytest.raises(RowError, match=f"row {row} of a column of 2"):
            column[row]
    assert len(Ragged.of([], field)) == 0
    with pytest.raises(RowError):
        Ragged.of([], field)[0]


@pytest.mark.parametrize(
    ("field", "shapes"),
    [
        (FLAT, [(3,), (3, 1)]),
        (FLAT, [(3,), ()]),
        (ITEMS, [(3, 2), (3, 3)]),
        (SHAPES, [(1, 1, 3), (1, 1, 4)]),
        (FIXED_FIRST, [(2, 1), (3, 1)]),
    ],
)
def test_rows_that_do_not_fit_are_named(field: Field, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(SchemaError, match=f"field {field.name}, row 1: expected shape"):
        Ragged.of([np.zeros(shape, field.dtype) for shape in shapes], field)


def test_rows_of_any_memory_layout() -> None:
    """Big-endian, transposed and strided rows go in by value."""
    rows = [np.arange(12, dtype=">f4").reshape(2, 6).T, np.arange(20, dtype="<f4").reshape(5, 4)[::2, ::2]]
    column = Ragged.of(rows, ITEMS)
    assert column.values.dtype == np.float32
    for found, row in zip(column, rows, strict=True):
        np.testing.assert_array_equal(found, row)


SCHEMA = Schema((Field("x", "float32", (2,)), FLAT, SHAPES))


def block(rows: int = 6) -> Block:
    made = cases.block(SCHEMA, rows)
    return Block(made.schema, made.columns, np.stack([np.arange(rows) // 2, np.arange(rows) % 2], 1).astype(np.int64))


def test_block_by_rows() -> None:
    made = block()
    assert len(made) == 6
    assert [sorted(row) for row in made] == [["flat", "shapes", "x"]] * 6
    for i, row in enumerate(made):
        np.testing.assert_array_equal(row["x"], made["x"][i])
        np.testing.assert_array_equal(row["shapes"], made["shapes"][i])
    assert made.nbytes >= made["x"].nbytes + made["flat"].values.nbytes


@given(st.integers(0, 6), st.integers(0, 6), st.lists(st.integers(0, 5), max_size=9))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_slice_take_and_concat_carry_the_origin(start: int, stop: int, some: list[int]) -> None:
    made = block()
    oracle = list(range(6))
    for part, rows in ((made.slice(start, stop), oracle[start:stop]), (made.take(np.array(some, np.int64)), some)):
        part.validate()
        assert len(part) == len(rows)
        assert part.origin.tolist() == [[i // 2, i % 2] for i in rows]
        assert [row["x"].tobytes() for row in part] == [made["x"][i].tobytes() for i in rows]
    whole = Block.concat([made.slice(0, start), made.slice(start, 6)])
    assert cases.same_block(whole, made)
    np.testing.assert_array_equal(whole.origin, made.origin)


def test_concat_forgets_an_origin_that_one_lacks() -> None:
    made = block()
    assert Block.concat([made, replace(made, origin=None)]).origin is None
    assert Block.concat([made]) is made


def test_with_column_changes_one_field() -> None:
    made = block()
    field = Field("x", "uint8")
    changed = made.with_column(field, np.arange(6, dtype=np.uint8))
    changed.validate()
    assert changed.schema.names == made.schema.names
    assert changed.schema["x"] == field
    assert changed.origin is made.origin
    assert made.schema["x"].dtype == "float32"


def test_columns_that_are_no_block() -> None:
    made = block()
    with pytest.raises(SchemaError, match="expected the columns"):
        Block(made.schema, {"x": made["x"]})
    with pytest.raises(SchemaError, match="expected the columns"):
        Block(made.schema, dict(reversed(made.columns.items())))
    with pytest.raises(SchemaError, match="unequal length"):
        Block(made.schema, {**made.columns, "x": np.zeros((5, 2), np.float32)})
    with pytest.raises(SchemaError, match="origin"):
        Block(made.schema, made.columns, np.zeros((5, 2), np.int64))
    with pytest.raises(SchemaError, match="Did you mean 'flat'"):
        made["flut"]


def good(field: Field) -> Ragged:
    return Ragged.of(rows_of(field, [1, 2, 1]), field)


@pytest.mark.parametrize(
    ("field", "column", "words"),
    [
        (Field("x", "uint8"), np.zeros(3, np.int8), "expected dtype uint8, got int8"),
        (Field("x", "float32"), np.zeros(3, ">f8"), "expected dtype float32, got >f8"),
        (Field("x", "uint8", (2,)), np.zeros((3, 3), np.uint8), r"rows of shape \(2\), got \(3,\)"),
        (Field("x", "uint8", (2,)), np.zeros(3, np.uint8), "rows of shape"),
        (Field("x", "uint8"), good(Field("x", "uint8", (None,))), "expected an array"),
        (FLAT, np.zeros(3, np.int32), "expected a Ragged"),
        (FLAT, replace(good(FLAT), offsets=np.array([0, 1, 3, 4], np.int32)), "offsets must be int64"),
        (FLAT, replace(good(FLAT), offsets=np.array([1, 2, 3, 4])), "start with 0"),
        (FLAT, replace(good(FLAT), offsets=np.array([0, 3, 1, 4])), "must rise"),
        (FLAT, replace(good(FLAT), offsets=np.array([0, 1, 3, 5])), "end with 4"),
        (FLAT, replace(good(FLAT), shapes=np.ones((3, 1), np.int64)), "unexpected shapes"),
        (ITEMS, replace(good(ITEMS), values=np.zeros((4, 3), np.float32)), "rows of shape"),
        (SHAPES, replace(good(SHAPES), shapes=None), "expected shapes"),
        (SHAPES, replace(good(SHAPES), shapes=np.ones((3, 2), np.int64)), "expected shapes"),
        (
            SHAPES,
            replace(good(SHAPES), shapes=np.array([[1, 1, 3], [2, 3, 3], [1, 1, 3]])),
            r"row 1: shape \(2, 3, 3\) does not fit \(\*, \*, 3\) with 12 values",
        ),
        (
            SHAPES,
            replace(good(SHAPES), shapes=np.array([[1, 1, 3], [2, 2, 3], [3, 1, 1]])),
            r"row 2: shape \(3, 1, 1\) does not fit",
        ),
    ],
)
def test_validate_names_the_fault(field: Field, column: object, words: str) -> None:
    with pytest.raises(SchemaError, match=f"field {field.name}.*{words}"):
        Block(Schema((field,)), {field.name: column}).validate()


def test_validate_bears_any_byte_order() -> None:
    """Stores write values, not memory."""
    Block(Schema((Field("x", "float32"),)), {"x": np.zeros(3, ">f4")}).validate()


@pytest.mark.parametrize(("shape", "values"), [((-1, -4), 4), ((1 << 32, 1 << 32), 0), ((-1, 0), 0)])
def test_shapes_whose_product_deceives(shape: tuple[int, int], values: int) -> None:
    """-1 × -4 is 4, and 2³² × 2³² wraps to 0, but neither is the shape of so many values."""
    field = Field("x", "uint8", (None, None))
    column = Ragged(np.zeros(values, np.uint8), np.array([0, values]), np.array([shape]))
    with pytest.raises(SchemaError, match="row 0"):
        Block(Schema((field,)), {"x": column}).validate()


def test_shapes_of_another_integer() -> None:
    column = replace(good(SHAPES), shapes=good(SHAPES).shapes.astype(np.int32))
    with pytest.raises(SchemaError, match="expected shapes int64"):
        Block(Schema((SHAPES,)), {"shapes": column}).validate()


def test_text_is_shown_as_text() -> None:
    field = Field("t", "uint8", (None,), "text")
    column = Ragged.of([np.frombuffer(text, np.uint8) for text in (b"", "naïve ☃".encode(), b"\xff!")], field)
    assert [cell(field, column, i) for i in range(3)] == ["", "naïve ☃", "\N{REPLACEMENT CHARACTER}!"]
    assert [row["t"] for row in Block(Schema((field,)), {"t": column})][:2] == ["", "naïve ☃"]


def test_blocks_can_be_pickled() -> None:
    made = block()
    again = pickle.loads(pickle.dumps(made))
    assert cases.same_block(again, made)
    np.testing.assert_array_equal(again.origin, made.origin)


def test_empty_blocks() -> None:
    made = block(0)
    made.validate()
    assert list(made) == []
    assert len(made.take(np.empty(0, np.int64))) == 0
    assert cases.same_block(Block.concat([made, made, block()]), block())
