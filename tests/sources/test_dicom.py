"""DICOM: pydicom writes, and compresses with its own plug-ins; positions and values are set by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pydicom
import pytest
from _read import read_rows
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from bigconv.errors import InputError, MissingPackage
from bigconv.sources.dicom import Dicom
from bigconv.sources.rescale import Rescale, common_dtype
from bigconv.testing.source_suite import Made, SourceSuite

Change = Callable[[FileDataset], None]
IDENTITY = ((1.0, 0, 0), (0, 1.0, 0))  # of an axial slice: along a row to the left, along a column to the back


def volume(*shape: int, seed: int = 0, bits: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, shape, np.uint16)


def data_set(pixels: np.ndarray, uid: str = "1.2.3", syntax: UID = ExplicitVRLittleEndian) -> FileDataset:
    """One CT slice, or several frames, with a patient's name in it."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.PatientName, made.PatientID = "Doe^Jane", "007"
    made.SOPClassUID, made.SOPInstanceUID, made.SeriesInstanceUID = CTImageStorage, "1.2.3.4", uid
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 8 * pixels.itemsize, min(12, 8 * pixels.itemsize), 11
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.PixelData = pixels.tobytes()
    return made


def series(
    folder: Path,
    voxels: np.ndarray,
    uid: str = "1.2.3",
    *,
    spacing: tuple[float, float, float] = (2.5, 0.5, 0.75),
    origin: tuple[float, float, float] = (-10.0, -20.0, 30.0),
    flips: tuple[bool, bool, bool] = (False, False, False),
    shuffle: bool = True,
    change: Callable[[FileDataset, int], None] | None = None,
) -> list[Path]:
    """`voxels` `[slices, rows, columns]` towards head, back and left, one file a slice, stored as `flips` says."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = (np.array([0, 0, 1.0]), np.array([0, 1.0, 0]), np.array([1.0, 0, 0]))
    start = np.array(origin)
    for axis, flipped in enumerate(flips):
        if flipped:
            start = start + steps[axis] * spacing[axis] * (voxels.shape[axis] - 1)
            voxels = np.flip(voxels, axis)
    sign = [-1.0 if flipped else 1.0 for flipped in flips]
    numbers = np.random.default_rng(3).permutation(len(voxels)) if shuffle else np.arange(len(voxels))
    paths = []
    for i, number in enumerate(numbers.tolist()):
        made = data_set(voxels[number], uid)
        made.ImagePositionPatient = [float(x) for x in start + steps[0] * (sign[0] * spacing[0] * number)]
        made.ImageOrientationPatient = [float(x) for x in (*(sign[2] * steps[2]), *(sign[1] * steps[1]))]
        made.PixelSpacing = list(spacing[1:])
        made.SliceThickness = spacing[0]
        made.InstanceNumber = i
        if change is not None:
            change(made, number)
        path = folder / f"{i:03d}.dcm"
        made.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


class TestSeries(SourceSuite):
    """Three series; the file that the suite damages is the first of the second."""

    source = "dicom"
    limits: ClassVar = {"bigconv.sources.rowwise.SPAN_INPUTS": 1}

    def make(self, folder: Path) -> Made:
        rows = []
        for i, slices in enumerate((2, 2, 1)):
            voxels = volume(slices, 20, 15, seed=i)
            series(folder / f"{i}", voxels, f"1.2.{i}")
            rows.append(
                {
                    "volume": voxels,
                    "spacing": np.array([2.5, 0.5, 0.75]),
                    "orientation": np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]]),
                    "origin": np.array([-10.0, -20, 30]),
                }
            )
        return [folder], {}, rows


# -- geometry ----------------------------------------------------------------------------------------------------------


def only(folder: Path) -> dict[str, Any]:
    (row,), rejects = read_rows(Dicom.find([folder]))
    assert rejects == []
    return row


def refused(tmp_path: Path, folder: str) -> str:
    """Why the series in `folder` is a reject; another one beside it stays."""
    series(tmp_path / "z good", volume(2, 4, 3), "1.9")
    rows, (reject,) = read_rows(Dicom.find([tmp_path]))
    assert len(rows) == 1
    assert reject.path == f"{folder}/000.dcm"
    assert str(tmp_path) not in reject.error
    return reject.error


@pytest.mark.parametrize("flips", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_a_series_stored_flipped_comes_out_the_same(tmp_path: Path, flips: tuple[int, int, int]) -> None:
    voxels = volume(5, 4, 3)
    series(tmp_path / "plain", voxels)
    series(tmp_path / "flipped", voxels, flips=tuple(map(bool, flips)))
    plain, flipped = only(tmp_path / "plain"), only(tmp_path / "flipped")
    np.testing.assert_array_equal(plain["volume"], voxels)
    for name in plain:
        np.testing.assert_allclose(flipped[name], plain[name], rtol=0, atol=1e-9, err_msg=name)


def test_slices_are_sorted_by_place_not_by_name(tmp_path: Path) -> None:
    voxels = volume(12, 4, 3)
    series(tmp_path / "a", voxels, shuffle=True)
    series(tmp_path / "b", voxels, shuffle=False)
    np.testing.assert_array_equal(only(tmp_path / "a")["volume"], voxels)
    np.testing.assert_array_equal(only(tmp_path / "b")["volume"], voxels)


def test_a_sagittal_series_keeps_its_planes(tmp_path: Path) -> None:
    """Rows run to the back, columns to the feet: the slices' axis is left to right, and columns are turned."""
    voxels = volume(3, 4, 5)
    for i in range(3):
        made = data_set(voxels[i])
        made.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        made.ImagePositionPatient = [float(-2 * i), 5, 6]
        made.PixelSpacing = [0.5, 0.25]
        made.save_as(tmp_path / f"{i}.dcm", enforce_file_format=True)
    row = only(tmp_path)
    # the normal of these planes points to the right, so the first slice along it is the third file's
    np.testing.assert_array_equal(row["volume"], voxels[::-1][:, ::-1])
    np.testing.assert_array_equal(row["orientation"], [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(row["spacing"], [2, 0.5, 0.25])
    np.testing.assert_allclose(row["origin"], [-4, 5, 6 - 3 * 0.5])


def test_gaps_are_named(tmp_path: Path) -> None:
    paths = series(tmp_path / "a", volume(6, 4, 3), shuffle=False)
    paths[3].unlink()
    why = refused(tmp_path, "a")
    assert "a gap or uneven spacing: a/002.dcm and a/004.dcm are 5 mm apart, most slices 2.5 mm" in why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: setattr(d, "ImagePositionPatient", [-10.0, -20, 30]), "lie at the same place"),
        (lambda d: setattr(d, "ImagePositionPatient", [-10.0, -20, 33.3]), "uneven spacing"),
        (lambda d: setattr(d, "ImagePositionPatient", [-9.0, -20, 32.5]), "tilted gantry"),
        (lambda d: setattr(d, "PixelSpacing", [0.5, 0.5]), "pixel spacing"),
        (lambda d: setattr(d, "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]), "another direction"),
        (lambda d: setattr(d, "ImagePositionPatient", "1\\2"), "ImagePositionPatient"),
        (lambda d: setattr(d, "PhotometricInterpretation", "RGB"), "colour"),
        (lambda d: setattr(d, "ModalityLUTSequence", Sequence([Dataset()])), "lookup table"),
    ],
)
def test_slices_that_make_no_volume(tmp_path: Path, change: Change, why: str) -> None:
    series(tmp_path / "a", volume(3, 4, 3), shuffle=False, change=lambda d, i: change(d) if i == 1 else None)
    assert why in refused(tmp_path, "a")


def test_slices_of_other_sizes(tmp_path: Path) -> None:
    series(tmp_path / "a", volume(2, 4, 3), shuffle=False)
    series(tmp_path / "a" / "b", volume(1, 5, 3), shuffle=False, origin=(-10.0, -20.0, 35.0))
    assert "a/b/000.dcm has 5x3 pixels, a/000.dcm 4x3" in refused(tmp_path, "a")


def test_an_unreadable_slice_spoils_its_series(tmp_path: Path) -> None:
    """Even the last one, of which no gap tells."""
    paths = series(tmp_path / "a", volume(4, 4, 3), shuffle=False)
    paths[3].write_bytes(b"junk" * 99)
    assert "a/003.dcm: no DICOM file" in refused(tmp_path, "a")


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "intercept", "becomes"),
    [("1", "-1024", "int16"), ("2", "0", "uint16"), ("0.5", "-3", "float32"), ("1", "0", "uint16")],
)
def test_rescale(tmp_path: Path, slope: str, intercept: str, becomes: str) -> None:
    voxels = volume(3, 4, 5)

    def change(made: FileDataset, _: int) -> None:
        made.RescaleSlope, made.RescaleIntercept = slope, intercept

    series(tmp_path, voxels, change=change)
    row = only(tmp_path)
    assert row["volume"].dtype == becomes
    np.testing.assert_array_equal(row["volume"], voxels * float(slope) + float(intercept))


