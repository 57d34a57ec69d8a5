"""Select, Rename and ToSparse on blocks and through whole conversions; masks that go along with their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigconv
from bigconv import registry
from bigconv.block import Block, Ragged
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms.base import config
from bigconv.transforms.crop import Crop
from bigconv.transforms.dtype import ToDtype
from bigconv.transforms.layout import Layout
from bigconv.transforms.rename import Rename
from bigconv.transforms.resize import FITS, Resize
from bigconv.transforms.select import Select
from bigconv.transforms.sparse import ToSparse

SCHEMA = Schema((Field("a", "float32", (3,)), Field("b", "int64"), Field("t", "uint8", (None,), "text")))


def block(rows: int = 4) -> Block:
    text = Ragged.of([np.frombuffer(b"x" * i, np.uint8) for i in range(rows)], SCHEMA["t"])
    columns = {"a": np.arange(3.0 * rows, dtype="f4").reshape(rows, 3), "b": np.arange(rows), "t": text}
    return Block(SCHEMA, columns, np.stack([np.zeros(rows, np.int64), np.arange(rows)], axis=1))


def apply(step: Any, some: Block) -> Block:
    done = step(some)
    done.validate()
    assert done.schema == step.schema(some.schema)
    assert done.origin is some.origin
    return done


@pytest.mark.parametrize("step", [Select(("b",)), Rename((("a", "b"), ("b", "a"))), ToSparse("x", 5), ToSparse("x,1")])
def test_options_round_trip(step: Any) -> None:
    """Through JSON, as a recipe, and through what a user types."""
    entry = json.loads(json.dumps(config(step)))
    cls = registry.load("transform", step.name)
    assert cls.parse(cls.typed(entry)) == step or cls.typed(entry) == "x,1"
    assert cls(**{key: value for key, value in entry.items() if key != "step"}) == step


def test_select() -> None:
    some = block()
    done = apply(Select.parse(" t, a"), some)
    assert done.schema.names == ("t", "a")
    assert done["a"] is some["a"]


@pytest.mark.parametrize("text", ["", "a,", "a,a", ","])
def test_select_typed_wrongly(text: str) -> None:
    with pytest.raises(UsageError, match="--select"):
        Select.parse(text)


def test_rename() -> None:
    some = block()
    done = apply(Rename.parse("a=b,b=a"), some)
    assert done.schema.names == ("b", "a", "t")
    assert done["b"] is some["a"]
    assert done["a"] is some["b"]


@pytest.mark.parametrize("text", ["", "a", "a=", "=b", "a=b,a=c"])
def test_rename_typed_wrongly(text: str) -> None:
    with pytest.raises(UsageError, match="expected OLD=NEW"):
        Rename.parse(text)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (Select(("aa",)), "unknown field 'aa'. Did you mean 'a'"),
        (Rename((("x", "y"),)), "unknown field 'x'"),
        (Rename((("a", "b"),)), "field names must differ"),
        (Rename((("a", "x/y"),)), "can't be a field name"),
        (ToSparse("x"), "unknown field 'x'"),
        (ToSparse("b"), "rows of numbers of one length"),
        (ToSparse("t"), "rows of numbers of one length"),
        (ToSparse("a", 4), "rows of field a have 3 numbers"),
    ],
)
def test_steps_that_do_not_fit(step: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        step.schema(SCHEMA)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint64", "bool", "complex64"])
def test_sparse_is_what_scipy_has(dtype: str) -> None:
    import scipy.sparse

    rng = np.random.default_rng(0)
    dense = (rng.integers(0, 9, (20, 7)) * (rng.random((20, 7)) < 0.3)).astype(dtype)
    dense[3] = 0
    done = apply(ToSparse("x"), Block(Schema((Field("x", dtype, (7,)),)), {"x": dense}, np.zeros((20, 2), np.int64)))
    assert [(f.name, f.dtype) for f in done.schema] == [("indices", "int32"), ("values", dtype)]
    indices, found = done["indices"], done["values"]
    assert isinstance(indices, Ragged)
    assert isinstance(found, Ragged)
    wide = dense.astype("f4") if dtype == "float16" else dense  # scipy has no half
    expected = scipy.sparse.csr_matrix(wide)
    expected.eliminate_zeros()
    np.testing.assert_array_equal(indices.offsets, expected.indptr)
    np.testing.assert_array_equal(indices.values, expected.indices)
    np.testing.assert_array_equal(found.values.astype(wide.dtype), expected.data)


def test_two_sparse_fields_get_names_of_their_own() -> None:
    schema = Schema((Field("x", "int64", (2,)), Field("y", "int64", (2,))))
    once = ToSparse("x").schema(schema)
    assert ToSparse("y").schema(once).names == ("indices", "values", "y.indices", "y.values")


def test_nan_and_negative_zero() -> None:
    dense = np.array([[np.nan, -0.0, 0.0, -1.0]])
    done = ToSparse("x")(Block(Schema((Field("x", "float64", (4,)),)), {"x": dense}))
    assert isinstance(done["indices"], Ragged)
    assert done["indices"].values.tolist() == [0, 3]


@pytest.mark.parametrize("suffix", [".mmap", ".h5", ".lmdb", ".zarr"])
def test_through_a_store_and_its_recipe(tmp_path: Path, suffix: str) -> None:
    """Every step is in the recipe, which makes the same again; the dense length is where readers find it."""
    from bigconv.runtime import SparseCollate, StoreDataset

    x = np.eye(6, 9, dtype="f4") * np.arange(1, 7, dtype="f4")[:, None]
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(6))
    sources, dest = [tmp_path / "x.npy", tmp_path / "y.npy"], tmp_path / f"a{suffix}"
    steps = [("sparse", "x"), ("rename", "y=label"), ("select", "label,indices,values")]
    made = bigconv.convert(sources, dest, steps=steps, workers=0)
    assert made.schema.names == ("label", "indices", "values")
    length = made.recipe["steps"][0]["length"]
    assert length == 9
    again = bigconv.convert(sources, tmp_path / f"b{suffix}", recipe=dest, workers=0)
    assert again.content_digest == made.content_digest
    assert again.recipe == made.recipe
    dataset = StoreDataset(dest)
    batch = SparseCollate(length=length)(dataset.__getitems__(list(range(6))))
    np.testing.assert_array_equal(batch["values"].numpy(), x)


def test_for_other_sources(tmp_path: Path) -> None:
    """A step doesn't mind where the fields come from."""
    (tmp_path / "t.csv").write_text("a,b,c\n1,x,0\n2,y,5\n")
    made = bigconv.convert(tmp_path / "t.csv", tmp_path / "t.h5", select="c,a", rename="c=n", workers=0)
    assert made.schema.names == ("n", "a")
    again = bigconv.convert(tmp_path / "t.h5", tmp_path / "u.zarr", select="a", workers=0)
    assert again.schema.names == ("a",)


