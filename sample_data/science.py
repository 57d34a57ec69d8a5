"""The part of the sample data that other fields write with libraries of their own: `bigconv[all,video]` makes it.

What those libraries write differs from version to version though it says the same, so `decoded` reads it for comparing.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MADE = ("street", "scan", "brain.nii.gz", "field.tif", "cells.tif", "clip.mp4", "samples.tar", "table.parquet", "texts")
DECODED = (".dcm", ".nii.gz", ".tif", ".mp4", ".parquet")
VIDEO_MEAN = 2.0  # levels of 256 that two encoders may differ by, over a video
LINES = ("Rows lie one after another,", "bytes in the order they were read.", "Nothing is lost: the digests agree.", "")


def smooth(bits: Any, *shape: int) -> Array:
    """float64 `shape` in [0, 1]: noise with its neighbours, so that it looks like something that was measured."""
    values = bits.uniform(*shape)
    for axis in range(len(shape)):
        for _ in range(3):
            values = (values + np.roll(values, 1, axis) + np.roll(values, -1, axis)) / 3
    low, high = values.min(), values.max()
    result: Array = (values - low) / (high - low)
    return result


def make_street(root: Path, bits: Any) -> None:
    """Six photos, and what each pixel shows as the numbers of a palette."""
    from PIL import Image

    for name in ("images", "masks"):
        (root / "street" / name).mkdir(parents=True)
    for number in range(6):
        ground = smooth(bits, 48, 64)
        classes = (ground * 3.999).astype(np.uint8)
        colours = np.array([(70, 130, 180), (107, 142, 35), (128, 64, 128), (220, 20, 60)])
        shaded = colours[classes] * (0.6 + 0.4 * smooth(bits, 48, 64))[..., None]
        Image.fromarray(shaded.astype(np.uint8)).save(root / "street" / "images" / f"{number:03}.jpg", quality=85)
        mask = Image.fromarray(classes).convert("P")
        mask.putdata(classes.ravel().tolist())
        mask.putpalette(colours.ravel().tolist())
        mask.save(root / "street" / "masks" / f"{number:03}.png")


def make_scan(root: Path, bits: Any) -> None:
    """A CT series of eight slices, 3 mm apart, in another order by name than by place; values are Hounsfield + 1024."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    voxels = (smooth(bits, 8, 32, 32) * 2000).astype(np.uint16)
    (root / "scan").mkdir()
    for z, pixels in enumerate(voxels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{z + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        made.SeriesInstanceUID = made.StudyInstanceUID = made.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.99"
        made.Modality, made.PatientID, made.PatientName = "CT", "sample", "Sample"
        made.Rows, made.Columns = pixels.shape
        made.PixelSpacing, made.SliceThickness = [0.7, 0.7], 3
        made.ImageOrientationPatient, made.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-11.2, -11.2, 3.0 * z]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
        made.RescaleSlope, made.RescaleIntercept = 1, -1024
        made.PixelData = pixels.tobytes()
        made.save_as(root / "scan" / f"{(5 * z) % 8:03}.dcm", enforce_file_format=True)


def make_brain(root: Path, bits: Any) -> None:
    """A volume with its affine: voxels of 2 x 2 x 3 mm."""
    import nibabel

    voxels = (smooth(bits, 20, 24, 12) * 900).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), root / "brain.nii.gz")


def make_field(root: Path, bits: Any) -> None:
    """A satellite scene: four bands of 16 bits, 10 m a pixel, one corner without data."""
    import rasterio

    bands = (smooth(bits, 4, 60, 80) * 9000 + 100).astype(np.uint16)
    bands[:, :8, :8] = 0
    profile = {"driver": "GTiff", "count": 4, "height": 60, "width": 80, "dtype": "uint16", "nodata": 0}
    place = rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)
    with rasterio.open(
        root / "field.tif", "w", **profile, crs="EPSG:32633", transform=place, compress="deflate"
    ) as file:
        file.write(bands)