def test_each_slice_has_a_scale_of_its_own(tmp_path: Path) -> None:
    """As in PET."""
    voxels = volume(4, 4, 5)
    series(
        tmp_path, voxels, change=lambda d, i: setattr(d, "RescaleSlope", str(0.25 * (i + 1))), flips=(True, False, True)
    )
    flipped = np.arange(4)[::-1]  # `number` counts slices as they are stored
    np.testing.assert_array_equal(only(tmp_path)["volume"], voxels * (0.25 * (flipped + 1))[:, None, None])


def test_numbers_beyond_the_bits_of_the_header() -> None:
    """The dtype was chosen for 12 bits: a decoder that gives more must not wrap around."""
    scale = Rescale("uint16", 12, 1.0, -1024.0)
    assert common_dtype([scale]) == "int16"
    np.testing.assert_array_equal(scale.apply(np.array([0, 4095], np.uint16), "int16"), [-1024, 3071])
    with pytest.raises(InputError, match="beyond the 12 bits"):
        scale.apply(np.array([40000], np.uint16), "int16")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_slices(tmp_path: Path, syntax: UID) -> None:
    voxels = volume(3, 32, 40)
    for path in series(tmp_path, voxels):
        made = pydicom.dcmread(path)
        made.compress(syntax, generate_instance_uid=False)
        made.save_as(path)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(only(tmp_path)["volume"], voxels)


