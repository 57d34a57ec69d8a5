"""NIfTI: nibabel writes; what it reads back is the oracle."""

from __future__ import annotations

import gzip
import os
import struct
import sys
from pathlib import Path
from typing import ClassVar

import nibabel
import numpy as np
import pytest
from _read import read_rows

from bigconv.errors import InputError, MissingPackage, UsageError
from bigconv.sources import nifti_file
from bigconv.sources.nifti import Nifti
from bigconv.testing.source_suite import Made, SourceSuite

AFFINE = np.array([[-2, 0, 0, 90], [0, 2.5, 0.25, -126], [0, -0.25, 3, -72], [0, 0, 0, 1.0]])  # exact in float32


def voxels(*shape: int, dtype: str = "int16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, shape).astype(dtype)


def save(path: Path, data: np.ndarray, slope: float | None = None, intercept: float = 0) -> None:
    """`data` as it is stored; nibabel chooses slopes of its own, so another one is put into the header."""
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    if slope is not None:
        header_with(path, 112, "<2f", slope, intercept)  # scl_slope, scl_inter


def header_with(path: Path, at: int, form: str, *values: float | bytes) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, *values)
    path.write_bytes(data)


class TestVolumes(SourceSuite):
    """Packed and plain, of both versions."""

    source = "nifti"
    limits: ClassVar = {"bigconv.sources.filerows.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        rows = []
        for i, end in enumerate((".nii", ".nii.gz", ".NII", ".nii.gz", ".nii")):
            data = voxels(7, 6, 5 + i % 3, seed=i)
            path = folder / f"{i}{end.lower()}"
            nibabel.save((nibabel.Nifti2Image if i % 2 else nibabel.Nifti1Image)(data, AFFINE), path)
            path.rename(folder / f"{i}{end}")
            rows.append({"volume": data, "affine": AFFINE})
        return [folder], {}, rows


class TestImagesOfATimeSeries(SourceSuite):
    """Rows along the last axis of one packed file, unpacked once for every span."""

    source = "nifti"
    file_a_row = False
    damages = ("junk", "empty")  # of one cut short, the first images are good: see below
    limits: ClassVar = {"bigconv.sources.filerows.SPAN_INPUTS": 2, "bigconv.sources.nifti.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        data = voxels(4, 3, 2, 5, dtype=">i2")
        nibabel.save(nibabel.Nifti1Image(data, AFFINE), folder / "a.nii.gz")
        rows = [{"volume": data[..., i].astype("int16"), "affine": AFFINE} for i in range(5)]
        return [folder / "a.nii.gz"], {"axis": -1}, rows


# -- what is in the files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_rows_along_every_axis(tmp_path: Path, end: str, axis: int) -> None:
    data = voxels(4, 3, 2, 5)
    save(tmp_path / f"a{end}", data)
    found, rejects = read_rows(Nifti.find([tmp_path], axis=axis))
    assert not rejects
    assert len(found) == data.shape[axis]
    for i, row in enumerate(found):
        np.testing.assert_array_equal(row["volume"], np.take(data, i, axis))
    assert Nifti.find([tmp_path], axis=axis).describe()["axis"] == axis


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "becomes"),
    [
        ("int16", None, 0, "int16"),
        ("uint8", None, 0, "uint8"),
        ("float32", None, 0, "float32"),
        ("complex64", None, 0, "complex64"),
        ("int16", 1, -1024, "int32"),  # 16 bits less 1024 need 17
        ("uint8", 2, -100, "int16"),
        ("uint8", 1, 100, "uint16"),
        ("int16", 0.5, 0.25, "float32"),
        ("int32", 0.5, 0, "float64"),
        ("float32", 3, 0, "float32"),
    ],
)
def test_slope_and_intercept(tmp_path: Path, dtype: str, slope: float, intercept: float, becomes: str) -> None:
    """nibabel computes in float64; every value here is exact in both."""
    data = np.random.default_rng(0).integers(0, 200, (5, 4, 3)).astype(dtype)
    save(tmp_path / "a.nii", data, slope, intercept)
    source = Nifti.find([tmp_path])
    ((row,), _) = read_rows(source)
    oracle = nibabel.load(tmp_path / "a.nii")
    np.testing.assert_array_equal(oracle.dataobj.get_unscaled(), data)
    assert row["volume"].dtype == becomes
    np.testing.assert_array_equal(row["volume"], np.asarray(oracle.dataobj))
    np.testing.assert_array_equal(row["affine"], oracle.affine)


