"""Zarr: a format 3 group with one sharded array a part, whose rows can be mapped. Layout: docs/format.md.

Source: Zarr specification 3.1 (https://zarr-specs.readthedocs.io/en/latest/v3/core/). Chunks are cut along
axis 0 alone, and compressed only if asked. The manifest is an attribute of the root group, whose `zarr.json` is the
last file written: before it there is no group.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import fsio
from bigconv.block import Array, Block, Ragged
from bigconv.digest import little_endian
from bigconv.errors import IncompleteStore, NotAStore, SchemaError, UsageError
from bigconv.hashes import XXH3
from bigconv.manifest import Manifest, canonical, unique
from bigconv.remote.urls import Url
from bigconv.schema import Field, Part, Schema
from bigconv.sniff import not_json
from bigconv.stores import folder, frames
from bigconv.stores.base import Chunked, Packed, Strided
from bigconv.stores.columns import part_items
from bigconv.stores.zarr_arrays import ZarrArrays
from bigconv.stores.zarr_documents import METADATA, array_document, group_document, read_document
from bigconv.stores.zarr_packed import PackedShardWriter, place
from bigconv.stores.zarr_ranges import ZarrRanges
from bigconv.stores.zarr_shards import VALUES_CHUNKS, Layout, ShardWriter, read_items, shard_path

ATTRIBUTE = "bigconv"
ATTACHED = "_bigconv"  # group of what is attached; no field begins with _


@dataclass(frozen=True)
class Zarr:
    """A Zarr group; fixed and ragged fields in sharded arrays.

    `compress`: `none`, `lz4`, `zstd` or `zstd:LEVEL`. `chunk`: rows a chunk, instead of as many as `chunk_bytes` hold.
    """

    name: ClassVar[str] = "zarr"
    manifest_file: ClassVar[str] = METADATA

    chunk_bytes: int = 16 << 10  # 16 KiB: a few rows, so that zarr-python reads little too much for one of them
    shard_bytes: int = 64 << 20  # 64 MiB: few files, and each still quick to copy, upload and check
    compress: str = "none"
    chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "compress", frames.checked(self.compress))
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"--chunk {self.chunk}: expected 1 row or more")
        if self.chunk_bytes < 1 or self.shard_bytes < 1:
            raise UsageError(
                f"zarr: chunk_bytes {self.chunk_bytes} and shard_bytes {self.shard_bytes} must be at least 1"
            )

    def create(self, path: Path, schema: Schema, rows: int | None = None) -> ZarrWriter:
        return ZarrWriter(path, schema, self)

    def resume(self, path: Path, schema: Schema, rows: int | None, state: Mapping[str, Any]) -> ZarrWriter:
        return ZarrWriter(path, schema, self, state)

    def open(self, path: Path, schema: Schema, rows: int) -> ZarrReader:
        return ZarrReader(path, schema, rows)

    def documents(self, schema: Schema) -> list[str]:
        return [f"{part.name}/{METADATA}" for part in schema.parts()]

    def attached_files(self, name: str, files: Iterable[str]) -> list[str]:
        return [file for file in files if file.startswith(f"{ATTACHED}/{name}/")]

    def open_at(self, path: Path, schema: Schema, rows: int, files: Mapping[str, int], at: Url) -> ZarrRanges:
        return ZarrRanges(path, schema, rows, files, at)

    def manifest(self, path: Path) -> bytes:
        raw = folder.read_manifest(path, METADATA)
        try:
            document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
            attributes = document.get("attributes") if isinstance(document, dict) else None
            if not isinstance(attributes, dict) or ATTRIBUTE not in attributes:
                raise NotAStore(
                    f"{path}: a Zarr store, but not one of bigconv: {METADATA} has no attribute {ATTRIBUTE}"
                )
            if (document.get("zarr_format"), document.get("node_type")) != (3, "group"):
                raise IncompleteStore(f"{path}: {METADATA} is not that of a Zarr 3 group: damaged or edited")
            return canonical(attributes[ATTRIBUTE])
        except (ValueError, RecursionError) as error:
            raise IncompleteStore(f"{path}: {METADATA} can't be read: {not_json(raw, error)}") from error

    def attachment(self, path: Path, name: str) -> bytes | None:
        array, part = _attached(path, name)
        if not (array / METADATA).is_file():
            return None
        items, layout = read_document(array / METADATA, part)
        return read_items(array, part, layout, items)

    def files(self, path: Path, algorithm: str = XXH3) -> dict[str, tuple[int, str]]:
        return folder.data_files(path, algorithm, METADATA)

    def check(self, path: Path, manifest: Manifest) -> None:
        folder.check_sizes(path, manifest)

    def field_files(self, field: Field, files: Iterable[str]) -> list[str]:
        return [name for name in files if name.startswith(f"{field.name}/")]

    def seal(self, path: Path, manifest: Manifest) -> None:
        fsio.write_file(path / METADATA, group_document({ATTRIBUTE: json.loads(manifest.to_bytes())}))

    def describe(self, schema: Schema, path: Path | None = None) -> dict[str, str]:
        layouts = self.layouts(schema)
        for part in schema.parts():
            # a field that was added later was cut by itself
            if path is not None and (path / part.name / METADATA).is_file():
                layouts[part.name] = read_document(path / part.name / METADATA, part)[1]
        words = {f.name: self._words(f, layouts[f.parts()[0].name]) for f in schema}
        return {f.name: f"values + offsets, {words[f.name]}" if f.ragged else words[f.name] for f in schema}

    def _words(self, field: Field, layout: Layout) -> str:
        if not layout.item_bytes:
            return "no bytes"
        size = f"{layout.shard_chunks * layout.chunk_bytes / 2**20:.3g} MiB"
        unit = "value" if field.ragged else "row"
        words = f"shards of {size}, chunks of {layout.chunk_items} {unit}{'s' if layout.chunk_items > 1 else ''}"
        return words if layout.codec is None else f"{words}, {layout.codec.words}"

    def layouts(self, schema: Schema) -> dict[str, Layout]:
        """How the items of each part are cut under these options, by the part's name."""
        values_bytes = self.chunk_bytes * VALUES_CHUNKS
        packed = frames.packed(schema, self.compress, self.chunk, self.chunk_bytes, values_bytes)
        found = {}
        for part in schema.parts():
            if part.name in packed:
                found[part.name] = Layout.compressed(part, *packed[part.name], self.shard_bytes)
            else:
                if self.chunk is not None:
                    frames.check_chunk(part.name, self.chunk, part.item_bytes)
                found[part.name] = Layout.of(part, self.chunk_bytes, self.shard_bytes, self.chunk)
        return found


