"""Arrays in a file that another program wrote: which of them become fields, under which names, read in which pieces.

What HDF5 and Zarr have in common. A source of them tells of its `Dataset`s and reads rows of one; all else is here.

- A dataset is a field; groups and name are joined by dots (`train/x` is `train.x`). Numbers keep dtype and shape,
  strings become `text`, lists of numbers a ragged field, lists of bytes that are image files `encoded`, columns of a
  compound type fields of their own.
- All must have as many rows along `--axis`. `--columns` takes some of them, or all below a group.
- Datasets without any axis are passed over. What can't be read safely is refused by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from bigconv import decode
from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.digest import little_endian
from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.schema import Field, Schema, unknown
from bigconv.sources.base import SPAN_BYTES, OnlySome, Reject, Span, origins
from bigconv.sources.filelist import FileList
from bigconv.sources.npy import field_of
from bigconv.sources.rowwise import woven

ALIGN_BYTES = 64 << 20  # 64 MiB: chunks up to this are read whole at once, larger ones in several goes
MAX_CHUNK = 1 << 30  # 1 GiB: a chunk is decompressed whole, whatever of it is asked for
MAX_ROW = 2 << 30  # 2 GiB: a row must fit in memory several times over
MAX_RATIO = 10_000  # declared to stored bytes: ten times what deflate can do. Past it the file is an empty promise …
RATIO_BYTES = 1 << 30  # … which does no harm below 1 GiB
MAX_DATASETS = 10_000
LOOK_AT = 16  # values that tell whether lists of bytes are image files


@dataclass(frozen=True)
class Dataset:
    """An array in a file, told by its metadata alone.

    `path`: with / between groups; `member`: column of a compound type. `dtype`: numpy's, of the numbers, of the items
    where `kind` is `ragged`; any string type where it is `text`. `problem`: why it can't become a field.
    """

    path: str
    kind: str  # array | text | ragged | encoded
    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...] | None = None
    member: str | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """What the field is called."""
        return ".".join((*self.path.split("/"), *(() if self.member is None else (self.member,))))

    @property
    def item_bytes(self) -> int:
        """Bytes of one item; of rows that vary in size none is known."""
        return 0 if self.kind != "array" and self.dtype == "" else np.dtype(self.dtype).itemsize

    def field(self, axis: int, where: str) -> Field:
        """Raises `InputError`."""
        if not -len(self.shape) <= axis < len(self.shape):
            raise InputError(f"{where}: no axis {axis} in an array of shape {self.shape}")
        at = axis % len(self.shape)
        shape = self.shape[:at] + self.shape[at + 1 :]
        if self.kind != "array" and shape:
            what = "strings" if self.kind == "text" else "lists"
            raise InputError(f"{where}: {what} in more than one dimension can't be stored")
        if self.kind == "array":
            row = math.prod(shape) * self.item_bytes
            if row > MAX_ROW:
                raise InputError(f"{where}: a row of it would have {row} bytes: its rows lie along another --axis?")
            return field_of(self.name, self.dtype, shape, where)
        try:
            if self.kind == "ragged":
                return Field(self.name, np.dtype(self.dtype).newbyteorder("=").name, (None,))
            return Field(self.name, "uint8", (None,), kind=self.kind)
        except SchemaError as error:
            raise InputError(f"{where}: {error}") from error


class Reader(Protocol):
    """An open file."""

    def rows(self, dataset: Dataset, axis: int, start: int, stop: int) -> Any:
        """Rows of a dataset: `[rows, *shape]`, or an object array or list of `[rows]` strings, bytes or arrays.

        Raises `InputError` when they can't be read.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class ForeignArrays(ABC):
    """Rows of one or many files with the same datasets, one file after another.

    `first`: int64 `[files + 1]`, the first row of each. `step`: rows that are read at once, whole chunks where they are
    small enough. `passed_over`: datasets that hold no rows.
    """

    name: ClassVar[str]
    decodes: ClassVar[bool] = True  # decompressing; and what a damaged file does to a library, a worker survives
    options: ClassVar[tuple[str, ...]] = ("axis", "columns")
    hints: ClassVar[tuple[str, ...]] = ()

    paths: tuple[str, ...]
    files: FileList
    datasets: tuple[Dataset, ...]
    axis: int
    first: Index
    step: int
    schema: Schema
    passed_over: tuple[str, ...]

    @classmethod
    @abstractmethod
    def listed(cls, paths: Sequence[Path]) -> tuple[tuple[str, ...], FileList]:
        """The files to be read, and how the manifest knows them. Raises `InputError`."""

    @classmethod
    @abstractmethod
    def look(cls, path: str) -> tuple[list[Dataset], list[str]]:
        """All datasets of a file, and the paths of those that hold no rows. Raises `InputError`."""

    @abstractmethod
    def reader(self, number: int) -> Reader:
        """Open a file. Raises `InputError`."""

    @classmethod
    def find(cls, paths: Sequence[Path], *, axis: int = 0, columns: Sequence[str] | None = None) -> Self:
        """Read the metadata of every file: fields must be the same in all.

        Raises `InputError`, and `UsageError` for columns that aren't there.
        """
        names, files = cls.listed(paths)
        first = [0]
        datasets: list[Dataset] = []
        fields: list[Field] = []
        passed_over: list[str] = []
        for number, path in enumerate(names):
            found, others = cls.look(path)
            here = chosen(_sparse_named(found) if columns is None else found, columns, path)
            made = [d.field(axis, f"{path}[{d.path}]") for d in here]
            if number and made != fields:
                raise InputError(f"{path}: other datasets than {names[0]}: {_differs(fields, made)}")
            if not number:
                datasets, fields, passed_over = here, made, others
            first.append(first[-1] + _rows(here, axis, path))
            _no_bomb(here, int(files.sizes[number]), path)
        try:
            schema = Schema(tuple(fields))
        except SchemaError as error:
            raise InputError(f"{names[0]}: {error}") from error
        step = _step(datasets, axis, int(files.sizes.sum()) // max(1, first[-1]))
        ends = np.array(first, np.int64)
        source = cls(names, files, tuple(datasets), axis, ends, step, schema, tuple(passed_over))
        return source._with_images()

    def _with_images(self) -> Self:
        """The same source, with lists of bytes that are image files known as such."""
        datasets = []
        for d in self.datasets:
            lists = d.kind == "ragged" and np.dtype(d.dtype) == np.uint8
            if lists and self.inputs and _are_images(self._open(0).rows(d, 0, 0, min(LOOK_AT, int(self.first[1])))):
                d = Dataset(d.path, "encoded", d.dtype, d.shape, d.chunk, d.member)
            datasets.append(d)
        if datasets == list(self.datasets):
            return self
        schema = Schema(tuple(d.field(self.axis, d.path) for d in datasets))
        return type(self)(
            self.paths, self.files, tuple(datasets), self.axis, self.first, self.step, schema, self.passed_over
        )

    @property
    def inputs(self) -> int:
        return int(self.first[-1])

    def plan(self) -> Sequence[Span]:
        spans = []
        for start, stop in zip(self.first[:-1].tolist(), self.first[1:].tolist(), strict=True):
            spans += [Span(at, min(at + self.step, stop)) for at in range(start, stop, self.step)]
        return spans

    def read(self, span: Span) -> Iterator[Block | Reject]:
        row = span.start
        while row < span.stop:
            number = int(np.searchsorted(self.first, row, "right")) - 1
            base = int(self.first[number])
            stop = min(span.stop, int(self.first[number + 1]), row + self.step)
            yield from self._read(number, row - base, stop - base)
            row = stop

    def _read(self, number: int, start: int, stop: int) -> Iterator[Block | Reject]:
        reader, name = self._open(number), self.files.name(number)
        columns: dict[str, Column] = {}
        bad: dict[int, Reject] = {}
        try:
            for d, f in zip(self.datasets, self.schema, strict=True):
                columns[f.name], wrong = _column(reader.rows(d, self.axis, start, stop), d, f)
                for i, why in wrong.items():
                    bad.setdefault(i, Reject(name, start + i, "read", f"field {f.name}: {why}"))
        except InputError as error:  # a damaged chunk: its rows are lost, their neighbours are not
            if stop - start > 1:
                for row in range(start, stop):
                    yield from self._read(number, row, row + 1)
                return
            yield Reject(name, start, "read", str(error).removeprefix(f"{name}: "))
            return
        rows = np.delete(np.arange(stop - start), list(bad))
        block = Block(self.schema, columns, origins(number, np.arange(start, stop)))
        yield from woven(block.take(rows) if bad else block, rows, bad)

    def _open(self, number: int) -> Reader:
        """The file that is at hand; another is closed."""
        at_hand: tuple[int, Reader] | None = self.__dict__.get("_at_hand")
        if at_hand is None or at_hand[0] != number:
            if at_hand is not None:
                at_hand[1].close()
            at_hand = self.__dict__["_at_hand"] = (number, self.reader(number))
        return at_hand[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_at_hand"}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "axis": self.axis,
            "files": len(self.paths),
            "datasets": [d.path if d.member is None else f"{d.path}[{d.member}]" for d in self.datasets],
            "passed_over": list(self.passed_over),
        }


def _sparse_named(found: Sequence[Dataset]) -> list[Dataset]:
    """The same, with the parts of sparse matrices (AnnData's, 10x's), whose rows they are not, told as such."""
    vectors: dict[str, set[str]] = defaultdict(set)
    for d in found:
        group, _, name = d.path.rpartition("/")
        if len(d.shape) == 1 and d.member is None:
            vectors[group].add(name)
    sparse = {group for group, names in vectors.items() if {"data", "indices", "indptr"} <= names}
    why = "part of a sparse matrix. Its rows are read from a file of scipy.sparse.save_npz"
    parts = [d.path.rpartition("/") for d in found]
    return [
        replace(d, problem=why) if group in sparse and name in ("data", "indices", "indptr") else d
        for d, (group, _, name) in zip(found, parts, strict=True)
    ]


def chosen(found: Sequence[Dataset], columns: Sequence[str] | None, where: str) -> list[Dataset]:
    """The datasets that become fields, in the order asked for. Raises `InputError`, `UsageError`."""
    if not found:
        raise InputError(f"{where}: no arrays in it")
    datasets = list(found)
    if columns is not None:
        datasets = []
        for column in columns:
            asked = column.strip("/").replace("/", ".")
            fits = [d for d in found if d.name == asked or d.name.startswith(f"{asked}.")]
            if not fits:
                groups = {d.name.rpartition(".")[0] for d in found} - {""}
                known = [*sorted(groups), *(d.name for d in found)]
                raise UsageError(f"{where}: {unknown('dataset', column, known[:50])}")
            datasets += [d for d in fits if d not in datasets]
    for d in datasets:
        if d.problem is not None:
            raise OnlySome(f"{where}[{d.path}]: {d.problem}", [o.name for o in datasets if o.problem is None])
    names: dict[str, Dataset] = {}
    for d in datasets:
        if names.setdefault(d.name, d) is not d:
            raise InputError(f"{where}: {names[d.name].path} and {d.path} would both be field {d.name}")
    return datasets


def _rows(datasets: Sequence[Dataset], axis: int, where: str) -> int:
    by_rows: dict[int, list[Dataset]] = defaultdict(list)
    for d in datasets:
        by_rows[d.shape[axis]].append(d)
    if len(by_rows) > 1:
        told = "; ".join(f"{rows} in {_some(ds)}" for rows, ds in sorted(by_rows.items(), reverse=True)[:4])
        largest = max(by_rows.values(), key=lambda ds: sum(math.prod(d.shape) * max(1, d.item_bytes) for d in ds))
        raise OnlySome(
            f"{where}: datasets of one store need equal rows along axis {axis}: {told}", [d.name for d in largest]
        )
    return next(iter(by_rows))


def _some(datasets: Sequence[Dataset]) -> str:
    more = f" and {len(datasets) - 3} more" if len(datasets) > 3 else ""
    return ", ".join(d.name for d in datasets[:3]) + more


def _differs(fields: Sequence[Field], made: Sequence[Field]) -> str:
    for a, b in zip(fields, made, strict=False):
        if a != b:
            return f"{b.name} is {b.dtype} {list(b.shape)} here, {a.name} is {a.dtype} {list(a.shape)} there"
    return f"{len(made)} here, {len(fields)} there"


def _no_bomb(datasets: Sequence[Dataset], stored: int, where: str) -> None:
    """A few bytes may promise petabytes of zeros."""
    for d in datasets:
        if d.chunk is not None and math.prod(d.chunk) * max(1, d.item_bytes) > MAX_CHUNK:
            raise InputError(f"{where}[{d.path}]: chunks of {d.chunk} are more than {MAX_CHUNK} bytes each")
        promised = math.prod(d.shape) * max(1, d.item_bytes)
        if promised > RATIO_BYTES and promised > MAX_RATIO * max(1, stored):
            raise InputError(
                f"{where}[{d.path}]: its {stored} bytes promise {promised}: {d.shape} of {d.dtype or d.kind}. "
                "It was never filled, or is hostile"
            )


def _step(datasets: Sequence[Dataset], axis: int, stored: int) -> int:
    """Rows to read at once: about `SPAN_BYTES`, and whole chunks unless one has more than `ALIGN_BYTES`.

    `stored`: bytes a row on the disk, for rows that vary in size.
    """
    row = sum(math.prod(d.shape) // max(1, d.shape[axis]) * d.item_bytes for d in datasets if d.kind == "array")
    if any(d.kind != "array" for d in datasets):
        row += max(1, stored)
    step = max(1, SPAN_BYTES // max(1, row))
    chunks = [d.chunk[axis] for d in datasets if d.chunk is not None]
    fits = [rows for rows in chunks if rows * max(1, row) <= ALIGN_BYTES]
    return -(-step // max(fits)) * max(fits) if fits else step


def _are_images(values: Iterable[Any]) -> bool:
    looked = 0
    for value in values:
        try:
            decode.probe(_numbers(value, np.dtype(np.uint8)).tobytes())
        except InputError:
            return False
        looked += 1
    return looked > 0


def _column(values: Any, dataset: Dataset, field: Field) -> tuple[Column, dict[int, str]]:
    """Rows of a dataset as a column, empty where a row is bad; and what is wrong with those."""
    if dataset.kind == "array":
        return little_endian(np.asarray(values)), {}
    cells: list[Array] = []
    bad: dict[int, str] = {}
    for i, value in enumerate(values):
        try:
            cell = _cell(value, dataset)
        except InputError as error:
            bad[i], cell = str(error), np.empty(0, field.dtype)
        cells.append(cell)
    return Ragged.of(cells, field), bad


def _cell(value: Any, dataset: Dataset) -> Array:
    """One row whose size varies. Raises `InputError`."""
    if dataset.kind == "ragged":
        return _numbers(value, np.dtype(dataset.dtype).newbyteorder("="))
    if dataset.kind == "encoded":
        data = _numbers(value, np.dtype(np.uint8))
        decode.probe(data.tobytes())
        return data
    try:
        raw = value if isinstance(value, bytes) else str(value).encode()
        raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}") from error
    except UnicodeEncodeError as error:
        raise InputError("no text that UTF-8 can hold") from error
    return np.frombuffer(raw, np.uint8)


def _numbers(value: Any, dtype: np.dtype[Any]) -> Array:
    return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else little_endian(np.asarray(value, dtype))
