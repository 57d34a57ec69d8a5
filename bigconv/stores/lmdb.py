"""LMDB: one record a row in a B+tree that any lmdb opens, and the byte offset of every record beside it.

`out.lmdb/` holds `data.mdb` (the classic on-disk format of LMDB 0.9), `rows.npy` (int64 `[rows]`: byte in
`data.mdb` at which the value of each row starts) and `manifest.json`. Key: the row number, 8 bytes
big-endian. Value: see `lmdb_record`. For image (32, 32, 3), label and text:

    with lmdb.open("out.lmdb", readonly=True, lock=False) as env, env.begin() as txn:
        for i in range(env.stat()["entries"]):
            value = txn.get(i.to_bytes(8, "big"))
            image = np.frombuffer(value, "<u1", 3072, 0).reshape(32, 32, 3)
            label = np.frombuffer(value, "<i8", 1, 3072)[0]
            nbytes = np.frombuffer(value, "<i8", 1, 3080)[0]
            text = value[3088 : 3088 + nbytes].decode()

With `--compress` each value is a frame (see `frames`) of that record, and the offsets are in `frames.npy` instead:

            value = numcodecs.blosc.decompress(txn.get(i.to_bytes(8, "big")))

lmdb itself is imported to read through it; writing and mapping do without.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.errors import IncompleteStore, RowError, StoreError, UsageError
from bigconv.hashes import XXH3
from bigconv.manifest import Manifest
from bigconv.schema import Field, Schema
from bigconv.stores import folder
from bigconv.stores.base import Indexed, PackedRecords, RaggedInline, Whereabouts
from bigconv.stores.frames import Codec, checked, codec_for, unpacked, widest
from bigconv.stores.lmdb_pages import INLINE_BYTES, PAGE_BYTES, Tree
from bigconv.stores.lmdb_record import Record
from bigconv.stores.lmdb_writer import DATA, FRAMES, NPY_BYTES, ROWS, LmdbWriter, npy_header

_ONE_ENVIRONMENT = threading.Lock()  # lmdb refuses to open a file twice in a process


@dataclass(frozen=True)
class Lmdb:
    """A folder with one LMDB environment, one record a row.

    `compress`: `none`, `lz4`, `zstd` or `zstd:LEVEL`, each record by itself.
    """

    name: ClassVar[str] = "lmdb"

    compress: str = "none"
    chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "compress", checked(self.compress))
        if self.chunk is not None:
            raise UsageError(
                "--chunk: LMDB keeps each row under a key of its own, in no chunks.\n"
                "Leave it out; out.zarr and out.h5 compress several rows together"
            )

    def create(self, path: Path, schema: Schema, rows: int | None = None) -> LmdbWriter:
        return LmdbWriter(path, schema, None, self._codec(schema))

    def resume(self, path: Path, schema: Schema, rows: int | None, state: Mapping[str, Any]) -> LmdbWriter:
        return LmdbWriter(path, schema, state, self._codec(schema))

    def open(self, path: Path, schema: Schema, rows: int) -> LmdbReader:
        return LmdbReader(path, schema, rows)

    def manifest(self, path: Path) -> bytes:
        return folder.read_manifest(path)

    def attachment(self, path: Path, name: str) -> bytes | None:
        return folder.read_attachment(path, name)

    def files(self, path: Path, algorithm: str = XXH3) -> dict[str, tuple[int, str]]:
        return folder.data_files(path, algorithm, folder.MANIFEST)

    def check(self, path: Path, manifest: Manifest) -> None:
        folder.check_sizes(path, manifest)

    def describe(self, schema: Schema, path: Path | None = None) -> dict[str, str]:
        record, codec = Record(schema), self._codec(schema)
        words = "record"
        if codec is not None:
            words += f", {codec.words}"
        elif record.lengths:
            words += f", on pages of its own past {INLINE_BYTES} B"
        elif record.head_bytes > INLINE_BYTES:
            words += f", {page_cost(record.head_bytes):.0%} of page padding"
        elif record.head_bytes:
            words += f", {page_cost(record.head_bytes):.0%} of keys and padding"
        return {f.name: words.replace("%", " %") for f in schema}

    def _codec(self, schema: Schema) -> Codec | None:
        """For whole records: as fits the field that makes up most of them."""
        most = widest(schema)
        return codec_for(self.compress, most.dtype, most.kind)


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


class LmdbReader:
    """Reads through lmdb, whose environment is open only while a `take` runs: nothing survives into a fork."""

    def __init__(self, path: Path, schema: Schema, rows: int) -> None:
        self.path, self.schema, self.rows = path, schema, rows
        self._record = Record(schema)
        self._verified = False
        # what the values are is told by the name of the file that tells where they are
        self._packed = (path / FRAMES).is_file() and not (path / ROWS).exists()
        self._rows = FRAMES if self._packed else ROWS
        index = path / self._rows
        try:
            with open(index, "rb") as file:
                head = file.read(NPY_BYTES)
            size = index.stat().st_size
        except OSError:
            raise IncompleteStore(f"{path}: {self._rows} is missing") from None
        if head != npy_header(rows) or size != NPY_BYTES + 8 * rows:
            raise IncompleteStore(f"{index}: not int64 [{rows}]: cut short or changed")
        tree = Tree(path / DATA)
        if tree.entries != rows:
            raise IncompleteStore(f"{path / DATA}: has {tree.entries} rows instead of {rows}")

    def locate(self) -> Whereabouts:
        found: dict[str, Indexed | PackedRecords | RaggedInline] = {}
        for f in self.schema:
            if f.ragged:
                number = self._record.ragged.index(f)
                shape = self._record.shapes[f.name]
                found[f.name] = RaggedInline(self._at(0), self._record.head_bytes, self._record.lengths, number, shape)
            else:
                found[f.name] = self._at(self._record.places[f.name])
        return found

    def _at(self, delta: int) -> Indexed | PackedRecords:
        kind = PackedRecords if self._packed else Indexed
        return kind(self.path / DATA, self.path / self._rows, delta, self.rows)

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
                if self._packed:
                    value = unpacked(value).data
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
        index = np.load(self.path / self._rows, allow_pickle=False)
        start = 0
        for offsets in Tree(self.path / DATA).value_offsets():
            if not np.array_equal(index[start : start + len(offsets)], offsets):
                raise IncompleteStore(f"{self.path}: {self._rows} and {DATA} do not fit from row {start} on: damaged")
            start += len(offsets)
        self._verified = True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        import lmdb

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