def make_cells(root: Path, bits: Any) -> None:
    """A microscope's stack of six planes, 16 bits."""
    import tifffile

    planes = (smooth(bits, 6, 40, 40) * 60_000).astype(np.uint16)
    tifffile.imwrite(root / "cells.tif", planes, photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"})


def make_clip(root: Path, bits: Any) -> None:
    """Sixteen frames at 8 a second: a bright ball that crosses a dull field."""
    import av

    ground = (smooth(bits, 48, 64) * 90).astype(np.uint8)
    y, x = np.mgrid[:48, :64]
    with av.open(str(root / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.thread_count = 1
        for t in range(16):
            ball = (x - 4 * t) ** 2 + (y - 24) ** 2 < 60
            picture = np.repeat(np.where(ball, 230, ground)[..., None], 3, axis=2).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))


def make_samples(root: Path, bits: Any) -> None:
    """A WebDataset shard: six samples of a picture, a class and a caption."""
    from PIL import Image

    with tarfile.open(root / "samples.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(6):
            picture = io.BytesIO()
            levels = (np.stack([smooth(bits, 24, 24) for _ in range(3)], axis=-1) * 255).astype(np.uint8)
            Image.fromarray(levels).save(picture, "PNG", compress_level=0)  # the same bytes from any zlib
            label = bits.below(3)
            members = {
                "png": picture.getvalue(),
                "cls": str(label).encode(),
                "json": json.dumps({"caption": f"sample {number} of class {label}"}).encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:06}.{extension}")
                info.size, info.mtime, info.mode = len(data), 1_700_000_000, 0o644
                tar.addfile(info, io.BytesIO(data))


def make_parquet(root: Path, bits: Any) -> None:
    """A day of a weather station, minute by minute."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps = np.cumsum(bits.uniform(1440, 3) - 0.5, axis=0).astype(np.float32)
    names = ("temperature", "humidity", "wind")
    columns = {name: steps[:, i] for i, name in enumerate(names)}
    pq.write_table(pa.table({"minute": np.arange(1440, dtype=np.int32), **columns}), root / "table.parquet")


def make_texts(root: Path, bits: Any) -> None:
    """Three documents."""
    (root / "texts").mkdir()
    for number in range(3):
        lines = [LINES[bits.below(len(LINES))] for _ in range(6 + bits.below(10))]
        (root / "texts" / f"{number}.txt").write_bytes(("\n".join(lines) + "\n").encode())


PARTS = (
    make_street, make_scan, make_brain, make_field, make_cells, make_clip, make_samples, make_parquet, make_texts,
)  # fmt: skip


def decoded(path: Path) -> Array | None:
    """What a file of `DECODED` says, as its own library reads it; None for a file of another kind."""
    name = path.name
    if name.endswith(".dcm"):
        import pydicom

        made = pydicom.dcmread(path)
        return np.append(made.pixel_array.ravel().astype(float), [float(v) for v in made.ImagePositionPatient])
    if name.endswith(".nii.gz"):
        import nibabel

        image = nibabel.load(path)
        return np.append(np.asarray(image.dataobj).ravel().astype(float), image.affine.ravel())
    if name == "field.tif":
        import rasterio

        with rasterio.open(path) as file:
            return np.append(file.read().ravel().astype(float), tuple(file.transform))
    if name.endswith(".tif"):
        import tifffile

        pages: Array = tifffile.imread(path)
        return pages
    if name.endswith(".mp4"):
        import av

        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return np.stack([column.to_numpy() for column in table.columns])
    return None


def agree(ours: Path, theirs: Path) -> bool:
    """Whether two files say the same; videos all but the same."""
    a, b = decoded(ours), decoded(theirs)
    if a is None or b is None or a.shape != b.shape:
        return False
    if ours.suffix == ".mp4":
        return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean()) <= VIDEO_MEAN
    return bool(np.array_equal(a, b))
