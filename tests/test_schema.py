"""Fields and schemas: what is refused, what a field is made of, and JSON there and back."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.errors import SchemaError
from bigconv.schema import DTYPES, KINDS, Field, Schema, dtype_name, unknown


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_by_any_of_its_names(dtype: str) -> None:
    """numpy's types, its codes and both byte orders all mean the same column."""
    numpy = np.dtype(dtype)
    for name in (dtype, numpy, numpy.type, numpy.newbyteorder(">"), numpy.newbyteorder("<"), numpy.str):
        assert dtype_name(name) == dtype
        assert Field("x", name).dtype == dtype
    assert Field("x", dtype) == Field("x", numpy.newbyteorder(">"))


@pytest.mark.parametrize(
    "dtype",
    ["object", "O", "U5", "S3", "M8[ns]", "m8", "V8", "float128", "f4,i4", "nonsense", "", "('<f4', (2,))", None, 7],
)
def test_dtypes_that_no_store_holds(dtype: object) -> None:
    with pytest.raises(SchemaError, match=r"field x: dtype .* can't be stored"):
        Field("x", dtype)


def test_objects_are_said_to_be_pickles() -> None:
    with pytest.raises(SchemaError, match="never read"):
        Field("x", "object")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "_x", "a/b", "a\\b", "a\0", "a\n", "\x7f", " x", "x ", "x\t", "x" * 201, "\ud800", 3, None],
)
def test_names_that_could_harm(name: object) -> None:
    """No folders, nothing hidden, nothing that moves a cursor, nothing that JSON in UTF-8 can't hold."""
    with pytest.raises(SchemaError, match="can't be a field name"):
        Field(name, "uint8")


@pytest.mark.parametrize(
    "name", ["x", "a b", "größe in m²", "雪", "a.b", "a_", "[red]", "x" * 200, "con", "nul.", "-x"]
)
def test_names_that_are_fine(name: str) -> None:
    assert Field(name, "uint8").name == name


@pytest.mark.parametrize("shape", [(-1,), (1.5,), (None, -3), ("3",), 3, None])
def test_shapes_that_are_none(shape: object) -> None:
    with pytest.raises(SchemaError, match="field x"):
        Field("x", "uint8", shape)


def test_shape_from_a_list_of_numpy_integers() -> None:
    field = Field("x", "uint8", [np.int64(3), None, np.uint8(2)])
    assert field.shape == (3, None, 2)
    assert all(n is None or type(n) is int for n in field.shape)  # as JSON takes it


def test_kinds() -> None:
    for kind in KINDS:
        assert Field("x", "uint8", (None,), kind).kind == kind
    with pytest.raises(SchemaError, match="unknown kind 'imge'"):
        Field("x", "uint8", (), "imge")
    for kind in ("text", "bytes", "encoded"):
        for dtype, shape in (("int8", (None,)), ("uint8", ()), ("uint8", (5,)), ("uint8", (None, 3))):
            with pytest.raises(SchemaError, match=f"kind {kind} is uint8"):
                Field("x", dtype, shape, kind)


def test_classes_are_names() -> None:
    assert Field("y", "int64", classes=["a", "b"]).classes == ("a", "b")
    for classes in ((1, 2), ("a", None), ("\udcff",), (b"a",)):
        with pytest.raises(SchemaError, match="classes"):
            Field("y", "int64", classes=classes)


@pytest.mark.parametrize(
    ("shape", "item", "ragged", "shapes", "parts"),
    [
        ((), (), False, False, {"x": ("rows", "float32", ())}),
        ((3, 0), (3, 0), False, False, {"x": ("rows", "float32", (3, 0))}),
        ((None,), (), True, False, {"x/values": ("values", "float32", ()), "x/offsets": ("offsets", "int64", ())}),
        (
            (None, 4),
            (4,),
            True,
            False,
            {"x/values": ("values", "float32", (4,)), "x/offsets": ("offsets", "int64", ())},
        ),
        (
            (4, None),
            (),
            True,
            True,
            {
                "x/values": ("values", "float32", ()),
                "x/offsets": ("offsets", "int64", ()),
                "x/shapes": ("shapes", "int64", (2,)),
            },
        ),
        (
            (None, None, 3),
            (),
            True,
            True,
            {
                "x/values": ("values", "float32", ()),
                "x/offsets": ("offsets", "int64", ()),
                "x/shapes": ("shapes", "int64", (3,)),
            },
        ),
    ],
)
def test_parts(shape: tuple, item: tuple, ragged: bool, shapes: bool, parts: dict) -> None:
    """As docs/format.md has them."""
    field = Field("x", "float32", shape)
    assert (field.item_shape, field.ragged, field.has_shapes) == (item, ragged, shapes)
    assert {p.name: (p.role, p.dtype, p.shape) for p in field.parts()} == parts
    assert field.row_bytes == 4 * math.prod(item)
    assert [p.item_bytes for p in field.parts()][1:] == [8, 8 * len(shape)][: len(parts) - 1]


