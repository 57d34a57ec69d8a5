"""LMDB: one record a row in a B+tree that any lmdb opens, and the byte offset of every record beside it.

`out.lmdb/` holds `data.mdb` (the classic on-disk format of LMDB 0.9), `rows.npy` (int64 `[rows]`: byte in
`data.mdb` at which the value of each row starts) and `manifest.json`. Key: the row number, 8 bytes
big-endian. Value, little-endian: a head of constant size with, for each field in the schema's order, the row
itself (fixed fields) or its byte count, int64, and where several axes vary its shape, int64 `[ndim]` (ragged
ones); behind the head the bytes of the ragged fields in the same order. For image (32, 32, 3), label and text:

    with lmdb.open("out.lmdb", readonly=True, lock=False) as env, env.begin() as txn:
        for i in range(env.stat()["entries"]):
            value = txn.get(i.to_bytes(8, "big"))
            image = np.frombuffer(value, "<u1", 3072, 0).reshape(32, 32, 3)
            label = np.frombuffer(value, "<i8", 1, 3072)[0]
            nbytes = np.frombuffer(value, "<i8", 1, 3080)[0]
            text = value[3088 : 3088 + nbytes].decode()

The bytes are a function of the rows alone. A compacting copy numbers the pages by their place in the tree; what
it leaves to chance (map size, page size of the host, unused bytes of recycled pages) is made canonical.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import lmdb
import numpy as np

from bigconv import fsio
from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.digest import little_endian
from bigconv.errors import IncompleteStore, OutputError, RowError, SchemaError, StoreError
from bigconv.manifest import Manifest
from bigconv.schema import Field, Schema
from bigconv.stores import folder
from bigconv.stores.base import Indexed, RaggedInline, Whereabouts
from bigconv.stores.lmdb_pages import INLINE_BYTES, MAP_SIZE_AT, PAGE_BYTES, Tree, empty_environment

DATA, ROWS = "data.mdb", "rows.npy"
BUILD = "build"  # the environment that grows, beside the file that stays
TXN_ROWS = 4096  # rows a transaction: its fixed cost (a new path to the root) is then below 1 %
TXN_BYTES = 32 << 20  # 32 MiB a transaction: what has to be held in memory, and done again when the map is full
MAP_BYTES = 64 << 20  # 64 MiB: first size of the map, doubled on demand
MAX_VALUE = 0xFFFFFFFF - 1  # bytes; LMDB's MAXDATASIZE
NPY_BYTES = 128  # length of the header of rows.npy: fixed, so that numpy's version doesn't show
_ONE_ENVIRONMENT = threading.Lock()  # lmdb refuses to open a file twice in a process


@dataclass(frozen=True)
class Lmdb:
    """A folder with one LMDB environment, one record a row."""

    name: ClassVar[str] = "lmdb"

    def create(self, path: Path, schema: Schema, rows: int | None = None) -> LmdbWriter:
        return LmdbWriter(path, schema)

    def open(self, path: Path, schema: Schema, rows: int) -> LmdbReader:
        return LmdbReader(path, schema, rows)

    def manifest(self, path: Path) -> bytes:
        return folder.read_manifest(path)

    def files(self, path: Path) -> dict[str, int]:
        return folder.data_files(path, folder.MANIFEST)

    def check(self, path: Path, manifest: Manifest) -> None:
        folder.check_sizes(path, manifest)

    def describe(self, schema: Schema) -> dict[str, str]:
        record = Record(schema)
        words = "record"
        if record.lengths:
            words += f", on pages of its own past {INLINE_BYTES} B"
        elif record.head_bytes > INLINE_BYTES:
            words += f", {page_cost(record.head_bytes):.0%} of page padding"
        elif record.head_bytes:
            words += f", {page_cost(record.head_bytes):.0%} of keys and padding"
        return {f.name: words.replace("%", " %") for f in schema}


def page_cost(value_bytes: int) -> float:
    """Bytes that pages take on top of a value, as a part of the value: 12288 B take 16384 B, so 0.33.

    Values past `INLINE_BYTES` begin on a page of their own behind a 16-byte header; smaller ones share
    pages, each with its key and 10 bytes of bookkeeping.
    """
    if value_bytes > INLINE_BYTES:
        taken = float(-(-(16 + value_bytes) // PAGE_BYTES) * PAGE_BYTES)
    else:
        taken = PAGE_BYTES / ((PAGE_BYTES - 16) // (2 + 8 + 8 + value_bytes + value_bytes % 2))
    return taken / value_bytes - 1


class Record:
    """Where each field lies in a value: `places` (bytes behind its start), `shapes` and `lengths` of ragged ones."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self.head_bytes = schema, 0
        self.places: dict[str, int] = {}
        self.shapes: dict[str, int | None] = {}
        for f in schema:
            if f.ragged and f.row_bytes == 0:
                raise SchemaError(
                    f"field {f.name}: LMDB records count bytes, and its items have none; use another store"
                )
            self.places[f.name] = self.head_bytes
            self.head_bytes += 8 if f.ragged else f.row_bytes
            if f.ragged:
                self.shapes[f.name] = self.head_bytes if f.has_shapes else None
                self.head_bytes += 8 * len(f.shape) if f.has_shapes else 0
        self.ragged = tuple(f for f in schema if f.ragged)
        self.lengths = tuple(self.places[f.name] for f in self.ragged)

    def sizes(self, block: Block) -> Index:
        """int64 `[rows]`: bytes of each value."""
        total = np.full(len(block), self.head_bytes, np.int64)
        for f in self.ragged:
            total += _ragged(block, f).lengths * f.row_bytes
        return total

    def encode(self, block: Block) -> list[bytes]:
        """The values of all rows."""
        heads = np.empty((len(block), self.head_bytes), np.uint8)
        payloads: list[tuple[memoryview, list[int]]] = []
        for f in self.schema:
            column = block.columns[f.name]
            if isinstance(column, Ragged):
                _put(heads, self.places[f.name], column.lengths * f.row_bytes)
                if column.shapes is not None:
                    _put(heads, self.places[f.name] + 8, column.shapes)
                raw = little_endian(column.values).reshape(-1).view(np.uint8).data
                payloads.append((raw, (column.offsets * f.row_bytes).tolist()))
            else:
                _put(heads, self.places[f.name], column)
        if self.head_bytes == 0:
            return [b""] * len(block)
        values: list[bytes] = heads.view(f"V{self.head_bytes}").ravel().tolist()  # in C: no Python a row
        if not payloads:
            return values
        return [b"".join([head, *(raw[at[i] : at[i + 1]] for raw, at in payloads)]) for i, head in enumerate(values)]

    def decode(self, value: bytes | memoryview, f: Field) -> Array:
        """One field of one row. Raises `ValueError` or `TypeError` when the value doesn't fit the schema."""
        lengths = [int(n) for at in self.lengths for n in np.ndarray(1, "<i8", value, at)]
        if min(lengths, default=0) < 0 or self.head_bytes + sum(lengths) != len(value):
            raise ValueError(f"{len(value)} bytes do not fit a head of {self.head_bytes} and payloads of {lengths}")
        dtype = np.dtype(f.dtype).newbyteorder("<")
        if not f.ragged:
            return np.ndarray(f.item_shape, dtype, value, self.places[f.name])
        number = self.ragged.index(f)
        if lengths[number] % f.row_bytes:
            raise ValueError(f"{lengths[number]} bytes are not a number of items of {f.row_bytes}")
        shape = (-1, *f.item_shape)
        if (at := self.shapes[f.name]) is not None:
            shape = tuple(np.ndarray(len(f.shape), "<i8", value, at).tolist())
            if any(m < 0 or n not in (None, m) for n, m in zip(f.shape, shape, strict=True)):
                raise ValueError(f"shape {shape}")
        flat: Array = np.ndarray(
            lengths[number] // dtype.itemsize, dtype, value, self.head_bytes + sum(lengths[:number])
        )
        return flat.reshape(shape)