def _check_names(schema: Schema) -> None:
    """A field is a folder in the root group, so it may not be the group's own key, nor another field's folder."""
    seen: dict[str, str] = {}
    for name in schema.names:
        key = name.casefold()  # many file systems don't tell cases apart
        if key == METADATA:
            raise SchemaError(f"field {name}: Zarr keeps the group's metadata under that name; rename the field")
        if key in seen:
            raise SchemaError(f"fields {seen[key]} and {name} would share a folder where case makes no difference")
        seen[key] = name


def _attached(path: Path, name: str) -> tuple[Path, Part]:
    """Folder and part of an attachment. Raises `ValueError` for a name that isn't plain."""
    array = folder.attachment_file(path / ATTACHED, name).with_suffix("")
    return array, Part(f"{ATTACHED}/{name}", "rows", "uint8", ())


class ZarrWriter:
    """Appends to one stream of shards a part; the metadata comes last, when the lengths are known."""

    def __init__(self, path: Path, schema: Schema, store: Zarr, state: Mapping[str, Any] | None = None) -> None:
        """Start in a new folder, or go on from what `checkpoint` told."""
        _check_names(schema)
        self.path, self.rows = path, 0
        self._schema, self._store = schema, store
        self._totals = {f.name: 0 for f in schema if f.ragged}
        if state is None:
            with fsio.writing(path):
                path.mkdir()
        else:
            self.rows = int(state["rows"])
            self._totals = {name: int(state["totals"][name]) for name in self._totals}
            fsio.remove(path / METADATA)
            fsio.remove(path / ATTACHED)
        self._layouts = store.layouts(schema)
        self._turn = 0 if state is None else int(state.get("turn", 0))  # checkpoints so far
        # of chunks that are open at a checkpoint; goes with the folder that both are in
        beside = path.with_name(path.name + ".chunks")
        if any(layout.codec is not None for layout in self._layouts.values()):
            with fsio.writing(beside):
                beside.mkdir(exist_ok=True)
        self._beside = beside if beside.exists() else None
        self._parts: dict[str, ShardWriter | PackedShardWriter] = {}
        for part in schema.parts():
            items = 0 if state is None else part_items(part, self.rows, self._totals.get(part.field, 0))
            array, layout = path / part.name, self._layouts[part.name]
            if layout.codec is None:
                self._parts[part.name] = ShardWriter(array, part, layout, items)
            else:
                kept = beside / part.name.replace("/", ".")
                self._parts[part.name] = PackedShardWriter(array, part, layout, layout.codec, kept, items, self._turn)
        if state is None:
            for name in self._totals:
                self._write(f"{name}/offsets", np.zeros(1, np.int64))

    def append(self, block: Block) -> None:
        for f in self._schema:
            column = block.columns[f.name]
            if isinstance(column, Ragged):
                self._write(f"{f.name}/values", column.values)
                self._write(f"{f.name}/offsets", column.offsets[1:] + self._totals[f.name])
                self._totals[f.name] += int(column.offsets[-1])
                if column.shapes is not None:
                    self._write(f"{f.name}/shapes", column.shapes)
            else:
                self._write(f.name, column)
        self.rows += len(block)

    def checkpoint(self) -> dict[str, Any]:
        self._turn += 1
        for stream in self._parts.values():
            if isinstance(stream, ShardWriter):
                stream.checkpoint()
            else:
                stream.checkpoint(self._turn)
        for name in (".", *self._totals):
            fsio.sync_folder(self.path / name)
        state = {"rows": self.rows, "totals": dict(self._totals)}
        if self._beside is None:
            return state
        fsio.sync_folder(self._beside)
        fsio.sync_folder(self._beside.parent)
        return {**state, "turn": self._turn}

    def _write(self, part: str, array: Array) -> None:
        self._parts[part].write(len(array), little_endian(array).reshape(-1).view(np.uint8))

    def close(self) -> None:
        for part in self._schema.parts():
            self._finish(part, self._parts[part.name], self._layouts[part.name])
        for name in self._totals:
            self._document(name, group_document({}))

    def _finish(self, part: Part, stream: ShardWriter | PackedShardWriter, layout: Layout) -> None:
        stream.finish()
        self._document(part.name, array_document(part, stream.items, layout))

    def attach(self, name: str, data: bytes) -> None:
        array, part = _attached(self.path, name)
        layout = Layout.of(part, self._store.chunk_bytes, self._store.shard_bytes)
        stream = ShardWriter(array, part, layout)
        stream.write(len(data), np.frombuffer(data, np.uint8))
        self._finish(part, stream, layout)
        self._document(ATTACHED, group_document({}))

    def seal(self, manifest: Manifest) -> None:
        self._store.seal(self.path, manifest)

    def abort(self) -> None:
        for stream in self._parts.values():
            stream.abort()

    def _document(self, name: str, raw: bytes) -> None:
        node = self.path / name
        node.mkdir(parents=True, exist_ok=True)  # an array without a row has no shard, and no folder yet
        fsio.write_file(node / METADATA, raw)


