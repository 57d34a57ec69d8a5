"""What a store is: four small protocols, and the ways in which rows can lie in a file.

A store knows one shard. It writes blocks in order, says where the bytes of each field lie (a
*location*), and can read rows through its own library, slowly, which is the fallback and the oracle in tests.
All fast reading is done by one gather engine, in `bigconv.view.gather`, from the locations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from bigconv.block import Array, Block, Index
from bigconv.errors import UsageError
from bigconv.hashes import XXH3
from bigconv.manifest import Manifest
from bigconv.remote.urls import Url
from bigconv.schema import Field, Schema


@dataclass(frozen=True)
class Strided:
    """Items at a constant distance: item `i` starts at byte `offset + i * stride` of one file."""

    path: Path
    offset: int
    stride: int
    items: int


@dataclass(frozen=True)
class Chunked:
    """Items in equal chunks, chunks in shard files (one file holds `shard_chunks` of them).

    Item `i` starts, in file `paths[i // chunk_items // shard_chunks]`, at byte
    `(i // chunk_items % shard_chunks) * chunk_stride + (i % chunk_items) * item_bytes`.
    """

    paths: tuple[Path, ...]
    items: int
    item_bytes: int
    chunk_items: int
    chunk_stride: int
    shard_chunks: int


@dataclass(frozen=True)
class Indexed:
    """Items anywhere: item `i` starts at byte `index[i] + delta` of one file and ends before byte `size`.

    `index`: a `.npy` file of int64 `[items]`.
    """

    path: Path
    index: Path
    delta: int
    items: int


@dataclass(frozen=True)
class Packed:
    """Items in equal chunks, each compressed to a frame (`bigconv.stores.frames`) in one of several files.

    Item `i` is in chunk `c = i // chunk_items`, whose frame lies in file `paths[c // shard_chunks]`. In that file a
    table, uint64 `[shard_chunks, 2]`, begins at byte `tables[c // shard_chunks]`; its entry `c % shard_chunks` tells
    the frame's first byte and how many bytes there are for it. Every frame holds `chunk_items * item_bytes` bytes.
    """

    paths: tuple[Path, ...]
    tables: tuple[int, ...]
    items: int
    item_bytes: int
    chunk_items: int
    shard_chunks: int


@dataclass(frozen=True)
class PackedRecords:
    """Items in records, each record a frame: that of item `i` starts at byte `index[i]` of one file.

    Decoded, the item starts `delta` bytes behind the record's start. `index`: a `.npy` file of int64 `[items]`.
    """

    path: Path
    index: Path
    delta: int
    items: int


class Chunks(Protocol):
    """Chunks that are not here yet, by number. `number`: tells parts apart; `near`: quicker made anew than kept."""

    @property
    def number(self) -> int: ...
    @property
    def near(self) -> bool: ...

    def find(self, numbers: Index) -> tuple[Index, Index]:
        """Address of each, and the address behind which nothing is its own; below any map where it has none."""

    def decode(self, numbers: Index, into: Callable[[int, int], Array]) -> None:
        """Put chunks into `into(i, nbytes)`, uint8 `[nbytes]`, for the `i`-th of `numbers`."""


@dataclass(frozen=True)
class Fetched:
    """Items in equal chunks that are fetched: item `i` is in chunk `i // chunk_items`."""

    chunks: Chunks
    items: int
    item_bytes: int
    chunk_items: int


Location = Strided | Chunked | Indexed | Packed | PackedRecords | Fetched


@dataclass(frozen=True)
class RaggedColumns:
    """A ragged field in columns: `values` (items), `offsets` (int64 `[rows + 1]`), `shapes` (int64 `[rows, ndim]`)."""

    values: Location
    offsets: Location
    shapes: Location | None


@dataclass(frozen=True)
class RaggedInline:
    """A ragged field inside each row's own record.

    `head` locates the head of each record, `[rows]`; the head holds the byte counts (int64) of all ragged
    fields at `lengths` (bytes behind the head's start, in the order their payloads follow each other), and
    this field's shape (int64 `[ndim]`) at `shape`. Payloads start `head_bytes` behind the head's start; this
    field's is number `number`.
    """

    head: Location
    head_bytes: int
    lengths: tuple[int, ...]
    number: int
    shape: int | None


Whereabouts = Mapping[str, Location | RaggedColumns | RaggedInline]


class StoreWriter(Protocol):
    """Writes one store, in order, under a temporary name.

    One more method is optional: `reserve(manifest)`, before `seal`, where the manifest stands in a file with rows. It
    makes room for one as long as that, with `files` besides: from then on `Store.files` tells what it will at the end.
    """

    def append(self, block: Block) -> None:
        """Add rows. Buffers of the block may be reused by the caller afterwards."""

    def checkpoint(self) -> dict[str, Any]:
        """Make all rows so far durable; JSON values, small whatever the number of rows, for `Store.resume`."""

    def close(self) -> None:
        """Lay everything out where it stays; readable through `Store.open` from now on.

        May be cut off anywhere: `Store.resume` from the last checkpoint still works, and so does this after it.
        """

    def attach(self, name: str, data: bytes) -> None:
        """Put bytes beside the fields, between `close` and `seal`; read back by `Store.attachment`."""

    def seal(self, manifest: Manifest) -> None:
        """Put the manifest in: the last write. Durability is the publisher's business."""

    def abort(self) -> None:
        """Let go of open files; what was written stays for the publisher to remove."""


class StoreReader(Protocol):
    """Reads one whole store."""

    rows: int

    def locate(self) -> Whereabouts | None:
        """Where every field's bytes lie; None where only the library can tell (foreign, in memory)."""

    def take(self, rows: Index, fields: tuple[str, ...]) -> Block:
        """Rows in the order given, through the store's own library: the fallback and the oracle."""

    def close(self) -> None: ...


class RangedReader(StoreReader, Protocol):
    """Reads a store that lies behind a URL."""

    @property
    def fetched(self) -> int:
        """Bytes that were fetched so far."""


class Store(Protocol):
    """One format; a frozen dataclass whose fields are its options."""

    name: ClassVar[str]

    def create(self, path: Path, schema: Schema, rows: int | None = None) -> StoreWriter:
        """Start a store at `path`, which doesn't exist; `rows` when their number is known ahead."""

    def resume(self, path: Path, schema: Schema, rows: int | None, state: Mapping[str, Any]) -> StoreWriter:
        """Go on after a checkpoint of a writer that was killed: later bytes are cut off."""

    def open(self, path: Path, schema: Schema, rows: int) -> StoreReader:
        """Open a laid-out store. Raises `IncompleteStore` when its files don't fit schema and rows."""

    def manifest(self, path: Path) -> bytes:
        """The manifest's bytes, read without a native library where it can be. Raises `NotAStore` without one."""

    def attachment(self, path: Path, name: str) -> bytes | None:
        """What was attached under a name; None when nothing was."""

    def files(self, path: Path, algorithm: str = XXH3) -> dict[str, tuple[int, str]]:
        """Files that the manifest vouches for: path below `path` (`.`: itself) -> bytes and digest, hex.

        Reads everything. What holds the manifest is left out.
        """

    def check(self, path: Path, manifest: Manifest) -> None:
        """Hold the files' sizes against the manifest, before a native library sees them. Raises `IncompleteStore`."""

    def describe(self, schema: Schema, path: Path | None = None) -> dict[str, str]:
        """Field -> how it is laid out, in words: by these options, or as it was found at `path`."""


@runtime_checkable
class Separable(Protocol):
    """A store whose fields lie in files of their own, so that one comes and goes without the others being touched."""

    manifest_file: ClassVar[str]  # that holds the manifest, and nothing of a field

    def field_files(self, field: Field, files: Iterable[str]) -> list[str]:
        """Those of a store's files (paths below it) that hold this field, and nothing else."""

    def seal(self, path: Path, manifest: Manifest) -> None:
        """Put the manifest into a store whose other files are there: the last write."""


@runtime_checkable
class InPlace(Protocol):
    """A store that can be read where it is, behind a URL, by ranges of its files."""

    manifest_file: ClassVar[str]

    def documents(self, schema: Schema) -> list[str]:
        """Files, besides that of the manifest, without which it can't be opened: small ones."""

    def attached_files(self, name: str, files: Iterable[str]) -> list[str]:
        """Those of a store's files that hold an attachment, and nothing else."""

    def open_at(self, path: Path, schema: Schema, rows: int, files: Mapping[str, int], at: Url) -> RangedReader:
        """Open what lies at a URL. `path`: folder of its documents; `files`: bytes of each file.

        Raises `IncompleteStore` when they don't fit schema and rows.
        """


def config(store: Any) -> dict[str, Any]:
    """A store's options as JSON values."""
    return asdict(store)


def configured(kind: Any, options: Mapping[str, Any]) -> Any:
    """A store of this kind with options that a user gave. Raises `UsageError` for one that it doesn't have."""
    known = {f.name for f in fields(kind)}
    for key in options:
        if key not in known:
            raise UsageError(f"--{key.replace('_', '-')} has no meaning for {kind.name} stores")
    return kind(**options)


def recalled(kind: Any, recipe: Mapping[str, Any]) -> Any:
    """A store of this kind with the options of a manifest's recipe, as far as they are known and make sense."""
    given = recipe.get("options")
    if isinstance(given, Mapping) and recipe.get("to") == kind.name:
        try:
            return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})
        except (TypeError, ValueError, AttributeError):  # made by another version, or edited
            pass
    return kind()
