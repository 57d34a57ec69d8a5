"""Pictures, scans, sound, film and chunks made to do harm: refused or rejected within seconds and a little memory."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import google_crc32c
import h5py
import nibabel
import numcodecs
import numpy as np
import pydicom
import pytest
import soundfile
import tifffile
import zarr
from _refusal import bounded, refused
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

import bigconv
from bigconv.inspection.subject import subject

Make = Callable[[Path], Path]
BOMB = 320 << 20  # bytes unpacked: more than what a refusal may allocate


@functools.cache
def zeros(codec: str) -> bytes:
    """320 MiB of zeros, packed."""
    if codec == "zstd":
        return bytes(numcodecs.Zstd(1).encode(np.zeros(BOMB, np.uint8)))
    packer = zlib.compressobj(1, wbits={"gzip": 31, "zlib": 15}[codec])
    piece = bytes(1 << 20)
    return b"".join([packer.compress(piece) for _ in range(BOMB >> 20)] + [packer.flush()])


def beside(path: Path, name: str) -> Path:
    """The place for a bad file, beside a good one that says what the folder holds."""
    (path / "raw").mkdir(exist_ok=True)
    return path / "raw" / name


# -- TIFF --------------------------------------------------------------------------------------------------------------


def tiff(path: Path, **how: Any) -> bytearray:
    """A small TIFF to spoil; a good one lies beside it."""
    for name in ("good.tif", "evil.tif"):
        pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
        tifffile.imwrite(beside(path, name), pixels, photometric="minisblack", **how)
    return bytearray((path / "raw/evil.tif").read_bytes())


def entry(data: bytearray, tag: int) -> int:
    """Where a tag's entry lies in the first directory of a little-endian TIFF."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    return next(a for a in range(at + 2, at + 2 + 12 * count, 12) if struct.unpack_from("<H", data, a)[0] == tag)


def spoiled(path: Path, name: str, data: bytes) -> Path:
    beside(path, name).write_bytes(data)
    return path / "raw"


def tiff_huge(path: Path) -> Path:
    data = tiff(path)
    for tag in (256, 257):  # ImageWidth, ImageLength
        struct.pack_into("<HI", data, entry(data, tag) + 2, 4, 1)
        struct.pack_into("<I", data, entry(data, tag) + 8, 2**31 - 1)
    return spoiled(path, "evil.tif", data)


def tiff_loop(path: Path) -> Path:
    """Its directory is its own successor."""
    data = tiff(path)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    return spoiled(path, "evil.tif", data)


def tiff_count(path: Path) -> Path:
    """A tag with four thousand million values."""
    data = tiff(path)
    struct.pack_into("<I", data, entry(data, 273) + 4, 2**32 - 1)
    return spoiled(path, "evil.tif", data)


def tiff_bomb(path: Path) -> Path:
    """A strip of 256 pixels that becomes 320 MiB."""
    data = tiff(path, compression="zlib")
    bomb = zeros("zlib")
    struct.pack_into("<I", data, entry(data, 273) + 8, len(data))  # StripOffsets
    at = entry(data, 279)  # StripByteCounts
    struct.pack_into("<HII", data, at + 2, 4, 1, len(bomb))
    return spoiled(path, "evil.tif", bytes(data) + bomb)


# -- DICOM -------------------------------------------------------------------------------------------------------------


def dicom(path: Path, syntax: str = ExplicitVRLittleEndian, rows: int = 4, pixels: bytes | None = None) -> bytearray:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        syntax,
        CTImageStorage,
        "1.2",
    )
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, "1.2"
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = rows, rows, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    made.PixelData = bytes(2 * 4 * 4) if pixels is None else pixels
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return bytearray(file.getvalue())


def dicom_with(path: Path, data: bytes) -> Path:
    beside(path, "good.dcm").write_bytes(dicom(path))
    return spoiled(path, "evil.dcm", data)


def dicom_huge(path: Path) -> Path:
    return dicom_with(path, dicom(path, rows=65535))


def dicom_length(path: Path) -> Path:
    """Pixels of four thousand million bytes."""
    data = dicom(path)
    at = data.rindex(b"\xe0\x7f\x10\x00OW")
    struct.pack_into("<I", data, at + 8, 2**32 - 2)
    return dicom_with(path, data)


def dicom_deflated(path: Path) -> Path:
    """A data set that could unpack to anything."""
    head = dicom(path, DeflatedExplicitVRLittleEndian)
    whole = pydicom.dcmread(io.BytesIO(head))
    start = 144 + whole.file_meta.FileMetaInformationGroupLength
    return dicom_with(path, bytes(head[:start]) + zlib.compress(bytes(1 << 20))[2:-4])


