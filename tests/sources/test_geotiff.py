"""GeoTIFF: rasterio writes, and reads back whole; tiles are cut from that by numpy."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import rasterio
from _read import read_rows
from rasterio.crs import CRS
from rasterio.transform import Affine

from bigconv.conversion.options import recognise
from bigconv.errors import InputError, MissingPackage, UsageError
from bigconv.sources import geotiff
from bigconv.sources.geotiff import GeoTiff
from bigconv.testing.source_suite import Made, SourceSuite

TRANSFORM = Affine(10, 0, 500000, 0, -10, 4200000)
UTM = CRS.from_epsg(32633)


def raster(bands: int, height: int, width: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, (bands, height, width)).astype(dtype)


def save(path: Path, pixels: np.ndarray, **how: Any) -> None:
    bands, height, width = pixels.shape
    how = {"crs": UTM, "transform": TRANSFORM, **how}
    with rasterio.open(path, "w", "GTiff", width, height, bands, dtype=pixels.dtype, **how) as out:
        out.write(pixels)


class TestRasters(SourceSuite):
    """Whole ones of all sizes, striped and tiled."""

    source = "geotiff"
    limits: ClassVar = {"bigconv.sources.filerows.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        rows = []
        for i, how in enumerate(
            ({}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}, {"compress": "lzw"})
        ):
            pixels = raster(2, 33 + i, 40, seed=i)
            save(folder / f"{i}.tif", pixels, **how)
            window = np.array([0, 0, 33 + i, 40])
            rows.append({"image": pixels, "window": window, "transform": np.array(TRANSFORM[:6], float)})
        return [folder], {}, rows


class TestTiles(SourceSuite):
    """One raster, three by two tiles of which the last are filled up."""

    source = "geotiff"
    file_a_row = False
    damages = ("junk", "empty")  # of one cut short, the first tiles are good: see below
    limits: ClassVar = {"bigconv.sources.filerows.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        pixels = raster(3, 20, 16)
        save(folder / "a.tif", pixels, nodata=99)
        return [folder / "a.tif"], {"tile": 8}, tiles(pixels, 8, 0, 99)


def tiles(pixels: np.ndarray, tile: int, overlap: int, nodata: float) -> list[dict[str, Any]]:
    """By slicing the whole raster: the starts that are needed until the edge is reached."""
    step = tile - overlap
    starts = []
    for extent in pixels.shape[1:]:
        found = [0]
        while found[-1] + tile < extent:
            found.append(found[-1] + step)
        starts.append(found)
    rows = []
    for y in starts[0]:
        for x in starts[1]:
            part = pixels[:, y : y + tile, x : x + tile]
            full = np.full((len(pixels), tile, tile), nodata, pixels.dtype)
            full[:, : part.shape[1], : part.shape[2]] = part
            where = np.array([10, 0, 500000 + 10 * x, 0, -10, 4200000 - 10 * y], float)
            rows.append({"image": full, "window": np.array([y, x, *part.shape[1:]]), "transform": where})
    return rows


# -- tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile", "overlap"), [(8, None), (8, 0), (8, 3), (8, 7), (16, 4), (50, 10), (1, 0), (37, 0), (20, 0)]
)
@pytest.mark.parametrize("nodata", [None, 7, 65535])
def test_tiles_and_their_edges(tmp_path: Path, tile: int, overlap: int | None, nodata: int | None) -> None:
    pixels = raster(2, 20, 37)
    save(tmp_path / "a.tif", pixels, nodata=nodata)
    source = GeoTiff.find([tmp_path], tile=tile, overlap=overlap)
    rows, rejects = read_rows(source)
    assert rejects == []
    expected = tiles(pixels, tile, overlap or 0, nodata or 0)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        for name, value in wanted.items():
            np.testing.assert_array_equal(row[name], value, err_msg=name)
    assert source.schema["image"].shape == (2, tile, tile)
    assert source.schema["image"].layout == "chw"


def test_a_raster_is_read_window_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more at once than a tile: not the whole, which here is larger than a row may be."""
    monkeypatch.setattr(geotiff, "MAX_ROW_BYTES", 2 * 32 * 32)
    pixels = raster(1, 320, 256)
    save(tmp_path / "a.tif", pixels, tiled=True, blockxsize=32, blockysize=32)
    asked: list[tuple[int, int, int, int]] = []
    whole = geotiff._pixels
    monkeypatch.setattr(geotiff, "_pixels", lambda raster, window: asked.append(window) or whole(raster, window))
    rows, _ = read_rows(GeoTiff.find([tmp_path], tile=32))
    assert len(rows) == len(asked) == 80
    assert max(height * width for _, _, height, width in asked) == 32 * 32
    with pytest.raises(InputError, match="cut it up with --tile 256"):
        GeoTiff.find([tmp_path])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tile": 0}, "such as 256"),
        ({"tile": 8, "overlap": 8}, "less than the 8 pixels"),
        ({"tile": 8, "overlap": -1}, "less than the 8 pixels"),
        ({"overlap": 8}, "Add --tile"),
    ],
)
def test_tiles_that_make_no_sense(tmp_path: Path, options: dict[str, int], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        GeoTiff.find([tmp_path], **options)


# -- what the manifest keeps -------------------------------------------------------------------------------------------


def test_crs_transform_and_nodata_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", raster(1, 8, 8, "float32"), nodata=float("nan"))
    told = GeoTiff.find([tmp_path], tile=8, overlap=2).describe()
    assert (told["crs"], told["nodata"], told["transform"]) == (["EPSG:32633"], "nan", list(TRANSFORM[:6]))
    assert (told["tile"], told["overlap"]) == (8, 2)
    save(tmp_path / "a.tif", raster(1, 8, 8, "int16"), nodata=-9999)
    assert GeoTiff.find([tmp_path]).describe()["nodata"] == -9999


def test_nan_fills_the_edge(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", raster(1, 5, 5, "float32"), nodata=float("nan"))
    ((row,), _) = read_rows(GeoTiff.find([tmp_path], tile=8))
    assert np.isnan(row["image"][:, 5:]).all()
    assert not np.isnan(row["image"][:, :5, :5]).any()


def test_rasters_of_several_zones(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", raster(1, 8, 8))
    save(tmp_path / "b.tif", raster(1, 8, 8), crs=CRS.from_epsg(32632), transform=Affine(5, 0, 1, 0, -5, 2))
    source = GeoTiff.find([tmp_path])
    assert source.schema["crs"].classes == ("EPSG:32632", "EPSG:32633")
    assert [int(row["crs"]) for row in read_rows(source)[0]] == [1, 0]
    assert "transform" not in source.describe()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of the writer
def test_a_raster_that_lies_nowhere(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", raster(1, 8, 8), crs=None, transform=None)
    source = GeoTiff.find([tmp_path])
    assert source.describe()["crs"] == ["none"]
    np.testing.assert_array_equal(read_rows(source)[0][0]["transform"], [1, 0, 0, 0, 1, 0])


def test_files_beside_a_raster_are_not_read(tmp_path: Path) -> None:
    """What a row is must not depend on files that the provenance doesn't name."""
    pixels = raster(1, 8, 8)
    save(tmp_path / "a.tif", pixels)
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    source = GeoTiff.find([tmp_path])
    assert "nodata" not in source.describe()


@pytest.mark.parametrize(
    ("other", "how", "why"),
    [
        (raster(2, 8, 8), {}, "mixed numbers of bands: b.tif has 2, a.tif has 1"),
        (raster(1, 8, 8, "uint8"), {}, "mixed dtypes: b.tif has uint8, a.tif has uint16"),
        (raster(1, 8, 8), {"nodata": 3}, "mixed nodata values: b.tif has 3.0, a.tif has None"),
    ],
)
def test_mixed_rasters_name_both(tmp_path: Path, other: np.ndarray, how: dict[str, Any], why: str) -> None:
    save(tmp_path / "a.tif", raster(1, 8, 8))
    save(tmp_path / "b.tif", other, **how)
    with pytest.raises(InputError, match=why):
        GeoTiff.find([tmp_path])


def test_they_are_recognised_by_their_keys(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", raster(3, 8, 8, "uint8"))
    assert recognise([tmp_path]) == "geotiff"
    assert recognise([tmp_path / "a.tif"]) == "geotiff"


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_raster_cut_short_loses_the_tiles_that_are_gone(tmp_path: Path) -> None:
    pixels = raster(1, 64, 64)
    save(tmp_path / "a.tif", pixels, tiled=True, blockxsize=16, blockysize=16)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    rows, rejects = read_rows(GeoTiff.find([tmp_path], tile=16))
    assert 0 < len(rows) < 16
    assert {r.path for r in rejects} == {"a.tif"}
    lost = {r.row for r in rejects}
    expected = [row for i, row in enumerate(tiles(pixels, 16, 0, 0)) if i not in lost]
    for row, wanted in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row["image"], wanted["image"])
    assert str(tmp_path) not in rejects[0].error


@pytest.mark.parametrize("how", [{}, {"compress": "deflate"}, {"compress": "lzw"}])
def test_every_length_is_whole_or_rejected(tmp_path: Path, how: dict[str, Any]) -> None:
    save(tmp_path / "b.tif", raster(1, 4, 4))
    path = tmp_path / "a.tif"
    save(path, raster(1, 40, 40), **how)
    data = path.read_bytes()
    for length in [*range(0, len(data), len(data) // 40), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        rows, rejects = read_rows(GeoTiff.find([tmp_path]))
        assert ([r.path for r in rejects], len(rows)) == (["a.tif"], 1), length


def test_a_raster_of_more_tiles_than_anyone_wrote(tmp_path: Path) -> None:
    """A few hundred bytes that tell of 2^62 pixels: refused before they are counted."""
    save(tmp_path / "b.tif", raster(1, 4, 4))
    path = tmp_path / "a.tif"
    save(path, raster(1, 4, 4), SPARSE_OK=True)
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * data[at], 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257):  # width, length
            struct.pack_into("<HII", data, entry + 2, 4, 1, 2**31 - 1)
    path.write_bytes(data)
    rows, (reject,) = read_rows(GeoTiff.find([tmp_path], tile=256))
    assert len(rows) == 1
    assert reject.path == "a.tif"


def test_no_other_driver_of_gdal_is_tried(tmp_path: Path) -> None:
    """A VRT could read any file."""
    save(tmp_path / "b.tif", raster(1, 4, 4))
    (tmp_path / "a.tif").write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{tmp_path / 'b.tif'}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    rows, (reject,) = read_rows(GeoTiff.find([tmp_path]))
    assert len(rows) == 1
    assert reject.path == "a.tif"


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    save(tmp_path / "b.tif", raster(1, 4, 4))
    os.rename(tmp_path / "b.tif", os.fsencode(tmp_path) + b"/\xff.tif")
    save(tmp_path / "b.tif", raster(1, 4, 4))
    rows, (reject,) = read_rows(GeoTiff.find([tmp_path]))
    assert len(rows) == 1
    assert "not UTF-8, which GDAL needs" in reject.error


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[geo\]'"):
        GeoTiff.find([tmp_path])