def test_bytes_of_shapes_beyond_64_bits() -> None:
    """A manifest may claim anything: sizes are Python's integers, which don't wrap."""
    assert Field("x", "float64", (1 << 40, 1 << 40)).row_bytes == 1 << 83


fields = st.builds(
    Field,
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1, max_size=200).filter(
        lambda name: name == name.strip() and name[0] not in "._"
    ),
    st.sampled_from(DTYPES),
    st.lists(st.none() | st.integers(0, 1 << 70), max_size=5).map(tuple),
    st.sampled_from([k for k in KINDS if k not in ("text", "bytes", "encoded")]),
    st.sampled_from([None, "hwc", "chw"]),
    st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple),
)


@given(st.lists(fields, min_size=1, max_size=4, unique_by=lambda f: f.name))
@settings(derandomize=True, max_examples=100)
def test_json_there_and_back(some: list[Field]) -> None:
    schema = Schema(tuple(some))
    again = Schema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False)))
    assert again == schema
    assert hash(again) == hash(schema)
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert all(again[f.name] == f for f in some)


GOOD = {"name": "x", "dtype": "uint8", "shape": [3, None], "kind": "array"}


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"name": None},
        {"name": "../x"},
        {"dtype": None},
        {"dtype": 3},
        {"dtype": "object"},
        {"dtype": "nonsense"},
        {"shape": 3},
        {"shape": None},
        {"shape": [True]},
        {"shape": [1.0]},
        {"shape": ["3"]},
        {"shape": [-1]},
        {"kind": None},
        {"kind": "x"},
        {"layout": 3},
        {"classes": [1]},
        {"classes": 5},
        {"classes": [["a"]]},
    ],
)
def test_json_that_is_no_field(change: dict) -> None:
    with pytest.raises(SchemaError):
        Field.from_json(GOOD | change)


@pytest.mark.parametrize("missing", GOOD)
def test_json_that_lacks_a_key(missing: str) -> None:
    with pytest.raises(SchemaError, match="not a field"):
        Field.from_json({key: value for key, value in GOOD.items() if key != missing})


@pytest.mark.parametrize("data", [None, {}, "x", [[]], [None], [3], []])
def test_json_that_is_no_schema(data: object) -> None:
    with pytest.raises(SchemaError):
        Schema.from_json(data)


def test_a_huge_wrong_field_makes_a_short_error() -> None:
    with pytest.raises(SchemaError) as error:
        Field.from_json(["x" * 10_000_000])
    assert len(str(error.value)) < 300


def test_schema_is_ordered_and_named() -> None:
    a, b = Field("a", "uint8"), Field("b", "int8", (None,))
    schema = Schema([b, a])
    assert schema.fields == (b, a)
    assert schema.names == ("b", "a")
    assert list(schema) == [b, a]
    assert len(schema) == 2
    assert "a" in schema
    assert "c" not in schema
    assert [p.name for p in schema.parts()] == ["b/values", "b/offsets", "a"]
    assert schema != Schema((a, b))
    assert schema.select(["a"]).fields == (a,)
    assert schema.select(["a", "b"]).names == ("a", "b")
    assert schema.replace(a.with_(dtype="int8")).fields == (b, a.with_(dtype="int8"))


def test_schema_refusals() -> None:
    a = Field("a", "uint8")
    with pytest.raises(SchemaError, match="at least one"):
        Schema(())
    with pytest.raises(SchemaError, match="must differ"):
        Schema((a, a.with_(dtype="int8")))
    with pytest.raises(SchemaError, match=r"unknown field 'imge'. Did you mean 'image'\? There are: image, label"):
        Schema((Field("image", "uint8"), Field("label", "uint8")))["imge"]
    for names in ([], ["a", "a"], ["b"]):
        with pytest.raises(SchemaError):
            Schema((a,)).select(names)


def test_suggestions_only_when_close() -> None:
    assert unknown("field", "zzz", ["image"]) == "unknown field 'zzz'. There are: image"


def test_fields_are_frozen() -> None:
    field = Field("x", "uint8")
    with pytest.raises(AttributeError):
        field.name = "y"
    with pytest.raises(SchemaError):
        field.with_(name="a/b")
