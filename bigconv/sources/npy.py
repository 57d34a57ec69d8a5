"""`.npy` and `.npz`: headers read without unpickling, data mapped where it can be."""

from __future__ import annotations

import ast
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bigconv.block import Array, Column, Ragged
from bigconv.digest import little_endian
from bigconv.errors import InputError, SchemaError
from bigconv.schema import Field, dtype_name
from bigconv.sources.base import SPAN_BYTES

MAX_HEADER = 1 << 20  # 1 MiB: numpy's own headers have a few hundred bytes
MAX_BYTES = (1 << 63) - 1  # what numpy can count, and it counts an extent of 0 as 1
MAX_AXES = 64  # numpy's own limit
MAX_RATIO = 1100  # deflate can't do better than 1,032 to 1: more is a lie about the size


@dataclass(frozen=True)
class ArrayFile:
    """One array in a file: where its bytes start and how they are to be read."""

    path: str
    member: str | None  # of an .npz archive
    dtype: str  # numpy's descr, with byte order
    shape: tuple[int, ...]
    fortran: bool
    offset: int | None  # byte in the file at which the data starts; None for a compressed member
    stored: tuple[int, int, int] | None = None  # first byte, bytes and CRC-32 of a member that isn't compressed

    @property
    def where(self) -> str:
        return self.path if self.member is None else f"{self.path}[{self.member}]"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def open(self) -> Array:
        """The whole array, mapped where it can be, else decompressed."""
        dtype = np.dtype(self.dtype)
        order: Any = "F" if self.fortran else "C"
        if self.offset is None:
            return self._decompress(dtype)
        if self.nbytes == 0:
            return np.empty(self.shape, dtype)
        if self.stored is not None:
            self._check_stored(*self.stored)
        return self._map(dtype, self.offset, self.shape, order)

    def _map(self, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Any = "C") -> Array:
        try:
            return np.memmap(self.path, dtype, "r", offset, shape, order)
        except ValueError as error:
            raise self._short() from error
        except OSError as error:
            raise InputError(f"{self.where}: {error.strerror or error}") from error

    def _short(self) -> InputError:
        return InputError(
            f"{self.where}: cut short: its header promises {self.shape} of {np.dtype(self.dtype)}, {self.nbytes} bytes"
        )

    def _check_stored(self, start: int, nbytes: int, crc: int) -> None:
        member = self._map(np.dtype(np.uint8), start, (nbytes,))
        found = 0
        for at in range(0, nbytes, SPAN_BYTES):
            found = zlib.crc32(member[at : at + SPAN_BYTES].data, found)
        if found != crc:
            raise InputError(f"{self.where}: damaged: its CRC-32 does not fit")

    def _decompress(self, dtype: np.dtype[Any]) -> Array:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as stream:
                read_header(stream, self.where)
                out = np.empty(math.prod(self.shape), dtype)
                view = out.view(np.uint8).reshape(-1).data if self.nbytes else memoryview(b"")
                while len(view):
                    got = stream.read(min(len(view), SPAN_BYTES))
                    if not got:
                        raise self._short()
                    view[: len(got)] = got
                    view = view[len(got) :]
                stream.read()  # to the end, where the CRC-32 is checked
        except MemoryError as error:
            raise InputError(f"{self.where}: {self.nbytes} bytes don't fit in memory") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise InputError(f"{self.where}: damaged: {error}") from error
        out.flags.writeable = False  # as a map is: the rows of a block are views of it
        return out.reshape(self.shape, order="F" if self.fortran else "C")


