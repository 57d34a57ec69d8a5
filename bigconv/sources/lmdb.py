"""LMDB files that bigconv didn't write: a record is a row, in the order of the keys.

The first values tell what they all are: image files become `image` (decoded, or as they are with `--keep-encoded`),
`.npy` files `array`, anything else `value`, bytes as they are. The key is kept as `key`: `text` if all keys are
UTF-8, else bytes. Keys such as `__len__` are passed over: they say something of the rows, and are none. Pickles are
refused.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import decode
from bigconv.block import Block, Index
from bigconv.errors import InputError
from bigconv.schema import Field, Schema
from bigconv.sources import npy
from bigconv.sources.base import Reject, Span
from bigconv.sources.filelist import FileList
from bigconv.sources.lmdb_tree import Tree
from bigconv.sources.rowwise import Row, assembled, sized_spans
from bigconv.sources.tar_members import MAKERS

LOOK_AT = 16  # values that tell what they all are
HEAD_BYTES = 16 << 10  # 16 KiB: where most image headers end
MAX_VALUE = 1 << 30  # 1 GiB: as much as one image file may have
DATA = "data.mdb"


@dataclass(frozen=True, eq=False)
class ForeignLmdb:
    """Records of one or many LMDB environments, one after another.

    `keys`: all keys, joined; `ends`: int64 `[rows]`, where each one ends; `at`, `sizes`: int64 `[rows]`, where each
    value lies in its file; `first`: int64 `[files + 1]`, the first row of each.
    """

    name: ClassVar[str] = "lmdb"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("keep_encoded",)
    hints: ClassVar[tuple[str, ...]] = ("sizes_matter",)

    paths: tuple[str, ...]
    files: FileList
    keys: bytes
    ends: Index
    at: Index
    sizes: Index
    first: Index
    passed_over: int
    schema: Schema

    @classmethod
    def find(cls, paths: Sequence[Path], *, keep_encoded: bool = False, sizes_matter: bool = True) -> ForeignLmdb:
        """List all keys, and look at values as far as the fields depend on them. Raises `InputError`."""
        data = [path / DATA if path.is_dir() else path for path in paths]
        odd = next((a for a, b in zip(paths, data, strict=True) if not b.is_file()), None)
        if odd is not None:
            raise InputError(f"{odd}: not an LMDB environment: a folder with {DATA} in it, or such a file")
        by_name, by_data = FileList.named(paths), FileList.named(data)
        files = FileList("", by_name.names, by_name.ends, by_data.sizes, by_data.mtimes)
        keys, lengths, at, sizes, first, passed_over = bytearray(), array("q"), array("q"), array("q"), [0], 0
        for path, shown in zip(data, paths, strict=True):
            for entry in Tree(os.fspath(path), str(shown)).walk():
                if entry.key.startswith(b"__") and entry.key.endswith(b"__"):
                    passed_over += 1
                    continue
                keys += entry.key
                lengths.append(len(entry.key))
                at.append(entry.at)
                sizes.append(entry.size)
            first.append(len(at))
        if not len(at):
            raise InputError(f"{paths[0]}: no records in it")
        source = cls(
            tuple(map(os.fspath, data)),
            files,
            bytes(keys),
            np.cumsum(np.array(lengths, np.int64)),
            np.array(at, np.int64),
            np.array(sizes, np.int64),
            np.array(first, np.int64),
            passed_over,
            Schema((Field("unknown", "uint8"),)),
        )
        value, key = source._value_field(keep_encoded, sizes_matter), source._key_field()
        return replace(source, schema=Schema((value, key)))

    @property
    def inputs(self) -> int:
        return len(self.at)

    def plan(self) -> Sequence[Span]:
        fixed = sum(f.row_bytes for f in self.schema if not f.ragged)
        return sized_spans(np.minimum(self.sizes, MAX_VALUE) + fixed, self.first.tolist())

    def read(self, span: Span) -> Iterator[Block | Reject]:
        start = span.start
        while start < span.stop:
            number, _ = self._place(start)
            stop = min(span.stop, int(self.first[number + 1]))
            with self._opened(number) as file:
                row = partial(self._row, file.fileno())
                yield from assembled(self.schema, range(start, stop), row, self._place, self.files, self._told)
            start = stop

    def _row(self, fd: int, i: int) -> Row:
        field, key = self.schema
        value = self._bytes(fd, i)
        if field.kind == "array" and value[:6] != b"\x93NUMPY":
            raise InputError("its value is no .npy file, as the first ones are")
        return {field.name: MAKERS[field.kind](value, field), key.name: np.frombuffer(self._key(i), np.uint8)}

    def _bytes(self, fd: int, i: int, most: int = MAX_VALUE) -> bytes:
        size, at = int(self.sizes[i]), int(self.at[i])
        if size > MAX_VALUE:
            raise InputError(f"its value has {size} bytes, more than the {MAX_VALUE} allowed")
        value = os.pread(fd, min(size, most), at)
        if len(value) != min(size, most):
            raise InputError("its value is cut short: the file has changed")
        return value

    def _opened(self, number: int) -> io.FileIO:
        name = self.files.name(number)
        try:
            file = open(self.paths[number], "rb", buffering=0)  # noqa: SIM115  the caller closes it
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}") from error
        info = os.fstat(file.fileno())
        if (info.st_size, info.st_mtime_ns) != (self.files.sizes[number], self.files.mtimes[number]):
            file.close()
            raise InputError(f"{name}: the file has changed since it was listed")
        return file

    def _key(self, i: int) -> bytes:
        return self.keys[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])]

    def _place(self, i: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.first, i, "right")) - 1
        return number, i - int(self.first[number])

    def _told(self, i: int, why: str) -> str:
        return f"key {self._key(i)!r:.80}: {why}"

    def _key_field(self) -> Field:
        try:
            for i in range(len(self.ends)):
                self._key(i).decode()
        except UnicodeDecodeError:
            return Field("key", "uint8", (None,), kind="bytes")
        return Field("key", "uint8", (None,), kind="text")

    def _value_field(self, keep_encoded: bool, sizes_matter: bool) -> Field:
        """What the first values are, and their common size where they have one. Raises `InputError`."""
        name = self.files.name(0)
        looks = set()
        with self._opened(0) as file:
            for i in range(min(LOOK_AT, int(self.first[1]))):
                looks.add(_look(self._bytes(file.fileno(), i)))
                if "pickle" in looks:
                    raise InputError(
                        f"{name}: the value of key {self._key(i)!r:.80} is a pickle, which could run any code and is "
                        "never read.\nWrite its values as .npy files (np.save) or image files, or as plain bytes"
                    )
        what = looks.pop() if len(looks) == 1 else "bytes"
        if what == "image":
            if keep_encoded:
                return Field("image", "uint8", (None,), kind="encoded")
            size = self._size_of_images() if sizes_matter else None
            return Field("image", "uint8", (*(size or (None, None)), 3), kind="image", layout="hwc")
        if what == "array":
            return self._array_field()
        return Field("value", "uint8", (None,), kind="bytes")

    def _size_of_images(self) -> tuple[int, int] | None:
        """Height and width if all have the same; those that can't be read have none."""
        seen: set[tuple[int, int]] = set()
        for fd, i in self._each():
            for most in (HEAD_BYTES, MAX_VALUE):
                try:
                    seen.add(decode.probe(self._bytes(fd, i, most)))
                    break
                except InputError:
                    continue  # the header is longer, or the value becomes a reject when it is read
            if len(seen) > 1:
                return None
        return seen.pop() if seen else None

    def _array_field(self) -> Field:
        """The first array says dtype and axes; extents that differ vary."""
        dtype, shape = "", None
        for fd, i in self._each():
            try:
                head = npy.read_header(io.BytesIO(self._bytes(fd, i, HEAD_BYTES)), "array")
            except InputError:
                continue  # becomes a reject when it is read
            if shape is None:
                dtype, shape = head[0], list[int | None](head[1])
            elif len(shape) == len(head[1]):
                shape = [a if a == b else None for a, b in zip(shape, head[1], strict=True)]
        if shape is None:
            raise InputError(f"{self.files.name(0)}: none of its values is an array that can be read")
        return npy.field_of("array", dtype, shape, self.files.name(0))

    def _each(self) -> Iterator[tuple[int, int]]:
        """Open files with each row in them."""
        for number in range(len(self.paths)):
            with self._opened(number) as file:
                for i in range(int(self.first[number]), int(self.first[number + 1])):
                    yield file.fileno(), i

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.paths),
            "records": self.inputs,
            "passed_over": self.passed_over,
        }


def _look(value: bytes) -> str:
    """What a value is: image | array | pickle | bytes."""
    if value[:6] == b"\x93NUMPY":
        return "array"
    if value[:1] == b"\x80" and value[1:2] in (b"\2", b"\3", b"\4", b"\5") and value[-1:] == b".":
        return "pickle"
    try:
        decode.probe(value)
    except InputError:
        return "bytes"
    return "image"
