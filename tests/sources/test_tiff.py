"""TIFF: tifffile and imagecodecs write; the arrays that they were given are the oracle."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tifffile
from _read import read_rows
from PIL import Image

from bigconv.conversion.options import recognise
from bigconv.errors import InputError, MissingPackage
from bigconv.sources import tiff
from bigconv.sources.tiff import Tiff
from bigconv.testing.source_suite import Made, SourceSuite


def values(*shape: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


class TestVolumes(SourceSuite):
    """Stacks of different depth, packed in several ways, in two classes."""

    source = "tiff"
    limits: ClassVar = {"bigconv.sources.filerows.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        rows = []
        for i, how in enumerate(
            ({}, {"compression": "zlib"}, {"compression": "lzw", "tile": (16, 16)}, {"bigtiff": True})
        ):
            stack = values(3 + i % 2, 20, 17, seed=i)
            path = folder / ("cell" if i < 2 else "dust") / f"{i}.tif"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"}, **how)
            rows.append({"volume": stack, "label": np.int64(i >= 2)})
        return [folder], {}, rows


class TestImagesOfOnePage(SourceSuite):
    """16-bit images of one size: channels are the last axis here, and the first after conversion."""

    source = "tiff"
    limits: ClassVar = {"bigconv.sources.filerows.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        rows = []
        for i, order in enumerate("<>>"):
            image = values(20, 30, seed=i)
            tifffile.imwrite(folder / f"{i}.tif", image, byteorder=order)
            rows.append({"image": image[..., None]})
        return [folder], {}, rows


# -- what is in the files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape", "how", "name", "axes"),
    [
        ("float32", (5, 6, 7), {}, "volume", "QYX"),
        ("float64", (6, 7), {}, "image", "YXS"),
        ("float16", (6, 7), {}, "image", "YXS"),
        ("int16", (6, 7), {}, "image", "YXS"),
        ("uint32", (6, 7), {}, "image", "YXS"),
        ("complex64", (6, 7), {}, "image", "YXS"),
        ("bool", (6, 16), {}, "image", "YXS"),
        ("uint16", (6, 7, 3), {"photometric": "rgb"}, "image", "YXS"),
        ("uint16", (3, 6, 7), {"photometric": "rgb", "planarconfig": "separate"}, "image", "YXS"),
        ("uint8", (2, 3, 4, 6, 7), {"ome": True, "metadata": {"axes": "TCZYX"}}, "volume", "TCZYX"),
        ("uint16", (2, 4, 3, 6, 7), {"imagej": True, "metadata": {"axes": "TZCYX"}}, "volume", "TZCYX"),
        ("uint8", (4, 6, 7, 3), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}, "volume", "ZYXS"),
        ("uint16", (64, 48), {"compression": "jpeg2000"}, "image", "YXS"),
        ("uint16", (64, 48), {"compression": "zstd", "predictor": True}, "image", "YXS"),
        ("uint16", (64, 48), {"compression": "packbits"}, "image", "YXS"),
    ],
)
def test_every_layout(tmp_path: Path, dtype: str, shape: tuple, how: dict[str, Any], name: str, axes: str) -> None:
    array = values(*shape, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, **{"photometric": "minisblack", **how})
    source = Tiff.find([tmp_path / "a.tif"])
    ((row,), rejects) = read_rows(source)
    assert rejects == []
    assert source.describe()["axes"] == axes
    if name == "image":
        array = array[..., None] if array.ndim == 2 else np.moveaxis(array, 0, -1) if len(array) == 3 else array
        assert source.schema["image"].layout == "hwc"
    assert row[name].dtype == dtype
    np.testing.assert_array_equal(row[name], array)


def test_palette_indices_and_inverted_grey_stay(tmp_path: Path) -> None:
    array = values(6, 7, dtype="uint8")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="miniswhite")
    for row in read_rows(Tiff.find([tmp_path]))[0]:
        np.testing.assert_array_equal(row["image"][..., 0], array)


def test_levels_of_a_pyramid_are_left_out(tmp_path: Path) -> None:
    array = values(64, 64)
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(array, subifds=1)
        out.write(array[::2, ::2], subfiletype=1)
    ((row,), _) = read_rows(Tiff.find([tmp_path]))
    np.testing.assert_array_equal(row["image"][..., 0], array)


def test_mixed_files_name_both(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(6, 7))
    tifffile.imwrite(tmp_path / "b.tif", values(3, 6, 7), photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(InputError, match=r"mixed axes: b\.tif has ZYX, a\.tif has YXS"):
        Tiff.find([tmp_path])
    tifffile.imwrite(tmp_path / "b.tif", values(6, 7, dtype="float32"))
    with pytest.raises(InputError, match=r"mixed dtypes: b\.tif has float32, a\.tif has uint16"):
        Tiff.find([tmp_path])


# -- which source a TIFF is for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "how", "source"),
    [
        (values(6, 7, dtype="uint8"), {}, "images"),
        (values(6, 7, 3, dtype="uint8"), {"photometric": "rgb"}, "images"),
        (values(6, 7, 4, dtype="uint8"), {"photometric": "rgb", "bigtiff": True, "byteorder": ">"}, "images"),
        (values(6, 16, dtype="bool"), {}, "images"),
        (values(6, 7), {}, "tiff"),
        (values(6, 7, dtype="int8"), {}, "tiff"),
        (values(6, 7, dtype="float32"), {"bigtiff": True}, "tiff"),
        (values(3, 6, 7, dtype="uint8"), {"photometric": "minisblack"}, "tiff"),
    ],
)
def test_a_folder_of_tiffs_is_told_by_the_first(tmp_path: Path, array: np.ndarray, how: dict, source: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", array, **how)
    tifffile.imwrite(tmp_path / "b.TIFF", values(6, 7))
    assert recognise([tmp_path]) == source
    assert recognise([tmp_path / "a.tif"]) == "tiff"
    Image.new("L", (3, 4)).save(tmp_path / "c.png")
    assert recognise([tmp_path]) == "images"


def test_a_thumbnail_is_no_page(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(values(64, 64, dtype="uint8"), metadata=None)
        out.write(values(8, 8, dtype="uint8"), subfiletype=1, metadata=None)
    assert recognise([tmp_path]) == "images"


@pytest.mark.parametrize(
    "data", [b"", b"II", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"junk" * 9]
)
def test_junk_is_told_without_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(data)
    assert recognise([tmp_path]) == "images"


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"compression": "jpeg"}, {"compression": "packbits"}])
def test_every_length_is_whole_or_rejected(tmp_path: Path, how: dict[str, Any]) -> None:
    tifffile.imwrite(
        tmp_path / "b.tif", values(2, 16, 16, dtype="uint8"), photometric="minisblack", metadata={"axes": "ZYX"}
    )
    path = tmp_path / "a.tif"
    stack = values(3, 32, 32, dtype="uint8")
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"}, **how)
    data = path.read_bytes()
    (whole, _), _ = read_rows(Tiff.find([tmp_path]))
    for length in [*range(0, len(data), len(data) // 40), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        rows, rejects = read_rows(Tiff.find([tmp_path]))
        if not rejects:  # what is missing are bytes that nothing needs
            np.testing.assert_array_equal(rows[0]["volume"], whole["volume"])
            assert length >= len(data) - 2
            continue
        assert ([r.path for r in rejects], len(rows)) == (["a.tif"], 1), length
        assert str(tmp_path) not in rejects[0].error


def test_an_ome_tiff_opens_no_other_file(tmp_path: Path) -> None:
    """Its XML names files: they are not looked for, and this file is what it holds itself."""
    tifffile.imwrite(
        tmp_path / "other.ome.tif", values(1, 6, 7), ome=True, photometric="minisblack", metadata={"axes": "ZYX"}
    )
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="7" SizeY="6" SizeZ="2" SizeC="1" SizeT="1">'
        '<TiffData IFD="0" FirstZ="0"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData IFD="0" FirstZ="1"><UUID FileName="other.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    page = values(6, 7, seed=5)
    tifffile.imwrite(tmp_path / "a.ome.tif", page, description=xml, metadata=None)
    ((row,), _) = read_rows(Tiff.find([tmp_path / "a.ome.tif"]))
    np.testing.assert_array_equal(row["image"][..., 0], page)


def test_several_pictures_in_one_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "b.tif", values(6, 7))
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(values(6, 7), metadata=None)
        out.write(values(9, 8), metadata=None)
    _, (reject,) = read_rows(Tiff.find([tmp_path]))
    assert reject.error == "holds 2 pictures that make no volume (6x7, 9x8)"


def test_a_header_that_promises_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "b.tif", values(6, 7))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(6, 7), metadata=None)
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * data[at], 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257):  # width, length
            struct.pack_into("<HII", data, entry + 2, 4, 1, 2**31)
    path.write_bytes(data)
    _, (reject,) = read_rows(Tiff.find([tmp_path]))
    assert "more than the 2147483648 that one row may have" in reject.error


def test_a_loop_of_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "b.tif", values(6, 7))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(6, 7), metadata=None)
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<I", data, at + 2 + 12 * data[at], at)  # the first directory follows the first
    path.write_bytes(data)
    _, (reject,) = read_rows(Tiff.find([tmp_path]))
    assert (reject.path, reject.error) == ("a.tif", "its pages form a loop")


def test_too_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "MAX_PAGES", 2)
    tifffile.imwrite(tmp_path / "a.tif", values(3, 6, 7), photometric="minisblack")
    with pytest.raises(InputError, match="more than the 2 pages allowed"):
        Tiff.find([tmp_path])


@pytest.mark.parametrize("package", ["tifffile", "imagecodecs"])
def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    tiff._library.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[tiff\]'"):
        Tiff.find([tmp_path])