def _put(heads: Array, at: int, column: Array) -> None:
    """Write the bytes of `[rows, *shape]` into a column of bytes of the heads, uint8 `[rows, head_bytes]`."""
    raw = little_endian(column).reshape(-1).view(np.uint8)
    n = raw.size // len(heads) if len(heads) else 0
    heads[:, at : at + n] = raw.reshape(len(heads), n)


def _ragged(block: Block, f: Field) -> Ragged:
    column = block.columns[f.name]
    if not isinstance(column, Ragged):
        raise SchemaError(f"field {f.name}: expected a Ragged")
    return column


class LmdbWriter:
    """Appends in transactions to an environment beside the file, then copies it compacted."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path, self.rows = path, 0
        self._record = Record(schema)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._map_bytes = MAP_BYTES
        self._build = path / BUILD
        self._build.mkdir(parents=True)
        # an environment that is there keeps its format and page size, whatever lmdb and the host would choose
        fsio.write_file(self._build / DATA, empty_environment())
        with _translated(path):
            # no lock file: this is the only process that knows the folder
            self._env = lmdb.open(str(self._build), map_size=MAP_BYTES, sync=False, lock=False)

    def append(self, block: Block) -> None:
        sizes = self._record.sizes(block)
        if sizes.max(initial=0) > MAX_VALUE:
            row = int(sizes.argmax())
            raise OutputError(
                f"{self.path}: row {self.rows + len(self._pending) + row} has {int(sizes[row])} bytes; LMDB holds "
                "less than 4 GiB a record: use another store"
            )
        for start, stop in _pieces(sizes):
            self._pending += self._record.encode(block.slice(start, stop))
            self._pending_bytes += int(sizes[start:stop].sum())
            if len(self._pending) >= TXN_ROWS or self._pending_bytes >= TXN_BYTES:
                self._flush()

    def _flush(self) -> None:
        keys = np.arange(self.rows, self.rows + len(self._pending), dtype=">u8").view("V8").tolist()
        with _translated(self.path):
            while True:
                try:
                    with self._env.begin(write=True) as txn, txn.cursor() as cursor:
                        _, added = cursor.putmulti(zip(keys, self._pending, strict=True), append=True)
                    break
                except lmdb.MapFullError:  # the whole transaction is lost
                    self._map_bytes *= 2
                    self._env.set_mapsize(self._map_bytes)
        if added != len(keys):
            raise OutputError(f"{self.path}: LMDB took {added} of {len(keys)} rows from row {self.rows} on")
        self.rows += added
        self._pending, self._pending_bytes = [], 0

    def close(self) -> None:
        self._flush()
        with _translated(self.path), open(self.path / DATA, "xb") as file:
            # copyfd, since copy() bypasses the page cache, and what follows reads the file
            self._env.copyfd(file.fileno(), compact=True)
        self._env.close()
        fsio.remove(self._build)
        tree = Tree(self.path / DATA)
        if tree.entries != self.rows:
            raise IncompleteStore(f"{self.path / DATA}: LMDB holds {tree.entries} rows instead of {self.rows}")
        index, data = fsio.AppendFile(self.path / ROWS), fsio.PatchFile(self.path / DATA)
        try:
            index.write(npy_header(self.rows))
            for number in range(2):
                at = number * PAGE_BYTES + MAP_SIZE_AT
                data.write_at(at, (tree.pages * PAGE_BYTES).to_bytes(8, "little"))
            for offsets in tree.value_offsets(data):
                index.write(offsets.astype("<i8", copy=False).tobytes())
        finally:
            index.close()
            data.close()

    def seal(self, manifest: Manifest) -> None:
        fsio.write_file(self.path / folder.MANIFEST, manifest.to_bytes())

    def abort(self) -> None:
        self._env.close()


def _pieces(sizes: Index) -> Iterator[tuple[int, int]]:
    """Cut rows of the given sizes into pieces of about a transaction."""
    group = np.stack([np.cumsum(sizes) // TXN_BYTES, np.arange(len(sizes)) // TXN_ROWS])
    cuts = (np.flatnonzero((np.diff(group) != 0).any(0)) + 1).tolist()
    yield from zip([0, *cuts], [*cuts, len(sizes)], strict=True)


def npy_header(rows: int) -> bytes:
    """A version 1.0 `.npy` header for int64 `[rows]`, always `NPY_BYTES` long (numpy.lib.format)."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows},), }}"
    size = NPY_BYTES - 10
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn lmdb's errors of a write into an `OutputError`."""
    with fsio.writing(path):
        try:
            yield
        except lmdb.Error as error:
            code = errno.ENOSPC if isinstance(error, lmdb.DiskError) else getattr(error, "code", 0)
            raise OSError(code, str(error)) if code > 0 else OSError(str(error)) from error


