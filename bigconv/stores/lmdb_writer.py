"""Writes an LMDB store without lmdb: pages of the tree, and beside them the byte at which each row's value starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import fsio
from bigconv.block import Block, Index
from bigconv.digest import raw
from bigconv.errors import OutputError
from bigconv.manifest import Manifest
from bigconv.schema import Schema
from bigconv.stores import folder
from bigconv.stores.frames import MOST_BYTES, Codec, frames
from bigconv.stores.lmdb_load import TreeLoader
from bigconv.stores.lmdb_pages import INLINE_BYTES, PAGE_BYTES, overflow_pages
from bigconv.stores.lmdb_record import Record

DATA, ROWS = "data.mdb", "rows.npy"
FRAMES = "frames.npy"  # instead of rows.npy, where values are frames
PIECE_BYTES = 2 << 20  # 2 MiB of pages at a time: still in the cache when the kernel takes them
MAX_VALUE = 0xFFFFFFFF - 1  # bytes; LMDB's MAXDATASIZE
NPY_BYTES = 128  # length of the header of rows.npy: fixed, so that numpy's version doesn't show


def npy_header(rows: int) -> bytes:
    """A version 1.0 `.npy` header for int64 `[rows]`, always `NPY_BYTES` long (numpy.lib.format)."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows},), }}"
    size = NPY_BYTES - 10
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


class LmdbWriter:
    """Appends pages and offsets; branches, the environment's head and the length of `rows.npy` come last."""

    def __init__(
        self, path: Path, schema: Schema, state: Mapping[str, Any] | None = None, codec: Codec | None = None
    ) -> None:
        """Start in a new folder, or go on from what `checkpoint` told. `codec`: for values that are compressed."""
        self.path, self.rows = path, 0
        self._record, self._codec = Record(schema), codec
        index = ROWS if codec is None else FRAMES
        most = MAX_VALUE if codec is None else MOST_BYTES
        self._most = min(MAX_VALUE, most)
        # stays beside the store until the folder that both are in goes: a run killed after `close` needs it
        beside = path.with_name(path.name + ".leaves")
        if state is None:
            with fsio.writing(path):
                path.mkdir(parents=True)
            self._tree = TreeLoader(path / DATA, beside)
            self._index = fsio.AppendFile(path / index)
            self._index.write(bytes(NPY_BYTES))
            return
        for name in fsio.files_below(path):
            if name not in (DATA, index):  # what was put beside them after the end
                fsio.remove(path / name)
        self.rows = int(state["rows"])
        self._tree = TreeLoader(path / DATA, beside, self.rows, int(state["pages"]), int(state["leaves"]))
        self._index = fsio.AppendFile(path / index, NPY_BYTES + 8 * self.rows)

    def append(self, block: Block) -> None:
        sizes = self._record.sizes(block)
        if sizes.max(initial=0) > self._most:
            row = int(sizes.argmax())
            limit = "less than 4 GiB" if self._codec is None else "up to 2 GiB, compressed,"
            raise OutputError(
                f"{self.path}: row {self.rows + row} has {int(sizes[row])} bytes; LMDB holds {limit} a "
                "record: use another store"
            )
        for start, stop in _pieces(sizes):
            rows = block.slice(start, stop)
            if self._codec is None:
                piece = self._tree.lay_out(sizes[start:stop])
                self._record.put(rows, piece.room, piece.places)
            else:
                made = self._frames(self._codec, rows, sizes[start:stop])
                piece = self._tree.lay_out(np.array([len(frame) for frame in made], np.int64))
                for at, frame in zip(piece.places.tolist(), made, strict=True):
                    piece.room[at : at + len(frame)] = np.frombuffer(frame, np.uint8)
            self._tree.write(piece)
            self._index.write(raw(piece.offsets))
            self.rows += stop - start

    def _frames(self, codec: Codec, rows: Block, sizes: Index) -> list[bytes]:
        """A frame of each row's record."""
        ends = np.cumsum(sizes)
        records = np.empty(int(ends[-1]), np.uint8)
        self._record.put(rows, records, ends - sizes)
        return frames(codec, np.split(records, ends[:-1]))

    def checkpoint(self) -> dict[str, Any]:
        state = self._tree.checkpoint()
        self._index.sync()
        fsio.sync_folder(self.path)
        fsio.sync_folder(self.path.parent)
        return state

    def close(self) -> None:
        self._tree.finish()
        self._index.write_at(0, npy_header(self.rows))
        self._index.close()

    def attach(self, name: str, data: bytes) -> None:
        fsio.write_file(folder.attachment_file(self.path, name), data)

    def seal(self, manifest: Manifest) -> None:
        fsio.write_file(self.path / folder.MANIFEST, manifest.to_bytes())

    def abort(self) -> None:
        self._tree.close()
        self._index.close()


def _pieces(sizes: Index) -> Iterator[tuple[int, int]]:
    """Cut rows of the given sizes into pieces of about `PIECE_BYTES`."""
    if len(sizes):
        taken = np.where(sizes > INLINE_BYTES, overflow_pages(sizes) * PAGE_BYTES, sizes + 18)
        cuts = (np.flatnonzero(np.diff(np.cumsum(taken) // PIECE_BYTES)) + 1).tolist()
        yield from zip([0, *cuts], [*cuts, len(sizes)], strict=True)
