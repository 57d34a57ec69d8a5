"""WebDataset: tar files whose members are fields, grouped to samples by the names up to the first dot.

| members | become |
|---|---|
| `.jpg`, `.png`, `.webp` … | `image`, decoded as in a folder of images, or (`keep_encoded`) the file as it is |
| `.cls` | `label`, int64 |
| `.txt`, `.text` | `text` |
| `.json` | `json`, the text of it |
| `.npy` | `array` |
| any other, `.mp4` | its extension, `mp4`, bytes as they are |

A name with more dots, `0001.seg.png`, makes a field named after what stands before the last, `seg`, or, where two would
have that name, after all of it. Where most samples have two files that would make one field (`.jpg` and `.png`), each
is a field named by its extension. Links, devices and names that lead out of the archive are no members to read: their
samples are rejects.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from bigconv import decode, registry
from bigconv.block import Block, Index
from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.schema import Field, Schema, unknown
from bigconv.sources import npy
from bigconv.sources.base import SPAN_BYTES, Reject, Span
from bigconv.sources.filelist import FileList
from bigconv.sources.named import NamedFiles
from bigconv.sources.rowwise import Row, assembled, sized_spans
from bigconv.sources.tar_index import PROBLEMS, TarIndex
from bigconv.sources.tar_members import MAKERS, fields, kind, table

GAP_BYTES = 1 << 20  # 1 MiB between members is read along rather than sought over
LOOK_BYTES = 16 << 10  # 16 KiB: nearly all headers of images


@dataclass(frozen=True, eq=False)
class WebDataset:
    """Samples of one or many tars, in the order in which they begin.

    `at`, `sizes`: int64 `[samples, fields]`, where each member lies in its tar; size -1 where a sample has none.
    """

    name: ClassVar[str] = "webdataset"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("columns", "keep_encoded")
    hints: ClassVar[tuple[str, ...]] = ("sizes_matter",)

    tars: NamedFiles
    index: TarIndex
    schema: Schema
    at: Index
    sizes: Index

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        columns: Sequence[str] | None = None,
        keep_encoded: bool = False,
        sizes_matter: bool = True,
    ) -> WebDataset:
        """Read the headers of all tars, and of members what their shape depends on.

        `columns`: the fields to take; by default all that any sample has, and samples without one of them are rejects.
        `sizes_matter=False` looks into no image: sizes then vary. Raises `InputError`, `UsageError`.
        """
        tars = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "tar files")
        index = TarIndex.scan(tars)
        if not len(index.problem):
            why = "none of their members has a name such as 0001.jpg" if index.passed_over else "they are empty"
            raise InputError(f"{tars.name(0)}: no samples in {len(tars)} tar file(s): {why}")
        chosen = fields(index)
        if columns is not None:
            for name in columns:
                if name not in chosen:
                    raise UsageError(unknown("field", name, tuple(chosen)))
            chosen = {name: chosen[name] for name in dict.fromkeys(columns)}
        at, sizes, index = table(index, list(chosen.values()))
        finding = cls(tars, index, Schema((Field("unknown", "uint8"),)), at, sizes)
        made = []
        for number, (name, extensions) in enumerate(chosen.items()):
            what = kind(index.extensions[extensions[0]])
            try:
                made.append(finding._field(name, what, number, keep_encoded, sizes_matter))
            except SchemaError as error:
                raise InputError(f"{tars.name(0)}: {error}.\n--columns A,B,… names the fields to take") from error
        return replace(finding, schema=Schema(tuple(made)))

    @property
    def files(self) -> FileList:
        return self.tars.files

    @property
    def inputs(self) -> int:
        return len(self.sizes)

    def plan(self) -> Sequence[Span]:
        fixed = sum(f.row_bytes for f in self.schema if not f.ragged)
        return sized_spans(np.maximum(self.sizes, 0).sum(axis=1) + fixed, self.index.first.tolist())

    def read(self, span: Span) -> Iterator[Block | Reject]:
        start = span.start
        while start < span.stop:
            tar = self._tar(start)
            stop = min(span.stop, int(self.index.first[tar + 1]))
            with self._open(tar) as file:
                row = partial(self._row, _Pieces(file), stop)
                yield from assembled(self.schema, range(start, stop), row, self._place, self.files, self._told)
            start = stop

    def _tar(self, sample: int) -> int:
        return int(np.searchsorted(self.index.first, sample, "right")) - 1

    def _place(self, sample: int) -> tuple[int, int]:
        tar = self._tar(sample)
        return tar, sample - int(self.index.first[tar])

    def _told(self, sample: int, why: str) -> str:
        return f"{self.index.key(sample)}: {why}"

    def _open(self, tar: int) -> IO[bytes]:
        name = self.tars.name(tar)
        try:
            file = open(self.tars.paths[tar], "rb", buffering=0)  # noqa: SIM115  the caller closes it
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}") from error
        if os.fstat(file.fileno()).st_size != self.files.sizes[tar]:
            file.close()
            raise InputError(f"{name}: the file has changed since it was listed")
        return file

    def _row(self, pieces: _Pieces, stop: int, i: int) -> Row:
        if problem := int(self.index.problem[i]):
            raise InputError(PROBLEMS[problem])
        sizes = self.sizes[i].tolist()
        if -1 in sizes:
            missing = [f.name for f, size in zip(self.schema, sizes, strict=True) if size < 0]
            raise InputError(f"has no {', '.join(missing)}. --columns A,B,… names the fields to take")
        if not pieces.hold(self.at[i], self.sizes[i]):
            pieces.load(self.at[i:stop], self.sizes[i:stop])
        row = {}
        for f, at, size in zip(self.schema, self.at[i].tolist(), sizes, strict=True):
            row[f.name] = MAKERS[f.kind](pieces.get(at, size), f)
        return row

    def _field(self, name: str, what: str, number: int, keep_encoded: bool, sizes_matter: bool) -> Field:
        if what == "label":
            return Field(name, "int64", (), kind="label")
        if what == "image" and not keep_encoded:
            size = self._size_of_images(number) if sizes_matter else None
            return Field(name, "uint8", (*(size or (None, None)), 3), kind="image", layout="hwc")
        if what == "array":
            return self._array_field(name, number)
        return Field(name, "uint8", (None,), kind="encoded" if what == "image" else what)

    def _size_of_images(self, number: int) -> tuple[int, int] | None:
        """Height and width if all images have the same; those that can't be read have none."""
        seen: set[tuple[int, int]] = set()
        for head, whole in self._heads(number, LOOK_BYTES):
            try:
                seen.add(decode.probe(head))
            except InputError:
                try:
                    seen.add(decode.probe(whole()))
                except InputError:
                    continue  # becomes a reject when it is read
            if len(seen) > 1:
                return None
        return seen.pop() if seen else None

    def _array_field(self, name: str, number: int) -> Field:
        """The first array that can be read says dtype and axes; extents that differ vary."""
        dtype, shape = "", None
        known: dict[bytes, tuple[str, tuple[int, ...]] | None] = {}  # by header: most are the same
        for head, whole in self._heads(number, 128):
            if head not in known:
                try:
                    known[head] = npy.read_header(io.BytesIO(whole()), name)[:2]
                except InputError:
                    known[head] = None  # becomes a reject when it is read
                if len(known) > 4096:
                    known.clear()
                    continue
            if (found := known[head]) is None:
                continue
            if shape is None:
                dtype, shape = found[0], list[int | None](found[1])
            elif len(shape) == len(found[1]):
                shape = [a if a == b else None for a, b in zip(shape, found[1], strict=True)]
        if shape is None:
            raise InputError(f"{self.tars.name(0)}: no {name} in it is an array that can be read")
        return npy.field_of(name, dtype, shape, f"{self.tars.name(0)}: {name}")

    def _heads(self, number: int, nbytes: int) -> Iterator[tuple[bytes, Callable[[], bytes]]]:
        """The first bytes of the members of a field, each with what reads all of it."""
        for tar in range(len(self.tars)):
            first, stop = self.index.first[tar : tar + 2].tolist()
            with self._open(tar) as file:
                for at, size in zip(
                    self.at[first:stop, number].tolist(), self.sizes[first:stop, number].tolist(), strict=True
                ):
                    if size >= 0:
                        yield _at(file, at, min(size, nbytes)), lambda at=at, size=size: _at(file, at, size)  # type: ignore[misc]

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.tars),
            "bytes": int(self.files.sizes.sum()),
            "passed_over": self.index.passed_over,
        }