class ZarrReader(ZarrArrays):
    """Knows where the shards' items lie from metadata and file sizes."""

    def __init__(self, path: Path, schema: Schema, rows: int) -> None:
        self.path = path
        super().__init__(path, schema, rows, {part.name: self._place(part, rows) for part in schema.parts()})

    def _place(self, part: Part, rows: int) -> Chunked | Packed | Strided:
        """Where a part's items lie. Raises `IncompleteStore` unless all is as the writer leaves it."""
        array = self.path / part.name
        items, layout = read_document(array / METADATA, part)
        if part.role != "values" and items != part_items(part, rows, 0):
            raise IncompleteStore(f"{array}: has {items} items, not the manifest's {rows} rows")
        if layout.item_bytes == 0:
            return Strided(array, 0, 0, items)  # an extent of 0: nothing lies anywhere
        if layout.codec is not None:
            return place(array, part, items, layout)
        paths = []
        for number in range(layout.shards(items)):
            path, size = shard_path(array, part, number), layout.shard_size(items, number)
            try:
                found = path.stat().st_size
            except OSError:
                raise IncompleteStore(f"{path}: missing") from None
            if found != size:
                raise IncompleteStore(f"{path}: has {found} bytes instead of {size}: cut short or changed")
            paths.append(path)
        return Chunked(
            tuple(paths), items, layout.item_bytes, layout.chunk_items, layout.chunk_stride, layout.shard_chunks
        )
