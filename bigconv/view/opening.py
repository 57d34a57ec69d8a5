"""From a path to a store that has been found whole: manifest first, sizes next, the library last."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import dataset, fsio, registry
from bigconv.block import Index
from bigconv.dataset import DatasetManifest
from bigconv.errors import IncompleteStore, NotAStore, StoreError
from bigconv.manifest import Manifest
from bigconv.remote.cache import Lease
from bigconv.remote.mirror import GONE, Look, Mirror, local_copy, mirror_of, mtime
from bigconv.remote.urls import Url, parsed
from bigconv.sniff import looks_at
from bigconv.stores.base import InPlace, StoreReader, recalled
from bigconv.view.documents import documents, manifest_at

RANGED = "zarr.json"  # what is found at the root of a store that can be read in place


@dataclass(frozen=True)
class Opened:
    """A store that exists: where, in which format, and what it says of itself.

    `origin`: what the path is a local copy of, if it is one; `lease`: keeps that copy there while it is being opened.
    `at`: where it is read in place, behind a URL: the path is then a folder of its metadata alone.
    """

    path: Path
    store: Any
    manifest: Manifest
    origin: Mirror | None = None
    lease: Lease | None = field(default=None, compare=False, repr=False)
    at: Url | None = None

    @property
    def told(self) -> str:
        """Where it is, as messages say it."""
        return str(self.at or (self.path if self.origin is None else self.origin.url))

    def bytes(self) -> int:
        """Bytes on disk."""
        if self.at is not None:
            return self.part_sizes[0] + os.path.getsize(self.path / self.store.manifest_file)
        if self.path.is_dir():
            return sum(fsio.files_below(self.path).values())
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def part_rows(self) -> Index:
        """int64 `[parts]`: rows of each part; a store is its own one part."""
        return np.array([self.manifest.rows], np.int64)

    @property
    def part_sizes(self) -> list[int]:
        """Bytes of each part, as the manifest has them."""
        return [sum(size for size, _ in self.manifest.files.values())]

    def part(self, number: int, whole: bool = False) -> Opened:
        """One part, opened; here as a `whole`, where that is wanted."""
        if whole and self.at is not None:
            return self.whole()
        if self.origin is None:
            return self
        if self.at is not None:  # unless it has come here as a whole meanwhile
            lease = self.origin.here()
            return self if lease is None else replace(self, path=self.origin.path, at=None, lease=lease)
        return replace(self, lease=self.fetch())

    def part_path(self, number: int) -> Path:
        return self.path

    @property
    def ranged(self) -> bool:
        """Whether rows may be read in place."""
        return self.at is not None

    def reader(self) -> StoreReader:
        """The store's own reader."""
        schema, rows = self.manifest.schema, self.manifest.rows
        if self.at is None:
            found: StoreReader = self.store.open(self.path, schema, rows)
            return found
        sizes = {name: size for name, (size, _) in self.manifest.files.items()}
        ranged: StoreReader = self.store.open_at(self.path, schema, rows, sizes, self.at)
        return ranged

    def attachment(self, name: str) -> builtins.bytes | None:
        """What was attached under a name; None when nothing was."""
        if self.at is not None:
            documents(self.at, self.path, self.manifest, self.store.attached_files(name, self.manifest.files))
        found: builtins.bytes | None = self.store.attachment(self.path, name)
        return found

    def fetch(self, number: int = 0) -> Lease | None:
        """Have a part here as a whole; None where it is local."""
        return None if self.origin is None else self.origin.whole(lambda path: _proven(path, self.manifest))

    def whole(self) -> Opened:
        """The same, here as a whole, and held."""
        if self.at is None:
            return self
        assert self.origin is not None
        return replace(self, path=self.origin.path, at=None, lease=self.fetch())