# -- masks -------------------------------------------------------------------------------------------------------------


def pair(sizes: list[tuple[int, int]], dtype: str = "uint8") -> Block:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2**8, size).astype(dtype) for size in sizes]
    image = Field("image", "uint8", (None, None, 3), "image", "hwc")
    mask = Field("mask", dtype, (None, None), "mask")
    pixels = [np.repeat(m[:, :, None].astype("u1"), 3, axis=2) for m in masks]
    columns = {"image": Ragged.of(pixels, image), "mask": Ragged.of(masks, mask)}
    return Block(Schema((image, mask)), columns, np.zeros((len(sizes), 2), np.int64))


SIZES = [(40, 60), (60, 40), (31, 31), (5, 100), (1, 1), (24, 20)]


def untied(old: int, new: int) -> np.ndarray:
    """New pixels whose centre isn't on the edge of two old ones, where the rounding of Pillow's floats decides."""
    if old % new == 0:  # floats are exact
        return np.arange(new)
    return np.flatnonzero((2 * np.arange(new) + 1) * old % (2 * new))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
@pytest.mark.parametrize("size", [(24, 20), (7, 50), (80, 90)])
def test_masks_take_the_nearest_value_as_pillow_does(size: tuple[int, int], dtype: str) -> None:
    some = pair(SIZES, dtype)
    done = apply(Resize(*size, fit="stretch", backend="pillow"), some)
    for i, mask in enumerate(some["mask"]):
        expected = Image.fromarray(mask.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST)
        rows, columns = untied(mask.shape[0], size[0]), untied(mask.shape[1], size[1])
        assert len(rows) * len(columns) > size[0] * size[1] // 4
        cells = np.ix_(rows, columns)
        np.testing.assert_array_equal(done["mask"][i][cells], np.asarray(expected).astype(dtype)[cells])


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("backend", ["pillow", "torch"])
def test_masks_lie_on_their_images(fit: str, backend: str) -> None:
    """Two halves of one colour each: off the seam, and off the border, image and mask agree in every pixel."""
    for h, w in ((60, 100), (100, 60), (64, 64)):
        mask = np.zeros((h, w), np.uint8)
        mask[: h // 2], mask[h // 2 :] = 50, 200
        f, g = Field("image", "uint8", (h, w, 3), "image", "hwc"), Field("mask", "uint8", (h, w), "mask")
        columns = {"image": np.repeat(mask[None, :, :, None], 3, axis=3), "mask": mask[None]}
        some = Block(Schema((f, g)), columns, np.zeros((1, 2), np.int64))
        done = apply(Resize(20, 20, fit, backend), some)
        image, found = np.asarray(done["image"])[0, :, :, 0], np.asarray(done["mask"])[0]
        assert set(np.unique(found)) <= {0, 50, 200}
        assert np.count_nonzero(image != found) <= 2 * 20  # the seam is blended in the image
        assert ((image == 0) == (found == 0)).all()


def test_masks_are_cropped_with_their_images() -> None:
    some = pair([(9, 12), (30, 8)])
    for step in (Crop(4, 5), Crop(4, 5, 2, 1)):
        done = apply(step, some)
        np.testing.assert_array_equal(np.asarray(done["image"])[..., 0], done["mask"])


def test_other_steps_leave_masks_alone() -> None:
    some = pair([(9, 12), (30, 8)])
    for step in (Layout("chw"), ToDtype("float32")):
        assert apply(step, some)["mask"] is some["mask"]


def test_masks_alone() -> None:
    mask = Field("mask", "uint16", (8, 8), "mask")
    some = Block(Schema((mask,)), {"mask": np.arange(64, dtype="u2").reshape(1, 8, 8)}, np.zeros((1, 2), np.int64))
    np.testing.assert_array_equal(apply(Resize(4, 4), some)["mask"], [np.arange(64).reshape(8, 8)[1::2, 1::2]])
    np.testing.assert_array_equal(apply(Crop(8, 2), some)["mask"], [np.arange(64).reshape(8, 8)[:, 3:5]])
