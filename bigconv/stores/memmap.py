"""memmap: a folder of `.npy` files that `np.load(..., mmap_mode="r")` opens. Layout: docs/format.md."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import fsio
from bigconv.block import Array, Block, Index
from bigconv.errors import IncompleteStore, UsageError
from bigconv.hashes import XXH3
from bigconv.manifest import Manifest
from bigconv.schema import Field, Part, Schema
from bigconv.stores import folder
from bigconv.stores.base import RaggedColumns, Strided, Whereabouts
from bigconv.stores.columns import Columns, part_file, part_items, take_column

HEADER_BYTES = (
    4096  # a page: rows of whole pages then stay on page boundaries, and the header can be rewritten in place
)


@dataclass(frozen=True)
class Memmap:
    """A folder of `.npy` files, one a part."""

    name: ClassVar[str] = "memmap"
    manifest_file: ClassVar[str] = folder.MANIFEST

    compress: str = "none"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.compress != "none" or self.chunk is not None:
            option = "--chunk" if self.compress == "none" else f"--compress {self.compress}"
            raise UsageError(
                f"{option}: .npy files hold rows as they are, one after another.\n"
                "Stores that compress: out.h5 (hdf5), out.zarr (zarr), out.lmdb (lmdb)"
            )

    def create(self, path: Path, schema: Schema, rows: int | None = None) -> MemmapWriter:
        return MemmapWriter(path, schema)

    def resume(self, path: Path, schema: Schema, rows: int | None, state: Mapping[str, Any]) -> MemmapWriter:
        return MemmapWriter(path, schema, state)

    def open(self, path: Path, schema: Schema, rows: int) -> MemmapReader:
        return MemmapReader(path, schema, rows)

    def manifest(self, path: Path) -> bytes:
        return folder.read_manifest(path)

    def attachment(self, path: Path, name: str) -> bytes | None:
        return folder.read_attachment(path, name)

    def files(self, path: Path, algorithm: str = XXH3) -> dict[str, tuple[int, str]]:
        return folder.data_files(path, algorithm, folder.MANIFEST)

    def check(self, path: Path, manifest: Manifest) -> None:
        folder.check_sizes(path, manifest)

    def field_files(self, field: Field, files: Iterable[str]) -> list[str]:
        own = {part_file(part) for part in field.parts()}
        return [name for name in files if name in own]

    def seal(self, path: Path, manifest: Manifest) -> None:
        fsio.write_file(path / folder.MANIFEST, manifest.to_bytes())

    def describe(self, schema: Schema, path: Path | None = None) -> dict[str, str]:
        return {f.name: "values + offsets" if f.ragged else "contiguous" for f in schema}


def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A version 1.0 `.npy` header padded with spaces to `HEADER_BYTES` (numpy.lib.format)."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    raw = out.getvalue()
    text = raw[10:].rstrip(b" \n")
    size = HEADER_BYTES - 10
    return raw[:8] + size.to_bytes(2, "little") + text + b" " * (size - len(text) - 1) + b"\n"


class MemmapWriter:
    """Appends to the files; headers come last, when the lengths are known."""

    def __init__(self, path: Path, schema: Schema, state: Mapping[str, Any] | None = None) -> None:
        self.path = path
        if state is not None:  # of a run that was killed after it had sealed
            for file in (path / folder.MANIFEST, *path.glob("*.bin")):
                file.unlink(missing_ok=True)
        self._columns = Columns(path, schema, HEADER_BYTES, state)

    def append(self, block: Block) -> None:
        self._columns.append(block)

    def checkpoint(self) -> dict[str, Any]:
        return self._columns.checkpoint()

    def close(self) -> None:
        columns = self._columns
        for part in columns.schema.parts():
            columns.files[part.name].write_at(0, header(part.dtype, (columns.items(part), *part.shape)))
        columns.close()

    def attach(self, name: str, data: bytes) -> None:
        fsio.write_file(folder.attachment_file(self.path, name), data)

    def seal(self, manifest: Manifest) -> None:
        Memmap().seal(self.path, manifest)

    def abort(self) -> None:
        self._columns.close()


class MemmapReader:
    """Reads through `np.load(mmap_mode="r")`."""

    def __init__(self, path: Path, schema: Schema, rows: int) -> None:
        self.path, self.schema, self.rows = path, schema, rows
        self._arrays: dict[str, Array] = {}
        self._items: dict[str, int] = {}
        for part in schema.parts():
            file = path / part_file(part)
            try:
                items, rest = divmod(file.stat().st_size - HEADER_BYTES, max(1, part.item_bytes))
            except OSError:
                raise IncompleteStore(f"{path}: {file.name} is missing") from None
            if part.item_bytes == 0:  # an extent of 0: the items take no bytes, so the size can't count them
                items = rows
            if rest or (part.role != "values" and items != part_items(part, rows, 0)):
                raise IncompleteStore(f"{file}: its size does not fit {rows} rows")
            self._items[part.name] = items

    def locate(self) -> Whereabouts:
        found: dict[str, Strided | RaggedColumns] = {}
        for f in self.schema:
            at = [self._at(part) for part in f.parts()]
            found[f.name] = RaggedColumns(at[0], at[1], at[2] if len(at) > 2 else None) if f.ragged else at[0]
        return found

    def _at(self, part: Part) -> Strided:
        return Strided(self.path / part_file(part), HEADER_BYTES, part.item_bytes, self._items[part.name])

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            file = self.path / (name.replace("/", ".") + ".npy")
            # an empty file can't be mapped
            self._arrays[name] = np.load(file, mmap_mode="r" if self._items[name] else None, allow_pickle=False)
        return self._arrays[name]

    def take(self, rows: Index, fields: tuple[str, ...]) -> Block:
        schema = self.schema.select(fields)
        return Block(schema, {f.name: take_column(f, self._array, rows) for f in schema})

    def close(self) -> None:
        self._arrays.clear()