def test_frames_of_one_file(tmp_path: Path) -> None:
    """Enhanced CT: positions and scales of frames are in functional groups, some of them shared."""
    voxels = volume(4, 5, 6)
    order = [2, 0, 3, 1]
    made = data_set(voxels[order])
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 3
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number in order:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 3.0 * number]
        values.RescaleSlope, values.RescaleIntercept = 1, -1000
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([position]), Sequence([values])
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    row = only(tmp_path)
    np.testing.assert_array_equal(row["volume"], voxels.astype("int16") - 1000)
    np.testing.assert_array_equal(row["spacing"], [3, 0.5, 0.5])


def test_images_without_a_position_are_each_a_row(tmp_path: Path) -> None:
    pictures = volume(3, 6, 5)
    for i, picture in enumerate(pictures):
        data_set(picture).save_as(tmp_path / f"{i}.dcm", enforce_file_format=True)
    rows, rejects = read_rows(Dicom.find([tmp_path]))
    assert rejects == []
    np.testing.assert_array_equal(np.concatenate([row["volume"] for row in rows]), pictures)
    assert all(np.isnan(row["origin"]).all() and np.isnan(row["orientation"]).all() for row in rows)


def test_files_without_an_extension_are_told_by_content(tmp_path: Path) -> None:
    voxels = volume(3, 4, 5)
    for i, path in enumerate(series(tmp_path, voxels)):
        path.rename(tmp_path / f"IM{i}")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM and more")
    (tmp_path / "README").write_bytes(b"not an image")
    np.testing.assert_array_equal(only(tmp_path)["volume"], voxels)


def test_nothing_of_the_patient_is_kept(tmp_path: Path) -> None:
    series(tmp_path, volume(2, 4, 3))
    source = Dicom.find([tmp_path])
    assert source.schema.names == ("volume", "spacing", "orientation", "origin")
    assert "Doe" not in str(source.describe())
    assert "1.2.3" not in str(source.describe())


def test_labels_of_the_folders(tmp_path: Path) -> None:
    series(tmp_path / "ill" / "a", volume(2, 4, 3), "1.1")
    series(tmp_path / "well" / "b", volume(2, 4, 3), "1.2")
    rows, _ = read_rows(Dicom.find([tmp_path], label_from="folder"))
    assert [int(row["label"]) for row in rows] == [0, 1]


# -- damage ------------------------------------------------------------------------------------------------------------


def test_every_length_is_whole_or_rejected(tmp_path: Path) -> None:
    series(tmp_path / "b", volume(2, 4, 3), "1.9")
    (path,) = series(tmp_path / "a", volume(1, 12, 10))
    data = path.read_bytes()
    for length in [*range(0, len(data), len(data) // 40), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        rows, rejects = read_rows(Dicom.find([tmp_path]))
        assert ([r.path for r in rejects], len(rows)) == (["a/000.dcm"], 1), length
        assert str(tmp_path) not in rejects[0].error


def test_a_frame_that_is_larger_than_its_header_tells(tmp_path: Path) -> None:
    """The decoder would allocate what the codestream asks for."""
    (path,) = series(tmp_path / "a", volume(1, 32, 40))
    made = pydicom.dcmread(path)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    at = made.PixelData.index(b"\xff\x4f\xff\x51")
    bomb = bytearray(made.PixelData)
    bomb[at + 8 : at + 16] = (60000).to_bytes(4) * 2
    made.PixelData = bytes(bomb)
    made.save_as(path)
    assert "a frame of 60000x60000 pixels instead of 32x40" in refused(tmp_path, "a")


def test_a_deflated_data_set_is_refused(tmp_path: Path) -> None:
    (path,) = series(tmp_path / "a", volume(1, 8, 8))
    made = pydicom.dcmread(path)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    made.save_as(path, implicit_vr=False, little_endian=True)
    assert "a deflated data set" in refused(tmp_path, "a")


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    def change(made: FileDataset, _: int) -> None:
        made.Rows = made.Columns = 65535
        made.NumberOfFrames = 60000

    series(tmp_path / "a", volume(1, 8, 8), change=change)
    assert "more than allowed" in refused(tmp_path, "a")


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no DICOM files in it"):
        Dicom.find([tmp_path])


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigconv.sources import dicom_slices

    dicom_slices.pydicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[dicom\]'"):
        Dicom.find([tmp_path])
