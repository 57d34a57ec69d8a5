"""A NIfTI-1 or NIfTI-2 file: its header by nibabel, its voxels in pieces."""

from __future__ import annotations

import gzip
import importlib
import math
import os
import zlib
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np

from bigconv import registry
from bigconv.block import Array
from bigconv.decode import DecodeError
from bigconv.errors import InputError
from bigconv.schema import DTYPES
from bigconv.sources.filerows import MAX_ROW_BYTES, reason
from bigconv.sources.rescale import Rescale

MAX_OFFSET = 16 << 20  # 16 MiB: of extensions before the voxels, which are skipped
PACKED_AT_MOST = 1032  # bytes that one of deflate can stand for
PIECE_BYTES = 1 << 20  # 1 MiB read at once


@dataclass(frozen=True)
class Head:
    """What a header tells. `shape`: of the file; `offset`: bytes before the voxels."""

    shape: tuple[int, ...]
    stored: str  # numpy's name of the dtype, with its byte order
    offset: int
    scale: Rescale
    affine: tuple[tuple[float, ...], ...]

    def row_shape(self, axis: int | None) -> tuple[int, ...]:
        return self.shape if axis is None else tuple(np.delete(self.shape, axis).tolist())


def library() -> Any:
    try:
        return importlib.import_module("nibabel")
    except ModuleNotFoundError as error:
        raise registry.missing("nibabel", "nifti", "nifti") from error


def _open(path: str) -> IO[bytes]:
    """The file unpacked; the caller closes it."""
    if path.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return open(path, "rb")


def head_of(path: str) -> Head:
    """Raises `DecodeError`, `OSError`."""
    try:
        with _open(path) as file:
            return _told(file.read(540), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DecodeError(f"can't be unpacked: {reason(error, path)}") from error


def _told(raw: bytes, path: str) -> Head:
    nibabel = library()
    if not raw:
        raise DecodeError("an empty file")
    size = raw[:4]
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    number = next((n for n in kinds if size in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    if number is None or len(raw) < number:
        raise DecodeError("no NIfTI header" if number is None else "cut short: ends within its header")
    try:
        header = kinds[number](raw[:number], check=False)
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        offset = int(header["vox_offset"])
        affine = np.asarray(header.get_best_affine(), np.float64)
        magic = bytes(header["magic"])
    except (nibabel.spatialimages.HeaderDataError, ValueError, OverflowError, KeyError, np.linalg.LinAlgError) as error:
        raise DecodeError(f"a damaged header: {reason(error, path)}") from error
    if not magic.startswith((b"n+1", b"n+2")):
        raise DecodeError("no NIfTI header, or one without its voxels (.hdr)")
    if not shape or any(n < 1 for n in shape):
        raise DecodeError(f"a volume of shape {list(shape)}")
    if not number <= offset <= MAX_OFFSET:
        raise DecodeError(f"voxels at byte {offset}, behind more than {MAX_OFFSET} bytes of extensions or none")
    name = dtype.newbyteorder("=").name
    if dtype.names is not None or name not in DTYPES:
        raise InputError(f"voxels of type {dtype if dtype.names is None else 'RGB'} can't be stored")
    scale = Rescale(name, dtype.itemsize * 8, 1.0 if slope is None else float(slope), float(intercept or 0.0))
    return Head(shape, dtype.str, offset, scale, tuple(map(tuple, affine.tolist())))


def fits(head: Head, path: str, axis: int | None = None) -> Head:
    """Raise `DecodeError` for a header that tells of more voxels than the file can have, or than a row may."""
    itemsize = np.dtype(head.stored).itemsize
    there, total = os.stat(path).st_size, math.prod(head.shape) * itemsize
    if path.lower().endswith(".gz"):
        there *= PACKED_AT_MOST
    if head.offset + total > there:
        raise DecodeError(f"cut short: no more than {max(0, there - head.offset)} of {total} bytes of voxels")
    axes = len(head.shape)
    nbytes = math.prod(head.row_shape(axis if axis is not None and -axes <= axis < axes else None)) * itemsize
    if nbytes > MAX_ROW_BYTES:
        raise DecodeError(f"{nbytes} bytes of voxels in a row are more than the {MAX_ROW_BYTES} allowed; try --axis")
    return head


class Voxels:
    """Rows of files one after another. A compressed file is unpacked once if its rows are asked for in order."""

    def __init__(self, axis: int | None, dtype: str) -> None:
        self._axis, self._dtype = axis, dtype
        self._path = ""
        self._head: Head | None = None
        self._file: IO[bytes] | None = None
        self._at = 0  # the row that the file stands before
        self._whole: Array | None = None  # a compressed volume whose rows don't lie one after another

    def __enter__(self) -> Voxels:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path, self._file, self._whole = "", None, None

    def row(self, path: str, number: int) -> tuple[Head, Array]:
        """Header and values. Raises `InputError`, `OSError`."""
        try:
            if path != self._path:
                self._close()
                self._head, self._path = fits(head_of(path), path, self._axis), path
            assert self._head is not None
            return self._head, self._values(self._head, number)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._close()
            raise DecodeError(f"cut short or damaged: {reason(error, path)}") from error
        except MemoryError as error:
            self._close()
            raise DecodeError("does not fit in memory") from error
        except (InputError, OSError):
            self._close()
            raise

    def _values(self, head: Head, number: int) -> Array:
        dtype = np.dtype(head.stored)
        packed = self._path.lower().endswith(".gz")
        last = len(head.shape) - 1
        if self._axis is None:
            stored = self._read(head, 0, head.shape, last=True)
        elif self._axis == last:
            stored = self._read(head, number, head.shape[:-1], last=number + 1 == head.shape[-1])
        else:
            stored = np.take(self._all(head, packed), number, axis=self._axis)
        native = stored.astype(dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(head.scale.apply(native, self._dtype))

    def _all(self, head: Head, packed: bool) -> Array:
        """All voxels: mapped, or unpacked where they can't be."""
        if self._whole is None:
            if packed:
                self._whole = self._read(head, 0, head.shape, last=True)
            else:
                self._whole = np.memmap(self._path, head.stored, "r", head.offset, head.shape, order="F")
        return self._whole

    def _read(self, head: Head, number: int, shape: tuple[int, ...], last: bool) -> Array:
        """Row `number` of rows that lie one after another; behind the last one nothing may follow that is packed."""
        dtype = np.dtype(head.stored)
        nbytes = math.prod(shape) * dtype.itemsize
        if self._file is None or self._at > number:
            if self._file is not None:
                self._file.close()
            self._file, self._at = _open(self._path), 0
            self._file.seek(head.offset)
        if self._at < number:
            self._file.seek(head.offset + number * nbytes)
        raw = bytearray()
        while len(raw) < nbytes and (piece := self._file.read(min(PIECE_BYTES, nbytes - len(raw)))):
            raw += piece  # grows with what is really there, never with what the header claims
        if len(raw) < nbytes:
            raise DecodeError(f"cut short: {len(raw)} of {nbytes} bytes of voxels")
        self._at = number + 1
        if last and self._path.lower().endswith(".gz") and len(self._file.read(PIECE_BYTES)) == PIECE_BYTES:
            raise DecodeError("more voxels than its header tells of")  # read to the end, so that its CRC is checked
        return np.frombuffer(raw, dtype).reshape(shape, order="F")
