"""Rows that are awkward on purpose: every dtype, empty axes, ragged rows of nothing, sizes that fit no chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bigconv.block import Array, Block, Column, Ragged
from bigconv.schema import DTYPES, Field, Schema


def values(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random bits as values of a dtype, NaN payloads and infinities among them."""
    kind = np.dtype(dtype)
    if kind == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(rng.bytes(size), kind).reshape(shape).copy()


def column(field: Field, rows: int, rng: np.random.Generator, longest: int = 9) -> Column:
    """Random rows of a field."""
    if not field.ragged:
        return values(field.dtype, (rows, *field.item_shape), rng)
    if field.kind == "text":
        words = ["", "é", "naïve ☃", "line\nbreak", "x" * 300]
        return Ragged.of(
            [np.frombuffer(words[int(i)].encode(), np.uint8) for i in rng.integers(0, len(words), rows)], field
        )
    shapes = [tuple(int(rng.integers(0, longest)) if n is None else n for n in field.shape) for _ in range(rows)]
    return Ragged.of([values(field.dtype, shape, rng) for shape in shapes], field)


def block(schema: Schema, rows: int, seed: int = 0) -> Block:
    """Random rows of a schema."""
    rng = np.random.default_rng(seed)
    return Block(schema, {f.name: column(f, rows, rng) for f in schema})


def schemas() -> Iterator[tuple[str, Schema]]:
    """Named schemas that every store must hold."""
    yield "every dtype", Schema(tuple(Field(f"a {dtype}", dtype, (3,)) for dtype in DTYPES))
    yield "scalars", Schema((Field("x", "float32"), Field("y", "int64", kind="label", classes=("a", "b"))))
    yield (
        "image and label",
        Schema((Field("image", "uint8", (3, 8, 8), "image", "chw"), Field("label", "int64", (), "label"))),
    )
    yield "rows of pages", Schema((Field("x", "uint8", (5000,)),))
    yield "large rows", Schema((Field("x", "float64", (70, 70)),))
    yield "an empty axis", Schema((Field("x", "float32", (0, 3)), Field("y", "uint8")))
    yield "ragged", Schema((Field("tokens", "uint16", (None,), "tokens"), Field("label", "int64", (), "label")))
    yield "ragged items", Schema((Field("points", "float32", (None, 3)),))
    yield (
        "images of all sizes",
        Schema((Field("image", "uint8", (None, None, 3), "image", "hwc"), Field("label", "int64"))),
    )
    yield "text and bytes", Schema((Field("text", "uint8", (None,), "text"), Field("raw", "uint8", (None,), "encoded")))
    yield (
        "two ragged around a fixed",
        Schema((Field("a", "float64", (None,)), Field("b", "int8", (2,)), Field("c", "complex64", (2, None)))),
    )
    yield (
        "odd names",
        Schema((Field("x.values", "uint8"), Field("größe in m²", "float32"), Field("a-b c", "bool", (2,)))),
    )


def same(a: Column, b: Column) -> bool:
    """Bit by bit the same rows: NaN payloads and signs of zero count."""
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        shapes = (a.shapes is None and b.shapes is None) or bool(
            a.shapes is not None and b.shapes is not None and np.array_equal(a.shapes, b.shapes)
        )
        return shapes and np.array_equal(a.offsets, b.offsets) and same(a.values, b.values)
    if isinstance(a, Ragged) or isinstance(b, Ragged):
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_block(a: Block, b: Block) -> bool:
    """Bit by bit the same rows of the same fields."""
    return a.schema == b.schema and all(same(a.columns[name], b.columns[name]) for name in a.schema.names)