def test_files_of_different_scales_share_a_dtype(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    save(tmp_path / "a.nii", data)
    save(tmp_path / "b.nii", data, 1, -100)
    save(tmp_path / "c.nii", data.astype("int16"))
    found, _ = read_rows(Nifti.find([tmp_path]))
    for row, wanted in zip(found, (data, data - 100.0, data), strict=True):
        assert row["volume"].dtype == "int16"
        np.testing.assert_array_equal(row["volume"], wanted)


def test_the_qform_is_used_where_there_is_no_sform(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(2, 2, 2), None)
    image.set_sform(None, 0)
    image.set_qform(np.diag([2, 3, 4, 1.0]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    ((row,), _) = read_rows(Nifti.find([tmp_path / "a.nii"]))
    np.testing.assert_array_equal(row["affine"], np.diag([2, 3, 4, 1.0]))


def test_labels_only_where_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("sub-01", "sub-02"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "t1.nii", voxels(2, 2, 2))
    assert "label" not in Nifti.find([tmp_path]).schema
    source = Nifti.find([tmp_path], label_from="folder")
    assert source.schema["label"].classes == ("sub-01", "sub-02")
    assert [int(row["label"]) for row in read_rows(source)[0]] == [0, 1]


def test_a_large_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time series that is larger than a row may be, of which each image is small enough."""
    monkeypatch.setattr(nifti_file, "MAX_ROW_BYTES", 4 * 3 * 2 * 2)
    data = voxels(4, 3, 2, 50)
    save(tmp_path / "a.nii.gz", data)
    found, _ = read_rows(Nifti.find([tmp_path], axis=3))
    np.testing.assert_array_equal(np.stack([row["volume"] for row in found], -1), data)
    with pytest.raises(InputError, match="more than the 48 allowed; try --axis"):
        Nifti.find([tmp_path])


def test_mixed_numbers_of_axes_name_both_files(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", voxels(2, 2, 2))
    save(tmp_path / "b.nii", voxels(2, 2, 2, 3))
    with pytest.raises(InputError, match=r"mixed numbers of axes: b\.nii has 4, a\.nii has 3"):
        Nifti.find([tmp_path])
    with pytest.raises(UsageError, match="--axis 3: these volumes have 3 axes"):
        Nifti.find([tmp_path / "a.nii"], axis=3)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_every_length_is_whole_or_rejected(tmp_path: Path, end: str) -> None:
    save(tmp_path / "whole.nii", voxels(2, 2, 2))
    path = tmp_path / f"a{end}"
    save(path, voxels(9, 8, 7))
    data = path.read_bytes()
    for length in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        found, rejects = read_rows(Nifti.find([tmp_path]))
        assert [r.path for r in rejects] == [path.name], length
        assert len(found) == 1
        assert str(tmp_path) not in rejects[0].error


def test_a_flipped_bit_in_a_packed_file(tmp_path: Path) -> None:
    """gzip's own CRC tells, as the file is read to its end."""
    save(tmp_path / "b.nii", voxels(2, 2, 2))
    path = tmp_path / "a.nii.gz"
    raw = tmp_path / "c.nii"
    save(raw, voxels(9, 8, 7))
    data = bytearray(gzip.compress(raw.read_bytes(), 0))  # stored: only the CRC can tell
    raw.unlink()
    data[-200] ^= 4
    path.write_bytes(data)
    _, (reject,) = read_rows(Nifti.find([tmp_path]))
    assert (reject.path, "CRC" in reject.error) == ("a.nii.gz", True)


def test_a_time_series_cut_short_keeps_its_first_images(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", voxels(9, 8, 7, 6))
    data = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(data[: len(data) // 2])
    found, rejects = read_rows(Nifti.find([tmp_path], axis=3))
    assert len(found) in (2, 3)
    assert [(r.path, r.row) for r in rejects] == [("a.nii.gz", i) for i in range(len(found), 6)]


@pytest.mark.parametrize(
    ("at", "form", "values", "why"),
    [
        (40, "<8h", (7, 32767, 32767, 32767, 32767, 32767, 32767, 32767), "cut short"),
        (40, "<8h", (3, -5, 2, 2, 1, 1, 1, 1), "shape"),
        (40, "<8h", (200, 2, 2, 2, 1, 1, 1, 1), "shape"),
        (70, "<h", (12345,), "header"),
        (70, "<h", (128,), "type RGB"),
        (108, "<f", (1e12,), "extensions"),
        (108, "<f", (0.0,), "extensions"),
        (108, "<f", (float("nan"),), "header"),
        (344, "<4s", (b"ni1\0",), "without its voxels"),
    ],
)
def test_hostile_headers(tmp_path: Path, at: int, form: str, values: tuple, why: str) -> None:
    """More than there is, negative, a type that no one knows: refused before anything is allocated."""
    save(tmp_path / "b.nii", voxels(2, 2, 2))
    save(tmp_path / "a.nii", voxels(2, 2, 2))
    header_with(tmp_path / "a.nii", at, form, *values)
    found, rejects = read_rows(Nifti.find([tmp_path]))
    assert len(found) == 1
    assert [r.path for r in rejects] == ["a.nii"]
    assert why in rejects[0].error


def test_a_bomb_stops_where_its_header_does(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte, behind a volume of 8 voxels."""
    save(tmp_path / "a.nii", voxels(2, 2, 2))
    save(tmp_path / "b.nii", voxels(2, 2, 2))
    bomb = tmp_path / "a.nii.gz"
    with gzip.open(bomb, "wb", 9) as out:
        out.write((tmp_path / "a.nii").read_bytes() + bytes(8 << 20))
    os.unlink(tmp_path / "a.nii")
    _, (reject,) = read_rows(Nifti.find([tmp_path]))
    assert "more voxels than its header tells of" in reject.error


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[nifti\]'"):
        Nifti.find([tmp_path])
