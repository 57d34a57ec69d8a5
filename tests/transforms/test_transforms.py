"""Resize, ToDtype and Layout against torch, Pillow and numpy."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigconv.block import Block, Ragged
from bigconv.errors import MissingPackage, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms import resize
from bigconv.transforms.base import config
from bigconv.transforms.dtype import ToDtype
from bigconv.transforms.layout import Layout
from bigconv.transforms.resize import Resize


def noise(rows: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (rows, height, width, channels), np.uint8)


def fixed(images: np.ndarray, layout: str = "hwc") -> Block:
    field = Field("image", str(images.dtype), images.shape[1:], kind="image", layout=layout)
    label = Field("label", "int64", (), kind="label")
    return Block(Schema((field, label)), {"image": images, "label": np.arange(len(images))})


def ragged(images: list[np.ndarray], layout: str = "hwc") -> Block:
    shape = (None, None, 3) if layout == "hwc" else (3, None, None)
    field = Field("image", "uint8", shape, kind="image", layout=layout)
    return Block(Schema((field,)), {"image": Ragged.of(images, field)})


def column(block: Block, name: str = "image") -> np.ndarray:
    block.validate()
    found = block[name]
    assert isinstance(found, np.ndarray)
    return found


def apply(step: Any, block: Block) -> Block:
    done = step(block)
    done.validate()
    assert done.schema == step.schema(block.schema)
    assert len(done) == len(block)
    return done


SIZES = [(40, 60), (60, 40), (20, 30), (31, 31), (5, 100), (24, 20), (1, 1)]


def cut(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The central part of the aspect ratio asked for."""
    h, w = image.shape[:2]
    if w * height > h * width:
        cw = max(1, int(np.floor(h * width / height + 0.5)))
        return image[:, (w - cw) // 2 : (w - cw) // 2 + cw]
    ch = max(1, int(np.floor(w * height / width + 0.5)))
    return image[(h - ch) // 2 : (h - ch) // 2 + ch]


def by_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", SIZES)
def test_resize_by_pillow_is_pillows(size: tuple[int, int]) -> None:
    images = noise(3, *size)
    for fit, expected in (
        ("stretch", [by_pillow(image, 24, 20) for image in images]),
        ("cover", [by_pillow(cut(image, 24, 20), 24, 20) for image in images]),
    ):
        done = apply(Resize(24, 20, fit, "pillow"), fixed(images))
        np.testing.assert_array_equal(column(done), expected)
        assert done.schema["image"] == Field("image", "uint8", (24, 20, 3), kind="image", layout="hwc")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_torch_differs_from_pillow_by_one_level_at_most(size: tuple[int, int], fit: str) -> None:
    pytest.importorskip("torch")
    images = noise(3, *size)
    by_torch = column(apply(Resize(24, 20, fit, "torch"), fixed(images)))
    other = column(apply(Resize(24, 20, fit, "pillow"), fixed(images)))
    difference = np.abs(by_torch.astype(int) - other)
    assert difference.max() <= 1
    assert difference.mean() < 0.02


def test_torch_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    images = noise(4, 40, 60)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    expected = torch.nn.functional.interpolate(pixels, (24, 20), mode="bilinear", antialias=True)
    done = column(apply(Resize(24, 20, "stretch", "torch"), fixed(images)))
    np.testing.assert_array_equal(done, expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("backend", ["torch", "pillow"])
@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_batches_rows_and_layouts_agree(backend: str, fit: str, channels: int) -> None:
    pytest.importorskip("torch")
    step = Resize(24, 20, fit, backend)
    for size in SIZES:
        images = noise(5, *size, channels)
        whole = column(apply(step, fixed(images)))
        one_by_one = [column(step(fixed(images[i : i + 1])))[0] for i in range(5)]
        np.testing.assert_array_equal(whole, one_by_one)
        images.flags.writeable = False  # as a map of a file is
        np.testing.assert_array_equal(column(step(fixed(images))), whole)
        first = np.ascontiguousarray(np.moveaxis(images, -1, 1))
        chw = apply(step, fixed(first, "chw"))
        assert chw.schema["image"].layout == "chw"
        np.testing.assert_array_equal(np.moveaxis(column(chw), 1, -1), whole)


@pytest.mark.parametrize("backend", ["torch", "pillow"])
@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_ragged_images_are_resized_as_fixed_ones(backend: str, fit: str) -> None:
    pytest.importorskip("torch")
    step = Resize(24, 20, fit, backend)
    images = [noise(1, *size)[0] for size in SIZES]
    expected = [column(step(fixed(image[None])))[0] for image in images]
    np.testing.assert_array_equal(column(apply(step, ragged(images))), expected)
    turned = ragged([np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images], "chw")
    np.testing.assert_array_equal(np.moveaxis(column(apply(step, turned)), 1, -1), expected)


@pytest.mark.parametrize("backend", ["torch", "pillow"])
def test_contain_pads_with_black_and_keeps_all(backend: str) -> None:
    pytest.importorskip("torch")
    white = np.full((1, 10, 40, 3), 255, np.uint8)
    done = column(apply(Resize(20, 20, "contain", backend), fixed(white)))[0]
    assert (done[7:12] == 255).all()
    assert (done[:7] == 0).all()
    assert (done[12:] == 0).all()
    tall = column(apply(Resize(20, 30, "contain", backend), fixed(white.transpose(0, 2, 1, 3).copy())))[0]
    assert (tall[:, 12:17] == 255).all()
    assert int((tall == 255).sum()) == 20 * 5 * 3


def test_nothing_to_resize() -> None:
    images = noise(3, 24, 20)
    np.testing.assert_array_equal(column(apply(Resize(24, 20, backend="pillow"), fixed(images))), images)
    assert column(apply(Resize(24, 20), fixed(images[:0]))).shape == (0, 24, 20, 3)
    assert column(apply(Resize(24, 20), ragged([]))).shape == (0, 24, 20, 3)


def test_resize_options() -> None:
    step = Resize.parse("224", backend="pillow")
    assert config(step) == {"step": "resize", "height": 224, "width": 224, "fit": "cover", "backend": "pillow"}
    assert pickle.loads(pickle.dumps(step)) == step
    assert Resize.parse("224x320", fit="contain").height == 224
    assert Resize.parse(224).width == 224
    assert Resize.parse(" 224X320 ").width == 320
    assert Resize.parse("5").backend == Resize.best_backend()
    for bad in ("0", "-3", "a", "", "3x", "x3", "3x0", "1.5", "3x4x5", "99999999999", "999999999x9", "٣", 0, -1):
        with pytest.raises(UsageError, match="--resize"):
            Resize.parse(bad)
    with pytest.raises(UsageError, match="Did you mean 'cover'"):
        Resize.parse("3", fit="cove")
    with pytest.raises(UsageError, match="unknown resize backend 'opencv'"):
        Resize(3, 3, backend="opencv")


def test_resize_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "find_spec", lambda name: None)
    assert Resize.parse("8").backend == "pillow"
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[torch\]'"):
        Resize(8, 8).schema(fixed(noise(1, 9, 9)).schema)


def test_steps_that_do_not_fit() -> None:
    plain = Schema((Field("x", "float32", (3, 4, 5)), Field("label", "int64", (), kind="label")))
    for step in (Resize(8, 8), Layout("chw")):
        with pytest.raises(UsageError, match=r"needs a field of images.*x \(array\), label \(label\)"):
            step.schema(plain)
    with pytest.raises(UsageError, match="needs a field of images or arrays"):
        ToDtype("int8").schema(plain.select(["label"]))
    floats = fixed(noise(1, 9, 9).astype(np.float32)).schema
    with pytest.raises(UsageError, match="image is float32: resize first"):
        Resize(8, 8).schema(floats)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool"])
def test_layout(dtype: str) -> None:
    images = (noise(4, 7, 9) > 99) if dtype == "bool" else noise(4, 7, 9).astype(dtype)
    block = fixed(images)
    chw = apply(Layout("chw"), block)
    assert (chw.schema["image"].shape, chw.schema["image"].layout) == ((3, 7, 9), "chw")
    assert column(chw).flags.c_contiguous
    np.testing.assert_array_equal(column(chw), images.transpose(0, 3, 1, 2))
    back = apply(Layout("hwc"), chw)
    assert back.schema == block.schema
    assert column(back).flags.c_contiguous
    np.testing.assert_array_equal(column(back), images)
    assert Layout("hwc")(block) is block
    assert column(apply(Layout("chw"), fixed(images[:0]))).shape == (0, 3, 7, 9)


def test_layout_of_ragged_images() -> None:
    images = [noise(1, *size)[0] for size in SIZES]
    block = ragged(images)
    chw = apply(Layout("chw"), block)
    assert chw.schema["image"].shape == (3, None, None)
    for got, image in zip(chw["image"], images, strict=True):
        np.testing.assert_array_equal(got, image.transpose(2, 0, 1))
    for got, image in zip(apply(Layout("hwc"), chw)["image"], images, strict=True):
        np.testing.assert_array_equal(got, image)
    part = Block(block.schema, {"image": block["image"][2:4]})
    np.testing.assert_array_equal(apply(Layout("chw"), part)["image"][0], images[2].transpose(2, 0, 1))
    assert len(apply(Layout("chw"), ragged([]))) == 0


def test_layout_options() -> None:
    assert config(Layout("chw")) == {"step": "layout", "layout": "chw"}
    with pytest.raises(UsageError, match=r"unknown layout 'cwh'. Did you mean 'chw'"):
        Layout("cwh")


def test_dtype_casts_and_does_not_scale() -> None:
    images = noise(2, 4, 5)
    done = apply(ToDtype("float32"), fixed(images))
    np.testing.assert_array_equal(column(done), images.astype(np.float32))
    assert column(done).dtype == np.float32
    assert done.schema["image"].kind == "image"
    assert column(done, "label").dtype == np.int64
    block = fixed(images)
    assert ToDtype("uint8")(block) is block
    many = [noise(1, *size)[0] for size in SIZES]
    for got, image in zip(apply(ToDtype("float16"), ragged(many))["image"], many, strict=True):
        np.testing.assert_array_equal(got, image.astype(np.float16))


def arrays(values: np.ndarray) -> Block:
    return Block(Schema((Field("x", str(values.dtype), values.shape[1:]),)), {"x": values})


@pytest.mark.parametrize(
    ("dtype", "to", "good", "bad"),
    [
        ("float32", "uint8", [0, 255.9, -0.9, 7], [256, -1, np.nan, np.inf]),
        ("float64", "int64", [-(2.0**63), 2.0**63 - 1024], [2.0**63, -(2.0**63) - 2048, np.nan]),
        ("float32", "int64", [-(2.0**63)], [2.0**63]),
        ("float32", "uint64", [0, 2.0**63], [2.0**64, -1]),
        ("float16", "int8", [-128, 127.5], [128, -129, np.inf]),
        ("float16", "uint32", [0, 65504], [-1, np.inf]),
        ("int64", "int8", [-128, 127], [128, -129]),
        ("int64", "uint64", [0, 2**63 - 1], [-1]),
        ("uint64", "int64", [0, 2**63 - 1], [2**63]),
        ("int16", "uint8", [0, 255], [-1, 256]),
        ("float64", "float32", [1e38, np.inf, np.nan, 0.1], [1e39, -1e300]),
        ("float64", "float16", [65504, -np.inf], [1e6]),
        ("int32", "float16", [65504], [70_000]),
        ("complex128", "complex64", [1e38 + 1j, np.nan], [1e300j]),
        ("float32", "bool", [0, 0.5, np.inf], [np.nan]),
        ("int32", "bool", [0, -7], []),
        ("bool", "int8", [True, False], []),
        ("bool", "float16", [True, False], []),
        ("float32", "complex64", [1, np.nan], []),
    ],
)
def test_values_that_fit_and_that_do_not(dtype: str, to: str, good: list[Any], bad: list[Any]) -> None:
    values = np.array(good, dtype)
    done = apply(ToDtype(to), arrays(values))
    np.testing.assert_array_equal(column(done, "x"), values.astype(to))
    for one in bad:
        rows = np.zeros((4, 3), dtype)
        rows[2, 1] = rows[3, 0] = one
        with pytest.raises(SchemaError, match=rf"field x, row 2 of the block: .* does not fit {to}"):
            ToDtype(to)(arrays(rows))
        field = Field("x", dtype, (None,))
        lists = Ragged.of([rows[0], rows[0][:0], rows[2], rows[1]], field)
        with pytest.raises(SchemaError, match=r"field x, row 2 of"):
            ToDtype(to)(Block(Schema((field,)), {"x": lists}))


def test_the_value_that_does_not_fit_is_shown() -> None:
    rows = np.array([[1, 2], [3, 300], [999, 0]], np.int64)
    with pytest.raises(SchemaError, match="row 1 of the block: 300 does not fit uint8"):
        ToDtype("uint8")(arrays(rows))
    assert len(ToDtype("uint8")(arrays(rows[:0]))) == 0


def test_dtype_options() -> None:
    assert ToDtype("f4") == ToDtype("float32") == ToDtype(">f4")
    assert config(ToDtype("half")) == {"step": "dtype", "dtype": "float16"}
    with pytest.raises(UsageError, match=r"unknown dtype 'flot32'. Did you mean 'float32'"):
        ToDtype("flot32")
    for bad in ("object", "O", "str", "i4,f4", "", "datetime64", "nonsense", None):
        with pytest.raises(UsageError, match="unknown dtype"):
            ToDtype(bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="two parts"):
        ToDtype("float32").schema(arrays(np.zeros(2, np.complex64)).schema)


@pytest.mark.parametrize("size", ["32", "8x32x32"])
def test_volumes_are_not_resized(size: str) -> None:
    """Their spacing would no longer be true: refused, with what to do instead."""
    schema = Schema((Field("volume", "int16", (None, 64, 64), "volume"), Field("spacing", "float64", (3,), "label")))
    with pytest.raises(UsageError, match="--map"):
        Resize.parse(size).schema(schema)
