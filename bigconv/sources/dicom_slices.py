"""What one DICOM file holds: the planes its header tells of, and their pixels."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigconv import decode, registry
from bigconv.block import Array
from bigconv.decode import DecodeError
from bigconv.errors import InputError
from bigconv.sources.dicom_geometry import Plane
from bigconv.sources.filerows import MAX_ROW_BYTES, reason
from bigconv.sources.rescale import Rescale

DEFLATED = "1.2.840.10008.1.2.1.99"  # pydicom unpacks all of such a file at once, however much it becomes
JPEG_SYNTAX = "1.2.840.10008.1.2.4."  # JPEG, JPEG-LS and JPEG 2000 (PS3.6, A)
MAX_FRAMES = 1 << 16
SIZ = b"\xff\x4f\xff\x51"  # a JPEG 2000 codestream starts so (ISO 15444-1, A.5.1); its size is in what follows
READ = (  # tags of a header; all others are passed over
    *("SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)


@dataclass(frozen=True)
class Slices:
    """The header of one file. `series`: UID of the series that it is a slice of, or None for one by itself."""

    series: str | None
    planes: tuple[Plane, ...]
    scales: tuple[Rescale, ...]  # one a plane


@functools.cache
def pydicom() -> Any:
    """The library, told not to warn of values that are against the standard. Raises `MissingPackage`."""
    try:
        library = importlib.import_module("pydicom")
        importlib.import_module("pydicom.pixels")
    except ModuleNotFoundError as error:
        raise registry.missing("pydicom", "dicom", "dicom") from error
    library.config.settings.reading_validation_mode = library.config.IGNORE
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
    return library


def header(path: str, file: int) -> Slices:
    """What the file `file` of a source tells. Raises `InputError`, `OSError`."""
    try:
        found = _dataset(path, pixels=False)
        return _slices(found, file)
    except (InputError, OSError):
        raise
    except Exception as error:  # pydicom raises whatever the damage leads to
        raise _damaged(path, error) from error


def pixels(path: str, slices: Slices) -> Array:
    """Stored numbers, `[frames, rows, columns]`, of a file with this header. Raises `InputError`, `OSError`."""
    try:
        found = _dataset(path, pixels=True)
        _check_frames(found)
        stored: Array = found.pixel_array
    except (InputError, OSError):
        raise
    except Exception as error:  # as do its decoders
        raise _damaged(path, error) from error
    shape = (len(slices.planes), *slices.planes[0].shape)
    if stored.size != int(np.prod(shape)):
        raise DecodeError(f"pixels of shape {list(stored.shape)} instead of {list(shape)}")
    return stored.reshape(shape)


def _dataset(path: str, pixels: bool) -> Any:
    library = pydicom()
    meta = library.filereader.read_file_meta_info(path)
    if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
        raise InputError(
            "a deflated data set, which could unpack to anything: refused. Inflate it with dcmtk's dcmconv"
        )
    if pixels:
        return library.dcmread(path)
    return library.dcmread(path, stop_before_pixels=True, specific_tags=list(READ))


def _damaged(path: str, error: Exception) -> InputError:
    with open(path, "rb") as file:
        if not file.read(1):
            return DecodeError("an empty file")
    if isinstance(error, MemoryError):
        return DecodeError("does not fit in memory")
    if type(error).__name__ == "InvalidDicomError":
        return DecodeError("no DICOM file: DICM is missing at byte 128")
    return DecodeError(f"can't be decoded: {reason(error, path)}")


def _slices(found: Any, file: int) -> Slices:
    samples, colours = int(found.get("SamplesPerPixel", 1)), str(found.get("PhotometricInterpretation", "MONOCHROME2"))
    if "Rows" not in found or "Columns" not in found or "BitsAllocated" not in found:
        raise InputError("holds no image")
    if samples != 1 or not colours.startswith("MONOCHROME"):
        raise InputError(f"colour ({colours}) has no place in a volume of numbers")
    if "ModalityLUTSequence" in found:
        raise InputError("its values are in a lookup table (Modality LUT), which is not applied")
    shape, frames = (int(found.Rows), int(found.Columns)), int(found.get("NumberOfFrames", None) or 1)
    bits = int(found.BitsAllocated)
    if bits not in (8, 16, 32):
        raise InputError(f"pixels of {bits} bits")
    if min(*shape, frames) < 1 or frames > MAX_FRAMES or shape[0] * shape[1] * frames * bits // 8 > MAX_ROW_BYTES:
        raise DecodeError(f"{frames} frames of {shape[0]}x{shape[1]} pixels are none, or more than allowed")
    stored = f"{'int' if int(found.get('PixelRepresentation', 0)) else 'uint'}{bits}"
    used = min(bits, max(1, int(found.get("BitsStored", bits))))
    shared = _first(found, "SharedFunctionalGroupsSequence")
    each = found.get("PerFrameFunctionalGroupsSequence") or ()
    planes, scales = [], []
    for frame in range(frames):
        groups = [g for g in (each[frame] if frame < len(each) else None, shared) if g is not None]
        planes.append(_plane(found, groups, file, frame, shape))
        values = _in(groups, "PixelValueTransformationSequence") or found
        slope, intercept = (
            float(values.get("RescaleSlope", None) or 1),
            float(values.get("RescaleIntercept", None) or 0),
        )
        if not (np.isfinite(slope) and np.isfinite(intercept)):
            raise InputError(f"a rescale slope of {slope} and an intercept of {intercept}")
        scales.append(Rescale(stored, used, slope, intercept))
    one_slice = frames == 1 and planes[0].position is not None and "SeriesInstanceUID" in found
    return Slices(str(found.SeriesInstanceUID) if one_slice else None, tuple(planes), tuple(scales))


def _plane(found: Any, groups: list[Any], file: int, frame: int, shape: tuple[int, int]) -> Plane:
    measures = _in(groups, "PixelMeasuresSequence") or found
    position = _numbers(_in(groups, "PlanePositionSequence") or found, "ImagePositionPatient", 3)
    direction = _numbers(_in(groups, "PlaneOrientationSequence") or found, "ImageOrientationPatient", 6)
    spacing = _numbers(measures, "PixelSpacing", 2)
    thickness = _numbers(measures, "SpacingBetweenSlices", 1) or _numbers(measures, "SliceThickness", 1)
    placed = position is not None and direction is not None
    return Plane(
        file,
        frame,
        shape,
        None if spacing is None else (spacing[0], spacing[1]),
        position if placed else None,
        direction[:3] if placed and direction else None,
        direction[3:] if placed and direction else None,
        abs(thickness[0]) if thickness else None,
    )


def _first(found: Any, name: str) -> Any:
    sequence = found.get(name)
    return sequence[0] if sequence else None


def _in(groups: list[Any], name: str) -> Any:
    """The macro of that name of a frame: its own, or the one that all share."""
    return next((macro for group in groups if (macro := _first(group, name)) is not None), None)


def _numbers(found: Any, name: str, n: int) -> tuple[float, ...] | None:
    value = found.get(name)
    if value is None or value == "":
        return None
    several = tuple(float(x) for x in (value if n > 1 else [value]))
    if len(several) != n or not np.isfinite(several).all():
        raise InputError(f"{name} is {value}")
    return several


def _check_frames(found: Any) -> None:
    """Raise `DecodeError` where a compressed frame has another size than the header tells: decoders believe it."""
    syntax = found.file_meta.TransferSyntaxUID
    if not (syntax.is_encapsulated and str(syntax).startswith(JPEG_SYNTAX)):
        return
    for raw in _frames(found):
        start = raw[: 4 << 10].find(SIZ)
        if start >= 0:
            right, bottom, left, top = (int.from_bytes(raw[start + at : start + at + 4]) for at in (8, 12, 16, 20))
            size = (bottom - top, right - left)
        elif raw.startswith(b"\xff\xd8\xff"):
            size = decode.probe(raw)
        else:
            raise DecodeError("a compressed frame that is neither JPEG nor JPEG 2000")
        if size != (found.Rows, found.Columns):
            raise DecodeError(f"a frame of {size[0]}x{size[1]} pixels instead of {found.Rows}x{found.Columns}")


def _frames(found: Any) -> Iterator[bytes]:
    encaps = importlib.import_module("pydicom.encaps")
    frames: Iterator[bytes] = encaps.generate_frames(
        found.PixelData, number_of_frames=int(found.get("NumberOfFrames", None) or 1)
    )
    return frames