@dataclass(frozen=True)
class OpenedDataset(Opened):
    """A sharded directory. Its parts are opened when they are asked for; `store` is the format of all of them."""

    manifest: DatasetManifest

    def bytes(self) -> int:
        """Bytes on disk, of the parts as the manifest has them."""
        return self.manifest.part_bytes

    @property
    def part_rows(self) -> Index:
        return np.array([part.rows for part in self.manifest.parts], np.int64)

    @property
    def part_sizes(self) -> list[int]:
        return [part.bytes for part in self.manifest.parts]

    def part_path(self, number: int) -> Path:
        return self.path / self.manifest.parts[number].name

    @property
    def ranged(self) -> bool:
        return self.origin is not None and isinstance(self.store, InPlace)

    def part(self, number: int, whole: bool = False) -> Opened:
        """One part, opened; in place where it can be, unless it is wanted, or already here, as a `whole`.

        Raises `IncompleteStore` when it is not the one that the manifest lists.
        """
        listed, path = self.manifest.parts[number], self.part_path(number)
        told, lease = path if self.origin is None else self.origin.url / listed.name, None
        try:
            if self.origin is not None:
                lease = self.origin.here(listed.name) if self.ranged and not whole else self.fetch(number)
            if self.origin is not None and lease is None:
                url = self.origin.url / listed.name
                found = _opened_at(url, self.origin.documents(listed.name), fresh=True)
            else:
                found = open_store(path)
        except NotAStore as error:
            gone = "not a store any more" if path.exists() else "missing" + " in the storage" * (told != path)
            raise IncompleteStore(f"{told}: a part of the dataset is {gone}\n{self.mend}") from error
        manifest = found.manifest
        if (manifest.content_digest, manifest.rows) != (listed.content_digest, listed.rows):
            raise IncompleteStore(f"{told}: {_OTHER_ROWS}\n{self.mend}")
        if manifest.store != self.manifest.store or not dataset.same_fields(manifest.schema, self.manifest.schema):
            raise IncompleteStore(f"{told}: has another format or other fields than the dataset")
        return found if lease is None else replace(found, lease=lease)

    def fetch(self, number: int = 0) -> Lease | None:
        if self.origin is None:
            return None
        listed = self.manifest.parts[number]

        def prove(path: Path) -> str:
            found = open_store(path).manifest
            same = (found.content_digest, found.rows) == (listed.content_digest, listed.rows)
            return _proven(path) if same else _OTHER_ROWS

        return self.origin.fetch(listed.name, listed.bytes, prove)

    @property
    def mend(self) -> str:
        """What to do about a part that is not as it was."""
        return GONE if self.origin is not None else f"Make it again: bigconv shard {self.path} --repair"


_OTHER_ROWS = "holds other rows than the dataset lists"


def _proven(path: Path, known: Manifest | None = None) -> str:
    """Hold a fetched store against the digests of its files. Raises `StoreError` for damage; tells when it is whole,
    but not the `known` one."""
    found = open_store(path)
    if known is not None and found.manifest.content_digest != known.content_digest:
        return "holds other rows than when it was opened"
    there = found.store.files(path, found.manifest.digests.algorithm)
    if any(there.get(name) != entry for name, entry in found.manifest.files.items()):
        raise IncompleteStore(f"{path}: its files are not those that its manifest lists")
    return ""


def _proven_if_ours(path: Path) -> str:
    try:
        return _proven(path)
    except NotAStore:
        return ""


