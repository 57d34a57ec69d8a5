"""Crop against numpy's slices and torch's central crop."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.block import Block, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms.base import config
from bigconv.transforms.crop import Crop

SIZES = [(6, 9), (9, 6), (6, 6), (7, 8)]


def images(sizes: list[tuple[int, int]], dtype: str = "uint8") -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (h, w, 3)).astype(dtype) for h, w in sizes]


def block_of(rows: list[np.ndarray], layout: str, ragged: bool) -> Block:
    if layout == "chw":
        rows = [np.ascontiguousarray(row.transpose(2, 0, 1)) for row in rows]
    varies = (None, None, 3) if layout == "hwc" else (3, None, None)
    field = Field("image", str(rows[0].dtype), varies if ragged else rows[0].shape, kind="image", layout=layout)
    label = Field("label", "int64", (), kind="label")
    column = Ragged.of(rows, field) if ragged else np.stack(rows)
    return Block(Schema((field, label)), {"image": column, "label": np.arange(len(rows))})


def cropped(step: Crop, block: Block) -> np.ndarray:
    done = step(block)
    done.validate()
    assert done.schema == step.schema(block.schema)
    assert done["label"] is block["label"]
    column = done["image"]
    assert isinstance(column, np.ndarray)
    assert column.flags.c_contiguous
    return column if done.schema["image"].layout == "hwc" else column.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool", "uint16"])
@pytest.mark.parametrize("at", [None, (0, 0), (2, 1)])
def test_crops_are_slices(layout: str, dtype: str, at: tuple[int, int] | None) -> None:
    rows = images(SIZES, dtype)
    step = Crop(4, 5, *(at or (None, None)))
    expected = []
    for row in rows:
        top, left = at or ((row.shape[0] - 4) // 2, (row.shape[1] - 5) // 2)
        expected.append(row[top : top + 4, left : left + 5])
    np.testing.assert_array_equal(cropped(step, block_of(rows, layout, True)), expected)
    same_size = [rows[0], rows[0][::-1].copy()]
    one = [expected[0], expected[0]]
    top, left = at or (1, 2)
    one[1] = same_size[1][top : top + 4, left : left + 5]
    np.testing.assert_array_equal(cropped(step, block_of(same_size, layout, False)), one)


def test_the_centre_is_torchs() -> None:
    """`torchvision.transforms.functional.center_crop`: int(round((h - H) / 2)); for even differences they agree."""
    row = images([(12, 10)])
    np.testing.assert_array_equal(cropped(Crop(8, 4), block_of(row, "hwc", False))[0], row[0][2:10, 3:7])
    np.testing.assert_array_equal(cropped(Crop(12, 10), block_of(row, "hwc", False))[0], row[0])
    # where it doesn't come out even, the spare line is below and to the right
    np.testing.assert_array_equal(cropped(Crop(11, 9), block_of(row, "hwc", False))[0], row[0][:11, :9])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_where_a_block_is_cut_does_not_show(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.tuples(st.integers(3, 9), st.integers(2, 9)), min_size=1, max_size=6))
    block = block_of(images(sizes), data.draw(st.sampled_from(["hwc", "chw"])), True)
    step = Crop(3, 2)
    cut = data.draw(st.integers(0, len(block)))
    parts = np.concatenate([cropped(step, block.slice(0, cut)), cropped(step, block.slice(cut, len(block)))])
    np.testing.assert_array_equal(parts, cropped(step, block))


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_a_small_image_is_told_and_the_others_are_not_lost(layout: str) -> None:
    block = block_of(images([(6, 6), (5, 6), (6, 5)]), layout, True)
    step = Crop.parse("6")
    with pytest.raises(
        SchemaError, match=r"field image, row 1 of the block: --crop 6x6 needs 6x6 pixels, the image has 5x6"
    ):
        step(block)
    assert len(cropped(step, block.slice(0, 1))) == 1
    with pytest.raises(SchemaError, match=r"needs 7x8 pixels, the image has 6x6"):
        Crop.parse("3x4+4+4")(block)
    fixed = block_of(images([(5, 6)]), layout, False)
    with pytest.raises(SchemaError, match=r"field image: --crop 6x6 needs 6x6 pixels, the image has 5x6"):
        step.schema(fixed.schema)


def test_options() -> None:
    step = Crop.parse("224x320+16+0")
    assert config(step) == {"step": "crop", "height": 224, "width": 320, "top": 16, "left": 0}
    assert config(Crop.parse(" 224 ")) == {"step": "crop", "height": 224, "width": 224, "top": None, "left": None}
    for text in ("224", "3x4", "3X4+0+7", "5+1+2"):
        made = Crop.parse(text)
        assert pickle.loads(pickle.dumps(made)) == made
        assert Crop.parse(Crop.typed(json.loads(json.dumps(config(made))))) == made
    for bad in (
        "",
        "a",
        "0",
        "0x4",
        "-3",
        "3x",
        "x3",
        "3+1",
        "3x4+1",
        "3x4+-1+2",
        "3x4+1+2+3",
        "999999999x9",
        "1.5",
        "٣",
    ):
        with pytest.raises(UsageError, match="--crop"):
            Crop.parse(bad)
    with pytest.raises(UsageError, match="expected two offsets"):
        Crop(3, 3, 1, None)


def test_what_has_no_pixels() -> None:
    with pytest.raises(UsageError, match=r"--crop needs a field of images.*there are: x \(array\)"):
        Crop(1, 1).schema(Schema((Field("x", "uint8", (3, 3, 3)),)))
    varies = Schema((Field("image", "uint8", (None, None, None), kind="image", layout="hwc"),))
    with pytest.raises(UsageError, match="the number of channels of field image varies"):
        Crop(1, 1).schema(varies)