def dicom_nested(path: Path) -> Path:
    """Sequences in one another, ten thousand deep."""
    data = bytes(dicom(path))
    at = data.index(b"\x28\x00\x02\x00US")  # SamplesPerPixel
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return dicom_with(path, data[:at] + item * 10_000)


def dicom_rle(path: Path) -> Path:
    """A frame whose segments lie outside of it."""
    frame = struct.pack("<16I", 2, 64, 2**31, *[0] * 13) + b"\x7f" * 8
    data = pydicom.encaps.encapsulate([frame])
    made = dicom(path)
    whole = pydicom.dcmread(io.BytesIO(made))
    whole.file_meta.TransferSyntaxUID = RLELossless
    whole.PixelData = data
    whole["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    pydicom.dcmwrite(file, whole)
    return dicom_with(path, file.getvalue())


# -- NIfTI -------------------------------------------------------------------------------------------------------------


def nifti(path: Path) -> bytearray:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), beside(path, "good.nii"))
    return bytearray((path / "raw/good.nii").read_bytes())


def nifti_bomb(path: Path) -> Path:
    """Voxels of 320 MiB, as its header has it: allowed, if there is memory for them."""
    data = nifti(path)
    struct.pack_into("<8h", data, 40, 3, 1024, 1024, 160, 1, 1, 1, 1)
    return spoiled(path, "evil.nii.gz", gzip.compress(bytes(data[:352])) + zeros("gzip"))


def nifti_huge(path: Path) -> Path:
    data = nifti(path)
    struct.pack_into("<8h", data, 40, 7, *[32767] * 7)
    return spoiled(path, "evil.nii", data)


# -- sound and film ----------------------------------------------------------------------------------------------------


def sound(path: Path, form: str) -> bytearray:
    for name in ("good", "evil"):
        soundfile.write(beside(path, f"{name}.{form}"), np.zeros(500, np.float32), 8000, format=form.upper())
    return bytearray((path / f"raw/evil.{form}").read_bytes())


def wav_huge(path: Path) -> Path:
    data = sound(path, "wav")
    struct.pack_into("<I", data, data.index(b"data") + 4, 2**32 - 1)
    return spoiled(path, "evil.wav", data)


def flac_huge(path: Path) -> Path:
    """A stream of 2³⁶ samples, as its head has it."""
    data = sound(path, "flac")
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    return spoiled(path, "evil.flac", data)


def flac_short(path: Path) -> Path:
    data = sound(path, "flac")
    return spoiled(path, "evil.flac", data[: len(data) - 9])


def film(path: Path) -> bytearray:
    for name in ("good.mp4", "evil.mp4"):
        with av.open(str(beside(path, name)), "w") as container:
            stream = container.add_stream("libx264rgb", 10, options={"crf": "0"})
            stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb24"
            for i in range(4):
                frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * i, np.uint8), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return bytearray((path / "raw/evil.mp4").read_bytes())


def film_huge(path: Path) -> Path:
    """Pictures of 65535 x 65535 pixels, as its head has it."""
    data = film(path)
    struct.pack_into(">HH", data, data.index(b"avc1", data.index(b"stsd")) + 28, 65535, 65535)
    return spoiled(path, "evil.mp4", data)


def film_count(path: Path) -> Path:
    """Four thousand million frames in its table."""
    data = film(path)
    struct.pack_into(">I", data, data.index(b"stsz") + 12, 2**32 - 1)
    return spoiled(path, "evil.mp4", data)


