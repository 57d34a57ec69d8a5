"""Normalize against numpy in float64 and torch in float32."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.block import Block, Ragged
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms.base import config
from bigconv.transforms.normalize import Normalize

IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))


def every_value(channels: int = 3) -> np.ndarray:
    """`[2, 16, 16, channels] uint8` in which each channel has all 256 values, in another order."""
    rng = np.random.default_rng(2)
    planes = [rng.permutation(256).astype(np.uint8).reshape(16, 16) for _ in range(2 * channels)]
    return np.stack(planes, axis=-1).reshape(16, 16, 2, channels).transpose(2, 0, 1, 3).copy()


def block_of(images: np.ndarray | list[np.ndarray], layout: str) -> Block:
    ragged = isinstance(images, list)
    turned = [np.ascontiguousarray(image.transpose(2, 0, 1) if layout == "chw" else image) for image in images]
    channels = images[0].shape[-1]
    varies = (None, None, channels) if layout == "hwc" else (channels, None, None)
    field = Field("image", str(images[0].dtype), varies if ragged else turned[0].shape, kind="image", layout=layout)
    label = Field("label", "int64", (), kind="label")
    column = Ragged.of(turned, field) if ragged else np.stack(turned)
    return Block(Schema((field, label)), {"image": column, "label": np.arange(len(turned))})


def normalized(step: Normalize, block: Block) -> list[np.ndarray]:
    """Each image as `[h, w, c] float32`."""
    before = pickle.dumps(block)
    done = step(block)
    assert pickle.dumps(block) == before
    done.validate()
    assert done.schema == step.schema(block.schema)
    assert done.schema["image"] == block.schema["image"].with_(dtype="float32")
    assert done["label"] is block["label"]
    return [image if block.schema["image"].layout == "hwc" else image.transpose(1, 2, 0) for image in done["image"]]


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_uint8_is_the_formula_rounded_once(layout: str) -> None:
    images = every_value()
    expected = ((images / 255 - IMAGENET[0]) / IMAGENET[1]).astype(np.float32)
    step = Normalize.parse("imagenet")
    np.testing.assert_array_equal(normalized(step, block_of(images, layout)), expected)
    many = [images[0], images[1][:3], images[0][:, :1], images[0][:0]]
    for got, image in zip(normalized(step, block_of(many, layout)), many, strict=True):
        np.testing.assert_array_equal(got, ((image / 255 - IMAGENET[0]) / IMAGENET[1]).astype(np.float32))


def test_torch_does_the_same_to_its_precision() -> None:
    torch = pytest.importorskip("torch")
    images = every_value()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in IMAGENET)
    expected = ((pixels - mean) / std).permute(0, 2, 3, 1).numpy()
    done = normalized(Normalize.parse("imagenet"), block_of(images, "chw"))
    np.testing.assert_allclose(done, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_not_scaled(layout: str, dtype: str) -> None:
    images = (every_value() / 255).astype(dtype)
    wide = np.float64 if dtype == "float64" else np.float32
    expected = ((images.astype(wide) - IMAGENET[0].astype(wide)) / IMAGENET[1].astype(wide)).astype(np.float32)
    step = Normalize.parse("0.485,0.456,0.406/0.229,0.224,0.225")
    assert step == Normalize.parse("imagenet")
    np.testing.assert_array_equal(normalized(step, block_of(images, layout)), expected)
    for got, image in zip(normalized(step, block_of(list(images), layout)), expected, strict=True):
        np.testing.assert_array_equal(got, image)


def test_what_is_not_finite_stays_so() -> None:
    images = np.array([np.nan, np.inf, -np.inf, 1e300], np.float64).reshape(1, 2, 2, 1)
    done = normalized(Normalize.parse("0.5/0.000001"), block_of(images, "hwc"))[0].reshape(-1)
    np.testing.assert_array_equal(done, np.array([np.nan, np.inf, -np.inf, np.inf], np.float32))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_unit_and_one_number_for_all_channels(channels: int) -> None:
    images = every_value(channels)
    unit = normalized(Normalize.parse("unit"), block_of(images, "hwc"))
    np.testing.assert_array_equal(unit, (images / 255).astype(np.float32))
    assert np.max(unit) == 1 and np.min(unit) == 0
    half = normalized(Normalize.parse("0.5/0.25"), block_of(images, "chw"))
    np.testing.assert_array_equal(half, ((images / 255 - 0.5) / 0.25).astype(np.float32))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_where_a_block_is_cut_does_not_show(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=6))
    dtype = data.draw(st.sampled_from(["uint8", "float16", "float64"]))
    images = [np.random.default_rng(3).integers(0, 256, (h, w, 3)).astype(dtype) for h, w in sizes]
    block = block_of(images, data.draw(st.sampled_from(["hwc", "chw"])))
    step = Normalize.parse("imagenet")
    cut = data.draw(st.integers(0, len(block)))
    parts = normalized(step, block.slice(0, cut)) + normalized(step, block.slice(cut, len(block)))
    for part, whole in zip(parts, normalized(step, block), strict=True):
        np.testing.assert_array_equal(part, whole)


def test_an_empty_block() -> None:
    block = block_of(every_value(), "chw")
    assert normalized(Normalize.parse("imagenet"), block.slice(0, 0)) == []


def test_options() -> None:
    step = Normalize.parse("imagenet")
    assert config(step) == {"step": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    for text in ("imagenet", "unit", "0.1,0.2/1,2", " 1e-3/1e-6", "-5/3"):
        made = Normalize.parse(text)
        entry = config(made)
        assert json.loads(json.dumps(entry)) == entry  # as a stored recipe is compared
        assert Normalize.parse(Normalize.typed(entry)) == made
        assert pickle.loads(pickle.dumps(made)) == made
    for bad in (
        "",
        "imagenette",
        "0.5",
        "/",
        "0.5/",
        "1,2/1",
        "0/0",
        "0/-1",
        "0/1e-7",
        "nan/1",
        "0/nan",
        "inf/1",
        "0/inf",
        "a/b",
    ):
        with pytest.raises(UsageError, match="--normalize"):
            Normalize.parse(bad)


def test_images_that_it_does_not_fit() -> None:
    step = Normalize.parse("imagenet")
    with pytest.raises(UsageError, match=r"3 means, but field image has 4 channels"):
        step.schema(block_of(every_value(4), "hwc").schema)
    with pytest.raises(UsageError, match=r"works on images of uint8 and floats; field image is uint16"):
        step.schema(block_of(every_value().astype(np.uint16), "hwc").schema)
    varies = Schema((Field("image", "uint8", (None, None, None), kind="image", layout="chw"),))
    with pytest.raises(UsageError, match="a number of channels that varies"):
        Normalize.parse("unit").schema(varies)
    with pytest.raises(UsageError, match=r"--normalize needs a field of images"):
        step.schema(Schema((Field("x", "uint8", (3, 3, 3)),)))
