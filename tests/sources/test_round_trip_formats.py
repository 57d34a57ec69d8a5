"""Scientific and moving pictures through every store and back: what their own libraries wrote, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
import test_dicom
import test_geotiff
import test_video
import tifffile

import bigconv
from bigconv.view.opening import open_store
from bigconv.view.report import verify

STORES = (".mmap", ".h5", ".lmdb", ".zarr")
Rows = list[dict[str, np.ndarray]]


def tiff(folder: Path) -> tuple[dict[str, Any], Rows]:
    """A stack a file, of different depth."""
    rows = []
    for i in range(3):
        stack = np.random.default_rng(i).normal(size=(2 + i, 9, 8)).astype("float32")
        tifffile.imwrite(folder / f"{i}.tif", stack, photometric="minisblack", compression="zlib", predictor=True)
        rows.append({"volume": tifffile.imread(folder / f"{i}.tif")})
        np.testing.assert_array_equal(rows[-1]["volume"], stack)
    return {}, rows


def tiff_images(folder: Path) -> tuple[dict[str, Any], Rows]:
    """16 bits stay, and channels come first."""
    rows = []
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 2**16, (9, 8 + i, 3), np.uint16)
        tifffile.imwrite(folder / f"{i}.tif", image, photometric="rgb")
        rows.append({"image": image.transpose(2, 0, 1)})
    return {}, rows


def geotiff(folder: Path) -> tuple[dict[str, Any], Rows]:
    """Tiles of one raster."""
    pixels = test_geotiff.raster(3, 21, 30, "int16")
    test_geotiff.save(folder / "a.tif", pixels, nodata=-1, compress="deflate")
    with rasterio.open(folder / "a.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
    return {"tile": 8, "overlap": 2}, test_geotiff.tiles(pixels, 8, 2, -1)


def dicom(folder: Path) -> tuple[dict[str, Any], Rows]:
    """Three rescaled series, two of them stored flipped."""
    rows = []
    for i, flips in enumerate(((False,) * 3, (True, False, True), (False, True, False))):
        voxels = test_dicom.volume(4 + i, 6, 5, seed=i)
        test_dicom.series(
            folder / f"{i}",
            voxels,
            f"1.2.{i}",
            flips=flips,
            change=lambda made, _: setattr(made, "RescaleIntercept", "-1024"),
        )
        rows.append(
            {
                "volume": voxels.astype("int16") - np.int16(1024),
                "spacing": np.array([2.5, 0.5, 0.75]),
                "orientation": np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]]),
                "origin": np.array([-10.0, -20, 30]),
            }
        )
    return {}, rows


def nifti(folder: Path) -> tuple[dict[str, Any], Rows]:
    rows = []
    for i, end in enumerate((".nii", ".nii.gz")):
        data = np.random.default_rng(i).integers(-99, 99, (5, 4, 3 + i)).astype("int16")
        affine = np.diag([2, 2, 3 + i, 1.0])
        nibabel.save(nibabel.Nifti1Image(data, affine), folder / f"{i}{end}")
        rows.append({"volume": np.asarray(nibabel.load(folder / f"{i}{end}").dataobj), "affine": affine})
    return {}, rows


def video(folder: Path) -> tuple[dict[str, Any], Rows]:
    """Of a variable frame rate."""
    frames = test_video.pictures(10)
    test_video.save(folder / "a.mp4", frames, test_video.VARIABLE)
    test_video.save(folder / "b.mkv", frames[:4])
    times = (np.array(test_video.VARIABLE), 40 * np.arange(4))
    return {}, [{"video": test_video.chw(frames[: len(time)]), "time": time / 1000} for time in times]


@pytest.mark.parametrize("make", [tiff, tiff_images, geotiff, dicom, nifti, video])
def test_round_trip(tmp_path: Path, make: Callable[[Path], tuple[dict[str, Any], Rows]]) -> None:
    """Recognised without being told, the same in every store, proven by its digests."""
    folder = tmp_path / "raw"
    folder.mkdir()
    options, expected = make(folder)
    digests = set()
    for suffix in STORES:
        manifest = bigconv.convert(folder, tmp_path / f"out{suffix}", workers=0, progress=False, **options)
        assert manifest.source["kind"] == make.__name__.partition("_")[0]
        assert manifest.rows == len(expected)
        digests.add(manifest.content_digest)
        view = bigconv.open(tmp_path / f"out{suffix}")
        for row, wanted in zip(view, expected, strict=True):
            assert list(row) == list(wanted)
            for name, value in wanted.items():
                assert row[name].shape == value.shape, name
                if name == "time":
                    np.testing.assert_allclose(row[name], value, atol=1e-4)
                    continue
                np.testing.assert_array_equal(row[name], value, err_msg=name)
        assert verify(open_store(tmp_path / f"out{suffix}")) == []
    assert len(digests) == 1


def test_a_recipe_replays_the_options(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    geotiff(folder)
    one = bigconv.convert(folder, tmp_path / "a.h5", tile=8, overlap=2, workers=0, progress=False)
    two = bigconv.convert(folder, tmp_path / "b.h5", recipe=tmp_path / "a.h5", workers=0, progress=False)
    assert one.recipe["read"] == {"tile": 8, "overlap": 2}
    assert two.content_digest == one.content_digest


def test_the_same_bytes_from_worker_processes(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    video(folder)
    digests = {
        bigconv.convert(folder, tmp_path / f"{n}.h5", fps=20, frames=2, workers=n, progress=False).content_digest
        for n in (0, 2)
    }
    assert len(digests) == 1