def film_short(path: Path) -> Path:
    data = film(path)
    return spoiled(path, "evil.mp4", data[: len(data) // 2])


# -- chunks ------------------------------------------------------------------------------------------------------------


def zarr_bomb(codec: str) -> Make:
    def make(path: Path) -> Path:
        """A chunk of 4 numbers that becomes 320 MiB."""
        packed = {"zstd": zarr.codecs.ZstdCodec(), "gzip": zarr.codecs.GzipCodec()}[codec]
        zarr.create_array(path / "a.zarr", data=np.arange(1, 9), chunks=(4,), compressors=packed)
        (path / "a.zarr/c/1").write_bytes(zeros(codec))
        return path / "a.zarr"

    make.__name__ = f"zarr_{codec}"
    return make


def zarr_blosc_lie(path: Path) -> Path:
    """A frame whose head says that it becomes 2 GiB."""
    zarr.create_array(path / "a.zarr", data=np.arange(1, 9), chunks=(4,), compressors=zarr.codecs.BloscCodec())
    data = bytearray((path / "a.zarr/c/1").read_bytes())
    struct.pack_into("<I", data, 4, 2**31 - 17)
    (path / "a.zarr/c/1").write_bytes(data)
    return path / "a.zarr"


def zarr_shard(path: Path) -> Path:
    """An index that places a chunk far behind the end of the shard."""
    zarr.create_array(path / "a.zarr", data=np.arange(1, 9), chunks=(4,), shards=(8,), compressors=None)
    data = bytearray((path / "a.zarr/c/0").read_bytes())
    struct.pack_into("<2Q", data, len(data) - 36, 2**40, 2**40)
    data[-4:] = struct.pack("<I", google_crc32c.value(bytes(data[-36:-4])))
    (path / "a.zarr/c/0").write_bytes(data)
    return path / "a.zarr"


def h5_bomb(path: Path) -> Path:
    """A chunk of 512 KiB that becomes 320 MiB."""
    with h5py.File(path / "a.h5", "w") as file:
        x = file.create_dataset("x", (8, 1 << 14), "i8", chunks=(4, 1 << 14), compression="gzip")
        x[:] = 1
        x.id.write_direct_chunk((4, 0), zeros("zlib"))
    return path / "a.h5"


REJECTED: list[tuple[Make, str]] = [
    (tiff_huge, "2147483647x2147483647 pixels are more than"),
    (tiff_loop, "its pages form a loop"),
    (tiff_count, "evil.tif: TIFF can't be decoded"),
    (dicom_huge, "65535x65535 pixels are none, or more than allowed"),
    (dicom_length, "evil.dcm"),
    (dicom_deflated, "a deflated data set, which could unpack to anything"),
    (dicom_nested, "evil.dcm: can't be decoded"),
    (dicom_rle, "evil.dcm: can't be decoded"),
    (nifti_bomb, "evil.nii.gz: does not fit in memory"),
    (nifti_huge, "evil.nii: cut short"),
    (flac_huge, "68719476735 frames of 1 channels are more than"),
    (flac_short, "evil.flac: can't be decoded"),
    (film_count, "evil.mp4: can't be decoded"),
    (film_short, "evil.mp4: cut short"),
    (zarr_bomb("zstd"), "a, row 4: "),
    (zarr_bomb("gzip"), "a, row 4: "),
    (zarr_blosc_lie, "a, row 4: damaged: a chunk can't be unpacked"),
    (zarr_shard, "a, row 0: damaged: a chunk can't be unpacked"),
    (h5_bomb, "x, row 4: "),
]


@pytest.mark.parametrize(("make", "told"), REJECTED, ids=lambda x: x.__name__ if callable(x) else "")
def test_rejected(make: Make, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It costs the run that input, or the rows of that chunk, and by default the run doesn't publish."""
    refused(capsys, tmp_path, 1, told, make(tmp_path))


@pytest.mark.parametrize("make", [tiff_bomb, wav_huge, film_huge])
def test_more_is_promised_than_is_read(make: Make, tmp_path: Path) -> None:
    """What a decoder needn't believe, it doesn't: no more than the good file's values come of it."""
    with bounded():
        bigconv.convert(make(tmp_path), tmp_path / "out.h5", workers=0)
    rows = bigconv.open(tmp_path / "out.h5")
    evil, good = rows[0], rows[1]
    assert all(np.shape(evil[name]) == np.shape(good[name]) for name in rows.schema.names)


NO_FILE = "1 chunk of the Zarr source has no file and reads as the fill value"


def test_a_missing_chunk_is_told(tmp_path: Path) -> None:
    """The format has it that a chunk that isn't there is full of the fill value: whoever lost it reads zeros."""
    for name, how in (("whole", {}), ("cut", {}), ("shards", {"shards": (4,), "chunks": (2,)})):
        path = tmp_path / f"{name}.zarr"
        zarr.create_array(path, data=np.arange(1, 9), **{"chunks": (4,), **how})
        if name != "whole":
            (path / "c/1").unlink()
        manifest = bigconv.convert(path, tmp_path / f"{name}.h5", workers=0)
        assert manifest.source.get("chunks_missing") == (None if name == "whole" else 1)
        assert bigconv.open(tmp_path / f"{name}.h5")[:][name].tolist() == [
            *range(1, 5),
            *(range(5, 9) if name == "whole" else [0] * 4),
        ]
        for known in (subject([path]), subject([tmp_path / f"{name}.h5"])):
            told = [warning.problem for warning in known.warnings() if warning.topic == "gaps"]
            assert told == ([] if name == "whole" else [NO_FILE])