class LmdbReader:
    """Reads through lmdb, whose environment is open only while a `take` runs: nothing survives into a fork."""

    def __init__(self, path: Path, schema: Schema, rows: int) -> None:
        self.path, self.schema, self.rows = path, schema, rows
        self._record = Record(schema)
        self._verified = False
        index = path / ROWS
        try:
            with open(index, "rb") as file:
                head = file.read(NPY_BYTES)
            size = index.stat().st_size
        except OSError:
            raise IncompleteStore(f"{path}: {ROWS} is missing") from None
        if head != npy_header(rows) or size != NPY_BYTES + 8 * rows:
            raise IncompleteStore(f"{index}: not int64 [{rows}]: cut short or changed")
        tree = Tree(path / DATA)
        if tree.entries != rows:
            raise IncompleteStore(f"{path / DATA}: has {tree.entries} rows instead of {rows}")

    def locate(self) -> Whereabouts:
        found: dict[str, Indexed | RaggedInline] = {}
        for f in self.schema:
            if f.ragged:
                number = self._record.ragged.index(f)
                shape = self._record.shapes[f.name]
                found[f.name] = RaggedInline(self._at(0), self._record.head_bytes, self._record.lengths, number, shape)
            else:
                found[f.name] = self._at(self._record.places[f.name])
        return found

    def _at(self, delta: int) -> Indexed:
        return Indexed(self.path / DATA, self.path / ROWS, delta, self.rows)

    def take(self, rows: Index, fields: tuple[str, ...]) -> Block:
        schema = self.schema.select(fields)
        wanted = rows.tolist()
        if wanted and not 0 <= min(wanted) <= max(wanted) < self.rows:
            raise RowError(f"{self.path}: a row of {min(wanted)} … {max(wanted)} is not in a store of {self.rows}")
        self._verify()
        cells: dict[str, list[Array]] = {f.name: [] for f in schema}
        with self._transaction() as txn:
            for row in wanted:
                value = txn.get(row.to_bytes(8, "big"))
                if value is None:
                    raise IncompleteStore(f"{self.path / DATA}: row {row} is missing")
                for f in schema:
                    try:
                        cells[f.name].append(self._record.decode(value, f).astype(f.dtype))
                    except (ValueError, TypeError) as error:
                        raise IncompleteStore(f"{self.path / DATA}: row {row}, field {f.name}: {error}") from error
        return Block(schema, {f.name: _column(f, cells[f.name]) for f in schema})

    def _verify(self) -> None:
        """Walk the whole tree before lmdb does: it follows every page number and pointer, wherever they lead."""
        if self._verified:
            return
        index = np.load(self.path / ROWS, allow_pickle=False)
        start = 0
        for offsets in Tree(self.path / DATA).value_offsets():
            if not np.array_equal(index[start : start + len(offsets)], offsets):
                raise IncompleteStore(f"{self.path}: {ROWS} and {DATA} do not fit from row {start} on: damaged")
            start += len(offsets)
        self._verified = True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        with _ONE_ENVIRONMENT:
            try:
                env = lmdb.open(str(self.path), readonly=True, lock=False, readahead=False, meminit=False, create=False)
            except lmdb.Error as error:
                kind = StoreError if "already open" in str(error) else IncompleteStore
                raise kind(f"{self.path}: lmdb can't open it: {error}") from error
            try:
                with env, env.begin(buffers=True) as txn:
                    yield txn
            except lmdb.Error as error:
                raise IncompleteStore(f"{self.path / DATA}: lmdb can't read it: {error}") from error

    def close(self) -> None:
        """Nothing is open between calls of `take`."""


def _column(f: Field, cells: list[Array]) -> Column:
    if f.ragged:
        return Ragged.of(cells, f)
    return np.stack(cells) if cells else np.empty((0, *f.item_shape), f.dtype)
