"""Statistics in one pass, held against numpy on the whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigconv.block import Array, Block, Ragged
from bigconv.conversion.options import find_source
from bigconv.inspection import moments
from bigconv.inspection.moments import KEPT, Kept, Numbers
from bigconv.inspection.rows import StoreRows, spaced
from bigconv.inspection.source_rows import SourceRows
from bigconv.inspection.stats import Distinct, stats
from bigconv.schema import Field, Schema
from bigconv.view.table import open_view

RNG = np.random.default_rng(0)


def summed(values: Array, pieces: int = 7) -> moments.Summary:
    numbers = Numbers(str(values.dtype))
    for piece in np.array_split(values, pieces):
        numbers.update(piece)
    return numbers.summary()


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]
)
def test_as_numpy(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "CHUNK", 13)  # merged many times
    values = (RNG.normal(size=(500, 3)) * 40 + (100 if dtype.startswith("u") else 3)).clip(0 if "u" in dtype else -99)
    values = values.astype(dtype)
    found = summed(values)
    wide = values.astype(np.float64)
    assert (found.count, found.nan, found.inf) == (1500, 0, 0)
    assert (found.min, found.max) == (values.min(), values.max())
    assert found.mean == pytest.approx(wide.mean(), rel=1e-13)
    assert found.std == pytest.approx(wide.std(), rel=1e-12)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    values = RNG.normal(size=1000)
    values[::10], values[1], values[2] = math.nan, math.inf, -math.inf
    found, good = summed(values), values[np.isfinite(values)]
    assert (found.count, found.nan, found.inf) == (1000, 100, 2)
    assert (found.min, found.max) == (good.min(), good.max())
    assert found.mean == pytest.approx(good.mean(), rel=1e-13)
    nothing = summed(np.full(5, math.nan))
    assert (nothing.nan, nothing.min, nothing.mean) == (5, None, None)


def test_far_from_zero_and_near_the_end_of_the_range() -> None:
    """Sums of squares would lose all digits, or overflow."""
    assert summed(RNG.normal(size=9999) + 1e9).std == pytest.approx(1, abs=0.03)
    huge = summed(np.array([1.5e308, -1.5e308, 1.5e308, 1.5e308]))
    assert huge.mean == pytest.approx(0.75e308)
    if np.finfo(np.longdouble).max > 1e400:
        assert huge.std == pytest.approx(1.5e308 * math.sqrt(0.75))


def test_complex() -> None:
    values = RNG.normal(size=300) + 1j * RNG.normal(size=300)
    found = summed(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.std())
    assert (found.min, found.max) == (None, None)


@pytest.mark.parametrize("sizes", [[1], [3, 5000, 1, 1, 20000], [4096, 1, 4096], [7] * 3000])
def test_kept_values_are_evenly_spaced(sizes: list[int]) -> None:
    """However the values arrive, those kept are every k-th of all."""
    kept, everything = Kept(), np.arange(sum(sizes))
    for piece in np.split(everything, np.cumsum(sizes)[:-1]):
        kept.update(piece)
    step = 1
    while -(-len(everything) // step) > KEPT:
        step *= 2
    assert kept.values.tolist() == everything[::step].tolist()


@pytest.mark.parametrize("values", [[3, -2, 3], [2**63, 2**64 - 1], [0, 10**12, 10**12], [-128, 127]])
def test_distinct(values: list[int]) -> None:
    array = np.array(values, np.uint64 if max(values) > 2**62 else np.int64)
    distinct = Distinct(4)
    for piece in np.array_split(array, 2):
        distinct.update(piece)
    assert distinct.pairs() == tuple(sorted(Counter(values).items()))
    distinct.update(np.arange(9))
    assert distinct.pairs() is None


def test_spaced() -> None:
    assert spaced(10, 3) == [1, 5, 8]
    assert spaced(2, 9) == [0, 1]
    assert spaced(0, 3) == []
    drawn = spaced(10**12, 5, seed=1)
    assert drawn == sorted(set(drawn)) == spaced(10**12, 5, seed=1) != spaced(10**12, 5, seed=2)


@pytest.fixture
def rows() -> Block:
    image = Field("image", "uint8", (3, None, None), "image", layout="chw")
    text = Field("text", "uint8", (None,), "text")
    label = Field("label", "int64", (), "label", classes=("a", "b", "c"))
    fields = (image, text, label, Field("hwc", "float32", (4, 5, 3), "image", "hwc"))
    images = [RNG.integers(0, 256, (3, 4 + i % 3, 6), np.uint8) for i in range(40)]
    texts = [("é" * (i % 4)).encode() for i in range(40)]
    columns = {
        "image": Ragged.of(images, image),
        "text": Ragged.of([np.frombuffer(t, np.uint8) for t in texts], text),
        "label": np.arange(40) % 2,
        "hwc": RNG.random((40, 4, 5, 3), np.float32),
    }
    return Block(Schema(fields), columns)


def test_fields_of_a_store(make_store: Callable[..., Path], rows: Block, suffix: str) -> None:
    image, text, label, hwc = stats(StoreRows(open_view(make_store(rows, suffix))))
    pixels = [np.concatenate([row[c].reshape(-1) for row in rows["image"]]) for c in range(3)]
    for channel, values in zip(image.channels, pixels, strict=True):
        assert (channel.values.min, channel.values.max) == (values.min(), values.max())
        assert channel.values.mean == pytest.approx(values.mean())
    assert image.values is not None
    assert image.values.count == sum(map(len, pixels))
    assert image.values.std == pytest.approx(np.concatenate(pixels).std())
    assert image.extents == ((3, 3), (4, 6), (6, 6))
    assert text.lengths is not None
    assert (text.lengths.max, text.lengths.mean, text.unit, text.empty) == (3, 1.5, "characters", 10)
    assert text.values is None
    assert label.named_counts() == [("a", 20), ("b", 20), ("c", 0)]
    assert [c.values.mean for c in hwc.channels] == pytest.approx(np.asarray(rows["hwc"]).mean((0, 1, 2)), rel=1e-5)


def test_raw_input_counts_what_cannot_be_read(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(np.full((5, 6, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    rows = SourceRows(find_source([tmp_path], None, {}))
    image = stats(rows)[0]
    assert (image.rows, rows.rejected, rows.rejects[0].path) == (4, 1, "bad.png")
    assert image.values is not None
    assert image.values.mean == 1.5
    stats(rows)
    assert rows.rejected == 1


def test_image_files_are_told_apart(tmp_path: Path) -> None:
    pixels = np.zeros((5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.jpg")
    image = stats(SourceRows(find_source([tmp_path], None, {"keep_encoded": True})))[0]
    assert dict(image.formats) == {"JPEG": 1, "PNG": 1}
    assert image.extents == ((5, 5), (6, 6))
