"""HDF5: one contiguous dataset a part, so that its rows can be mapped; or compressed chunks. Layout: docs/format.md.

The HDF5 library only ever writes metadata, and copies compressed chunks when they are all there. Rows are written by
plain file writes at the offsets it gave out, because a killed HDF5 library leaves an unreadable file, and a plain
write doesn't.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt

from bigconv import fsio
from bigconv.block import Block, Index, Ragged
from bigconv.digest import raw
from bigconv.errors import IncompleteStore, NotAStore, UsageError
from bigconv.hashes import XXH3
from bigconv.manifest import MAX_BYTES, Manifest
from bigconv.schema import Part, Schema
from bigconv.stores import frames
from bigconv.stores.base import Packed, RaggedColumns, Strided, Whereabouts
from bigconv.stores.columns import Columns, part_items, take_column
from bigconv.stores.frames import Codec
from bigconv.stores.hdf5_file import ALIGNMENT, LIBVER, allocate, check_end, create, damage, opened
from bigconv.stores.hdf5_inside import inside
from bigconv.stores.hdf5_packed import CHUNK_BYTES, VALUES_BYTES, PackedArray, PackedColumns, place
from bigconv.stores.library_file import library_writing

MANIFEST = "_bigconv/manifest"


@dataclass(frozen=True)
class Hdf5:
    """One HDF5 file; fixed and ragged fields in contiguous, unfiltered datasets, or in compressed chunks.

    `compress`: `none`, `lz4`, `zstd` or `zstd:LEVEL`, by the Blosc filter. `chunk`: rows a chunk then.
    """

    name: ClassVar[str] = "hdf5"

    compress: str = "none"
    chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "compress", frames.checked(self.compress))
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"--chunk {self.chunk}: expected 1 row or more")
        if self.chunk is not None and self.compress == "none":
            raise UsageError(
                "--chunk: uncompressed rows lie one after another in an HDF5 file, in no chunks.\n"
                "Leave it out, or compress with --compress lz4"
            )

    def create(self, path: Path, schema: Schema, rows: int | None = None) -> Hdf5Writer:
        return Hdf5Writer(path, schema, rows, None, self._codecs(schema))

    def resume(self, path: Path, schema: Schema, rows: int | None, state: Mapping[str, Any]) -> Hdf5Writer:
        return Hdf5Writer(path, schema, rows, state, self._codecs(schema))

    def open(self, path: Path, schema: Schema, rows: int) -> Hdf5Reader:
        return Hdf5Reader(path, schema, rows)

    def manifest(self, path: Path) -> bytes:
        check_end(path)
        with damage(path), opened(path) as file:
            dataset = inside(file, MANIFEST)
            if dataset is None:
                raise NotAStore(f"{path}: no manifest: not a bigconv store, or one that was never finished")
            if dataset.ndim != 1 or dataset.size > MAX_BYTES or dataset.dtype != np.uint8:
                raise IncompleteStore(f"{path}: the manifest is not a list of bytes")
            return bytes(dataset[:].tobytes())

    def attachment(self, path: Path, name: str) -> bytes | None:
        with damage(path), opened(path) as file:
            dataset = inside(file, f"_bigconv/{name}")
            return None if dataset is None else bytes(dataset[:].tobytes())

    def files(self, path: Path, algorithm: str = XXH3) -> dict[str, tuple[int, str]]:
        with damage(path), opened(path) as file:
            dataset = inside(file, MANIFEST)
            if dataset is None:
                return {}  # the writer adds it with the manifest
            skip = (int(dataset.id.get_offset() or 0), int(dataset.size))
        return {".": (path.stat().st_size, fsio.digest_file(path, skip, algorithm))}

    def check(self, path: Path, manifest: Manifest) -> None:
        check_end(path)
        size, _ = manifest.files.get(".", (0, ""))
        if path.stat().st_size != size:
            raise IncompleteStore(f"{path}: has {path.stat().st_size} bytes instead of {size}: cut short or changed")

    def describe(self, schema: Schema, path: Path | None = None) -> dict[str, str]:
        codecs, found = self._codecs(schema), {}
        for f in schema:
            words = "contiguous" if not f.ragged else "values + offsets"
            if (packed := codecs.get(f.parts()[0].name)) is not None:
                codec, items = packed
                unit = "value" if f.ragged else "row"
                chunks = f"chunks of {items} {unit}{'s' if items > 1 else ''}, {codec.words}"
                words = f"{words}, {chunks}" if f.ragged else chunks
            found[f.name] = words
        return found

    def _codecs(self, schema: Schema) -> dict[str, tuple[Codec, int]]:
        """Part name -> codec and items a chunk, of the parts that are compressed."""
        return frames.packed(schema, self.compress, self.chunk, CHUNK_BYTES, VALUES_BYTES)


class Hdf5Writer:
    """Writes rows where they stay when their number is known and all fields are fixed, else beside the file first.

    `close` and what follows only ever add a file, or metadata: the rows stay where they were written, for a run that
    is killed there to go on from. What is left beside the file in the end goes with the folder both are in.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        rows: int | None,
        state: Mapping[str, Any] | None = None,
        codecs: Mapping[str, tuple[Codec, int]] | None = None,
    ) -> None:
        """`codecs`: of the parts that are compressed, by name, with the items of a chunk."""
        self.path, self.schema, self.rows = path, schema, int(state["rows"]) if state else 0
        self._rows_beside = path.with_name(path.name + ".rows")  # rows at places that turned out not to be final
        self._beside = path.with_name(path.name + ".columns")
        self._columns: Columns | None = None
        self._direct: fsio.PatchFile | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._room: tuple[int, int] | None = None  # first byte and size of what is kept for the manifest
        if codecs:
            self._columns = PackedColumns(self._beside, schema, codecs, state)
        elif rows is not None and not any(f.ragged for f in schema):
            if state is None:
                self._places = allocate(self._rows_beside, [(part, rows) for part in schema.parts()])
            else:
                self._places = {name: (int(a), int(b)) for name, (a, b) in state["places"].items()}
                if not self._rows_beside.exists():  # killed in `close`, when it had its final name already
                    path.replace(self._rows_beside)
            self._direct = fsio.PatchFile(self._rows_beside)
        else:
            self._columns = Columns(self._beside, schema, 0, state)

    def append(self, block: Block) -> None:
        if self._columns is not None:
            self._columns.append(block)
        elif self._direct is not None:
            for part in self.schema.parts():
                offset, size = self._places[part.name]
                column = block.columns[part.name]
                assert not isinstance(column, Ragged)
                data = raw(column)
                at = self.rows * part.item_bytes
                if at + len(data) > size:
                    raise IncompleteStore(f"{self.path}: more rows than were announced")
                self._direct.write_at(offset + at, data)
        self.rows += len(block)

    def checkpoint(self) -> dict[str, Any]:
        if self._columns is not None:
            return self._columns.checkpoint()
        assert self._direct is not None
        self._direct.sync()
        fsio.sync_folder(self.path.parent)
        return {"rows": self.rows, "places": {name: list(place) for name, place in self._places.items()}}

    def close(self) -> None:
        """Make a file with the final metadata, and bring rows and metadata together in one of the two."""
        packed = self._columns if isinstance(self._columns, PackedColumns) else None
        if packed is not None:
            packed.finish()
        counts = [
            (part, self._columns.items(part) if self._columns else part_items(part, self.rows, 0))
            for part in self.schema.parts()
        ]
        fresh = self.path.with_name(self.path.name + ".fresh")
        places = allocate(fresh, counts, packed)
        if self._direct is not None and places == self._places:
            # the rows are where they stay: only the metadata is put in, anew, whatever an earlier try has left
            end = fresh.stat().st_size
            for start, stop in _between(places, end):
                self._direct.copy_from(fresh, start, stop - start, start)
            self._direct.truncate(end)
            self._direct.close()
            fresh.unlink()
            self._rows_beside.replace(self.path)
            return
        target = fsio.PatchFile(fresh)
        try:
            for part, _ in counts:
                if part.name not in places:  # packed
                    continue
                offset, size = places[part.name]
                if self._columns is not None:
                    target.copy_from(self._columns.files[part.name].path, 0, size, offset)
                else:  # fewer rows than announced
                    target.copy_from(self._rows_beside, self._places[part.name][0], size, offset)
        finally:
            target.close()
        self.abort()
        fresh.replace(self.path)

    def attach(self, name: str, data: bytes) -> None:
        self._add(f"_bigconv/{name}", np.frombuffer(data, np.uint8))

    def reserve(self, manifest: Manifest) -> None:
        # room for the file's own size and digest too, which are known only when the manifest has its place
        room = len(manifest.to_bytes()) + 128
        self._room = (self._add(MANIFEST, np.full(room, ord(" "), np.uint8)), room)

    def seal(self, manifest: Manifest) -> None:
        if self._room is None:
            self.reserve(manifest)
            manifest = replace(manifest, files=Hdf5().files(self.path, manifest.digests.algorithm))
        assert self._room is not None
        offset, room = self._room
        whole = manifest.to_bytes()
        if len(whole) > room:
            raise AssertionError(f"{self.path}: a manifest of {len(whole)} bytes in room for {room}")
        patch = fsio.PatchFile(self.path)
        try:
            patch.write_at(offset, whole.ljust(room))
        finally:
            patch.close()

    def _add(self, name: str, data: npt.NDArray[np.uint8]) -> int:
        """Add a dataset of bytes; its offset in the file."""
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        with (
            library_writing(self.path) as room,
            h5py.File(room, "r+", libver=LIBVER, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT) as file,
        ):
            dataset = create(file, name, data.shape, "uint8", links)
            if data.size:
                dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, data)
            return int(dataset.get_offset() or 0)

    def abort(self) -> None:
        if self._columns is not None:
            self._columns.close()
        if self._direct is not None:
            self._direct.close()