class _Pieces:
    """The part of a tar that is at hand: members of neighbouring samples are read at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._start, self._data = file, 0, b""

    def hold(self, at: Index, sizes: Index) -> bool:
        return int(at.min()) >= self._start and int((at + sizes).max()) <= self._start + len(self._data)

    def load(self, at: Index, sizes: Index) -> None:
        """Members of the first sample, and of as many that follow as lie near. int64 `[samples, fields]` both."""
        there = sizes >= 0
        low = np.where(there, at, np.iinfo(np.int64).max).min(axis=1)
        high = np.where(there, at + sizes, 0).max(axis=1)
        start, stop = int(low[0]), int(high[0])
        # samples are taken along until one lies before, or behind a gap, or the piece is large
        far = (low < start) | (low > np.maximum.accumulate(high) + GAP_BYTES)
        far[1:] |= low[1:] > np.maximum.accumulate(high)[:-1] + GAP_BYTES
        far |= np.maximum.accumulate(high) - start > 2 * SPAN_BYTES
        far[0] = False
        count = int(np.flatnonzero(far)[0]) if far.any() else len(far)
        stop = int(high[:count].max())
        if stop - start > int(np.maximum(sizes[:count], 0).sum()) + count * GAP_BYTES:
            start, stop, count = start, start, 0  # members of one sample lie far apart
        self._start, self._data = start, _at(self._file, start, stop - start)

    def get(self, at: int, size: int) -> bytes:
        begin = at - self._start
        if begin >= 0 and begin + size <= len(self._data):
            return self._data[begin : begin + size]
        return _at(self._file, at, size)


def _at(file: IO[bytes], at: int, size: int) -> bytes:
    file.seek(at)
    data = file.read(size)
    if data is not None and 0 < len(data) < size:  # a signal, or more than the 2 GiB that Linux reads at once
        pieces = [data]
        while data:
            data = file.read(size - sum(map(len, pieces)))
            pieces.append(data)
        data = b"".join(pieces)
    if len(data) != size:
        raise InputError("cut short: the file has changed since it was listed")
    return data