@contextmanager
def fetched(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A local path that stands for `path`, which may be the URL of a store or of raw files; it stays there meanwhile.

    Raises `InputError` for nothing there, or more than the cache may hold, `StoreError` for what can't be fetched.
    """
    where, lease = local_copy(path, _proven_if_ours, raw=True)
    with lease or nullcontext():
        yield where


def address(path: Path) -> str:
    """A path as messages name it: the URL of which it is a local copy, if it is one."""
    origin = Mirror.at(path)
    return str(path if origin is None else origin.url)


def open_store(path: str | os.PathLike[str], whole: bool = False) -> Opened:
    """Find the format by content, read the manifest, hold the files against it. `path` may be a URL.

    A sharded directory is opened by its manifest alone, as an `OpenedDataset`, and what can be read in place by its
    metadata, unless it is wanted, or already here, as a `whole`.
    Raises `NotAStore`, `IncompleteStore` or `LaterVersion`.
    """
    url = parsed(path)
    if isinstance(url, Url):
        look = Look.at(url)
        if not whole and (ranged := _in_place(look)) is not None:
            return ranged
        where, lease = local_copy(look, _proven_if_ours)
    else:
        where, lease = url, None
    origin = Mirror.at(where)
    if origin is None or registry.is_dataset(where):
        return _open(where, origin)
    with lease or origin.whole(_proven_if_ours):  # so that nobody removes it
        return _open(where, origin)


def in_place(path: str | os.PathLike[str]) -> Opened | None:
    """A store behind a URL that is read where it is; None for anything else."""
    url = parsed(path)
    if isinstance(url, Url):
        with suppress(NotAStore):  # another's Zarr
            return _in_place(Look.at(url))
    return None


def _in_place(look: Look) -> Opened | None:
    """What can be read where it is, if that is what is there."""
    if RANGED not in look.found:
        return None
    origin = mirror_of(look.url, look.found)
    if origin.path.exists():
        return None
    found = _opened_at(look.url, origin.documents(), fresh=False)
    stamp = mtime(look.found[RANGED])
    os.utime(found.path, ns=(stamp, stamp))
    for name, (size, _) in found.manifest.files.items():
        there = look.found.get(name)
        if there is None:
            raise IncompleteStore(f"{look.url}: {name} is missing")
        if int(there["size"]) != size:
            raise IncompleteStore(
                f"{look.url}: {name} has {there['size']} bytes instead of {size}: cut short or changed"
            )
    return replace(found, origin=origin)


def _opened_at(url: Url, folder: Path, fresh: bool) -> Opened:
    """A store that is read where it is. `folder`: for its small files, whose name doesn't tell states apart if `fresh`.

    Raises `NotAStore`, `IncompleteStore`.
    """
    kind = registry.load("store", "zarr")
    manifest = manifest_at(url, folder, kind(), fresh)
    if manifest.store != kind.name:
        raise IncompleteStore(f"{url}: the manifest is of a {manifest.store} store, the files are {kind.name}")
    store = recalled(kind, manifest.recipe)
    documents(url, folder, manifest, store.documents(manifest.schema))
    return Opened(folder, store, manifest, at=url)


def _open(where: Path, origin: Mirror | None) -> Opened:
    told = where if origin is None else origin.url
    try:
        name = registry.recognise(where)
        if name == registry.DATASET:
            return _open_dataset(where)
    except OSError as error:  # no permission, a name that is too long
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{told}: {error.strerror or error}") from error
    if name is None:
        raise NotAStore(_what_instead(where, str(told)))
    kind = registry.load("store", name)
    try:
        manifest = Manifest.from_bytes(kind().manifest(where), str(told))
        if manifest.store != name:
            raise IncompleteStore(f"{told}: the manifest is of a {manifest.store} store, the files are {name}")
        store = recalled(kind, manifest.recipe)
        store.check(where, manifest)
    except StoreError as error:
        if origin is None:
            raise
        raise type(error)(str(error).replace(str(where), str(told))) from error
    return Opened(where, store, manifest, origin)


def open_parts(path: Path) -> OpenedDataset:
    """A sharded directory by its manifest alone: parts may be missing or damaged. Raises `NotAStore` for no such."""
    if not registry.is_dataset(path):
        raise NotAStore(f"{path}: not a sharded directory: no manifest.json that lists parts")
    manifest = dataset.read(path)
    if manifest.store not in registry.names("store"):
        raise IncompleteStore(f"{path}: its parts are of an unknown store, {manifest.store!r:.80}")
    origin = Mirror.at(path)
    if origin is not None:
        origin.beside(dataset.digests_name(manifest.content_digest))
    return OpenedDataset(path, recalled(registry.load("store", manifest.store), manifest.recipe), manifest, origin)


def _open_dataset(path: Path) -> OpenedDataset:
    opened = open_parts(path)
    manifest = opened.manifest
    there = set(os.listdir(path))  # once: 10,000 stat calls would take longer than all the rest
    gone = [part.name for part in manifest.parts if part.name not in there]
    if gone and opened.origin is None:
        more = f" and {len(gone) - 1} more parts are" if len(gone) > 1 else " is"
        raise IncompleteStore(f"{path}: {gone[0]}{more} missing\n{opened.mend}")
    return opened


def _what_instead(path: Path, told: str) -> str:
    if not path.exists():
        return fsio.missing(path, told)
    if path.is_dir() and any(name.startswith("part-") for name in os.listdir(path)):
        return f"{told}: parts without a manifest.json: a dataset that was never finished, or has lost it"
    if path.is_dir() and path.suffix and not any(path.iterdir()):
        return f"{told}: an empty folder, no store"
    if path.suffix == ".lmdb" and path.is_dir() and not (path / "data.mdb").exists():
        return f"{told}: no data.mdb in it, so it is no LMDB store, or one that was copied without it"
    if path.is_dir() and path.suffix:
        return f"{told}: no manifest: not a bigconv store, or one that was never finished"
    if path.is_dir():
        return f"{told}: a folder, but not a store. To make one of it: bigconv convert {told} out.h5"
    return f"{told}: not a store that bigconv knows" + (f": {looks_at(str(path))}" if path.is_file() else "")