def read_header(stream: IO[bytes], where: str) -> tuple[str, tuple[int, ...], bool, int]:
    """Parse a `.npy` header (numpy.lib.format): descr, shape, Fortran order, its bytes. Never unpickles.

    Raises `InputError` for what is no array file, and for object arrays.
    """
    head = stream.read(8)
    if head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise InputError(f"{where}: not a .npy array")
    wide = head[6] > 1
    size = int.from_bytes(stream.read(4 if wide else 2), "little")
    if size > MAX_HEADER:
        raise InputError(f"{where}: a header of {size} bytes: not read")
    text = stream.read(size)
    try:
        fields = ast.literal_eval(text.decode("utf-8" if head[6] == 3 else "latin1"))
        descr, shape, fortran = fields["descr"], fields["shape"], fields["fortran_order"]
        if descr is None or not isinstance(fortran, bool) or len(fields) != 3:  # numpy would take None for float64
            raise ValueError(f"{fields}")
        dtype = np.dtype(descr)
        if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"shape {shape}")
        if len(shape) > MAX_AXES or math.prod(max(n, 1) for n in shape) * max(dtype.itemsize, 1) > MAX_BYTES:
            raise ValueError(f"no array can have the shape {shape}")
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{where}: damaged header: {str(error)[:120]}") from error
    if dtype.hasobject:
        raise InputError(
            f"{where}: an object array holds pickles, which could run any code and are never read.\n"
            "Save it with a plain dtype: np.save(file, np.stack(list(array)))"
        )
    if dtype.names is not None:
        raise InputError(f"{where}: a structured array; save its columns as arrays of their own")
    return dtype.str, shape, fortran, 8 + (4 if wide else 2) + size


def is_sparse(path: str | Path) -> bool:
    """Whether `scipy.sparse.save_npz` made it: its members say so."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"format.npy", "shape.npy", "data.npy"} <= set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def array_files(path: Path) -> list[ArrayFile]:
    """The arrays in a `.npy` or `.npz` file, by their headers alone. Raises `InputError`, also when it is cut short."""
    where = str(path)
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                found = _members(archive, path)
        else:
            with open(path, "rb") as stream:
                descr, shape, fortran, offset = read_header(stream, where)
                found = [ArrayFile(where, None, descr, shape, fortran, offset)]
                if offset + found[0].nbytes > os.fstat(stream.fileno()).st_size:
                    raise found[0]._short()
    except (zipfile.BadZipFile, struct.error, zlib.error, NotImplementedError, EOFError) as error:
        raise InputError(f"{where}: not a .npz archive, or a damaged one: {error}") from error
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or error}") from error
    if not found:
        raise InputError(f"{where}: no arrays in the archive")
    return sorted(found, key=lambda a: (a.member or "").encode("utf-8", "surrogateescape"))


def _members(archive: zipfile.ZipFile, path: Path) -> list[ArrayFile]:
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if len({info.filename for info in infos}) != len(infos):
        raise InputError(f"{path}: two members have the same name")
    found = []
    for info in infos:
        member = info.filename[:-4]
        where = f"{path}[{member}]"
        if info.flag_bits & 1:
            raise InputError(f"{where}: encrypted; unpack it first")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{where}: compressed in a way that numpy doesn't write; save it with np.savez_compressed")
        with archive.open(info) as stream:
            descr, shape, fortran, head = read_header(stream, where)
        at: int | None = None
        stored: tuple[int, int, int] | None = None
        if info.compress_type == zipfile.ZIP_STORED:
            start = _stored_at(path, info.header_offset)
            at, stored = start + head, (start, info.file_size, info.CRC)
        file = ArrayFile(str(path), member, descr, shape, fortran, at, stored)
        if head + file.nbytes > info.file_size or info.file_size > max(1, info.compress_size) * MAX_RATIO:
            raise file._short()
        found.append(file)
    return found


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
        text = [utf8(s, f"field {field.name}, row {i}") for i, s in enumerate(array.tolist())]
        return Ragged.of([np.frombuffer(t, np.uint8) for t in text], field)
    return little_endian(array)


def utf8(text: str | bytes, where: str) -> bytes:
    """One string of a numpy array as it is stored. Raises `InputError`."""
    try:
        return text if isinstance(text, bytes) else text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {text!r:.80} is no text that UTF-8 can hold") from error


def field_of(name: str, dtype: str, shape: Sequence[int | None], where: str) -> Field:
    """The field that arrays of a numpy dtype make. Raises `InputError`."""
    try:
        if np.dtype(dtype).kind in "US":
            if shape:
                raise InputError(f"{where}: strings in more than one dimension can't be stored")
            return Field(name, "uint8", (None,), "text")
        return Field(name, dtype_name(dtype, f"field {name}"), tuple(shape))
    except SchemaError as error:
        raise InputError(f"{where}: {error}") from error