def _between(places: Mapping[str, tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file of `end` bytes that hold no rows: metadata and gaps."""
    at = 0
    for offset, size in sorted(held for held in places.values() if held[1]):
        if offset > at:
            yield at, offset
        at = offset + size
    if at < end:
        yield at, end


class Hdf5Reader:
    """Reads through h5py; `locate` takes the datasets' offsets and closes the file again."""

    def __init__(self, path: Path, schema: Schema, rows: int) -> None:
        self.path, self.schema, self.rows = path, schema, rows
        self._file: h5py.File | None = None
        self._places: dict[str, Strided | Packed] | None = {}
        size = path.stat().st_size
        with damage(path), opened(path) as file:
            for part in schema.parts():
                dataset = inside(file, part.name)
                if dataset is None:
                    raise IncompleteStore(f"{path}: no dataset {part.name}")
                where = self._place(file, dataset, part, size)
                if where is None:
                    self._places = None
                elif self._places is not None:
                    self._places[part.name] = where

    def _place(self, file: h5py.File, dataset: h5py.Dataset, part: Part, size: int) -> Strided | Packed | None:
        """Where a dataset lies in the file; None when it is neither contiguous and native nor packed by us."""
        items = dataset.shape[0] if dataset.ndim else 0
        if dataset.ndim == 0 or dataset.shape[1:] != part.shape:
            raise IncompleteStore(f"{self.path}: {part.name} has shape {dataset.shape}")
        if part.role != "values" and items != part_items(part, self.rows, 0):
            raise IncompleteStore(f"{self.path}: {part.name} has {items} items, not the manifest's {self.rows} rows")
        if dataset.dtype != np.dtype(part.dtype):
            raise IncompleteStore(f"{self.path}: {part.name} has dtype {dataset.dtype} instead of {part.dtype}")
        if dataset.chunks is not None:
            return place(self.path, file, dataset, part, size)
        nbytes = items * part.item_bytes
        offset = dataset.id.get_offset() if nbytes else 0
        if offset is None or dataset.dtype != np.dtype(part.dtype).newbyteorder("<"):
            return None
        if offset + nbytes > size:
            raise IncompleteStore(f"{self.path}: {part.name} ends behind the end of the file")
        return Strided(self.path, offset, part.item_bytes, items)

    def locate(self) -> Whereabouts | None:
        if self._places is None:
            return None
        found: dict[str, Strided | Packed | RaggedColumns] = {}
        for f in self.schema:
            at = [self._places[part.name] for part in f.parts()]
            found[f.name] = RaggedColumns(at[0], at[1], at[2] if len(at) > 2 else None) if f.ragged else at[0]
        return found

    def take(self, rows: Index, fields: tuple[str, ...]) -> Block:
        if self._file is None:
            self._file = opened(self.path)
        schema = self.schema.select(fields)
        with damage(self.path):
            return Block(schema, {f.name: take_column(f, self._array, rows) for f in schema})

    def _array(self, name: str) -> Any:
        assert self._file is not None
        dataset = inside(self._file, name)
        packed = self._places is not None and isinstance(self._places[name], Packed)
        return PackedArray(dataset) if packed else dataset

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
