"""From a path to a store that has been found whole: manifest first, sizes next, the library last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
from bigconv.remote.mirror import GONE, Mirror, local_copy
from bigconv.stores.base import recalled


@dataclass(frozen=True)
class Opened:
    """A store that exists: where, in which format, and what it says of itself.

    `origin`: what the path is a local copy of, if it is one; `lease`: keeps that copy there while it is being opened.
    """

    path: Path
    store: Any
    manifest: Manifest
    origin: Mirror | None = None
    lease: Lease | None = field(default=None, compare=False, repr=False)

    @property
    def told(self) -> str:
        """Where it is, as messages say it."""
        return str(self.path if self.origin is None else self.origin.url)

    def bytes(self) -> int:
        """Bytes on disk."""
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

    def part(self, number: int) -> Opened:
        """One part, opened."""
        if self.origin is None:
            return self
        return replace(self, lease=self.origin.whole(lambda path: _proven(path, self.manifest)))

    def part_path(self, number: int) -> Path:
        return self.path


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

    def part(self, number: int) -> Opened:
        """One part, opened. Raises `IncompleteStore` when it is not the one that the manifest lists."""
        listed, path = self.manifest.parts[number], self.part_path(number)
        lease = self.fetch(number)
        told = path if self.origin is None else self.origin.url / listed.name
        try:
            found = open_store(path)
        except NotAStore as error:
            gone = "missing" if not path.exists() else "not a store any more"
            raise IncompleteStore(f"{told}: a part of the dataset is {gone}\n{self.mend}") from error
        manifest = found.manifest
        if (manifest.content_digest, manifest.rows) != (listed.content_digest, listed.rows):
            raise IncompleteStore(f"{told}: {_OTHER_ROWS}\n{self.mend}")
        if manifest.store != self.manifest.store or not dataset.same_fields(manifest.schema, self.manifest.schema):
            raise IncompleteStore(f"{told}: has another format or other fields than the dataset")
        return found if lease is None else replace(found, lease=lease)

    def fetch(self, number: int) -> Lease | None:
        """Have a part of a remote directory here; None of a local one."""
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


def open_store(path: str | os.PathLike[str]) -> Opened:
    """Find the format by content, read the manifest, hold the files against it. `path` may be a URL.

    A sharded directory is opened by its manifest alone, as an `OpenedDataset`.
    Raises `NotAStore`, `IncompleteStore` or `LaterVersion`.
    """
    where, lease = local_copy(path, _proven_if_ours)
    origin = Mirror.at(where)
    if origin is None or registry.is_dataset(where):
        return _open(where, origin)
    with lease or origin.whole(_proven_if_ours):  # so that nobody removes it
        return _open(where, origin)


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
        return f"{told}: no such file or folder"
    if path.is_dir() and any(name.startswith("part-") for name in os.listdir(path)):
        return f"{told}: parts without a manifest.json: a dataset that was never finished, or has lost it"
    if path.is_dir() and path.suffix:
        return f"{told}: no manifest: not a bigconv store, or one that was never finished"
    if path.is_dir():
        return f"{told}: a folder, but not a store. To make one of it: bigconv convert {told} out.h5"
    return f"{told}: not a store that bigconv knows"
