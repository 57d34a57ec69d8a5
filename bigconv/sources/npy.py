"""`.npy` and `.npz`: headers read without unpickling, data mapped where it can be."""

from __future__ import annotations

import ast
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bigconv.block import Array, Column, Ragged
from bigconv.digest import little_endian
from bigconv.errors import InputError, SchemaError
from bigconv.schema import Field
from bigconv.sources.base import SPAN_BYTES

MAX_HEADER = 1 << 20  # 1 MiB: numpy's own headers have a few hundred bytes


@dataclass(frozen=True)
class ArrayFile:
    """One array in a file: where its bytes start and how they are to be read."""

    path: str
    member: str | None  # of an .npz archive
    dtype: str  # numpy's descr, with byte order
    shape: tuple[int, ...]
    fortran: bool
    offset: int | None  # byte in the file at which the data starts; None for a compressed member

    @property
    def where(self) -> str:
        return self.path if self.member is None else f"{self.path}[{self.member}]"

    def open(self) -> Array:
        """The whole array, mapped where it can be, else decompressed."""
        dtype = np.dtype(self.dtype)
        order: Any = "F" if self.fortran else "C"
        if self.offset is None:
            return self._decompress(dtype)
        if 0 in self.shape or dtype.itemsize == 0:
            return np.empty(self.shape, dtype)
        try:
            return np.memmap(self.path, dtype, "r", self.offset, self.shape, order)
        except (ValueError, OSError) as error:
            raise InputError(f"{self.where}: cut short: its header promises {self.shape} of {dtype}") from error

    def _decompress(self, dtype: np.dtype[Any]) -> Array:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as stream:
                read_header(stream, self.where)
                out = np.empty(int(np.prod(self.shape)), dtype)
                view = out.view(np.uint8).reshape(-1).data
                while len(view):
                    got = stream.read(min(len(view), SPAN_BYTES))
                    if not got:
                        raise InputError(f"{self.where}: cut short: its header promises {self.shape} of {dtype}")
                    view[: len(got)] = got
                    view = view[len(got) :]
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise InputError(f"{self.where}: {error}") from error
        return out.reshape(self.shape, order="F" if self.fortran else "C")


def read_header(stream: IO[bytes], where: str) -> tuple[str, tuple[int, ...], bool, int]:
    """Parse a `.npy` header (numpy.lib.format): descr, shape, Fortran order, its bytes. Never unpickles.

    Raises `InputError` for what is no array file, and for object arrays.
    """
    head = stream.read(8)
    if head[:6] != b"\x93NUMPY" or len(head) < 8 or head[6] not in (1, 2, 3):
        raise InputError(f"{where}: not a .npy array")
    wide = head[6] > 1
    size = int.from_bytes(stream.read(4 if wide else 2), "little")
    if size > MAX_HEADER:
        raise InputError(f"{where}: a header of {size} bytes: not read")
    text = stream.read(size)
    try:
        fields = ast.literal_eval(text.decode("utf-8" if head[6] == 3 else "latin1"))
        descr, shape, fortran = fields["descr"], fields["shape"], fields["fortran_order"]
        dtype = np.dtype(descr)
        if not isinstance(shape, tuple) or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"shape {shape}")
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{where}: damaged header: {str(error)[:120]}") from error
    if dtype.hasobject:
        raise InputError(
            f"{where}: an object array holds pickles, which could run any code and are never read.\n"
            "Save it with a plain dtype: np.save(file, np.stack(list(array)))"
        )
    if dtype.names is not None:
        raise InputError(f"{where}: a structured array; save its columns as arrays of their own")
    return dtype.str, shape, bool(fortran), 8 + (4 if wide else 2) + size


def array_files(path: Path) -> list[ArrayFile]:
    """The arrays in a `.npy` or `.npz` file, by their headers alone."""
    where = str(path)
    try:
        if path.suffix.lower() != ".npz":
            with open(path, "rb") as stream:
                descr, shape, fortran, offset = read_header(stream, where)
            return [ArrayFile(where, None, descr, shape, fortran, offset)]
        found = []
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(set(names)) != len(names):
                raise InputError(f"{where}: two members have the same name")
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                member = info.filename[:-4]
                with archive.open(info) as stream:
                    descr, shape, fortran, head = read_header(stream, f"{where}[{member}]")
                at: int | None = None
                if info.compress_type == zipfile.ZIP_STORED:
                    at = _stored_at(path, info.header_offset) + head
                found.append(ArrayFile(where, member, descr, shape, fortran, at))
        if not found:
            raise InputError(f"{where}: no arrays in the archive")
        return sorted(found, key=lambda a: (a.member or "").encode())
    except (zipfile.BadZipFile, struct.error) as error:
        raise InputError(f"{where}: not a .npz archive: {error}") from error
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or error}") from error


def _stored_at(path: Path, header: int) -> int:
    """Byte at which a stored member's data starts: behind its local header (APPNOTE.TXT, 4.3.7)."""
    with open(path, "rb") as file:
        file.seek(header)
        local = file.read(30)
    if local[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no local header where the directory says")
    name, extra = struct.unpack("<HH", local[26:30])
    return int(header + 30 + name + extra)


def column_of(array: Array, field: Field) -> Column:
    """Rows of a numpy array as a column: strings become UTF-8, everything else little-endian."""
    if array.dtype.kind in "US":
        text = [s if isinstance(s, bytes) else s.encode() for s in array.tolist()]
        return Ragged.of([np.frombuffer(t, np.uint8) for t in text], field)
    return little_endian(array)


def field_of(name: str, dtype: str, shape: Sequence[int | None], where: str) -> Field:
    """The field that arrays of a numpy dtype make. Raises `InputError`."""
    try:
        if np.dtype(dtype).kind in "US":
            if shape:
                raise InputError(f"{where}: strings in more than one dimension can't be stored")
            return Field(name, "uint8", (None,), "text")
        return Field(name, np.dtype(dtype).newbyteorder("=").name, tuple(shape))
    except SchemaError as error:
        raise InputError(f"{where}: {error}") from error
