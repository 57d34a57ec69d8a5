"""From a path to a store that has been found whole: manifest first, sizes next, the library last."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigconv import registry
from bigconv.errors import IncompleteStore, NotAStore, StoreError
from bigconv.manifest import Manifest


@dataclass(frozen=True)
class Opened:
    """A store that exists: where, in which format, and what it says of itself."""

    path: Path
    store: Any
    manifest: Manifest

    def bytes(self) -> int:
        """Bytes on disk."""
        from bigconv import fsio

        if self.path.is_dir():
            return sum(fsio.files_below(self.path).values())
        return self.path.stat().st_size if self.path.exists() else 0


def open_store(path: str | os.PathLike[str]) -> Opened:
    """Find the format by content, read the manifest, hold the files against it.

    Raises `NotAStore`, `IncompleteStore` or `LaterVersion`.
    """
    where = Path(path)
    try:
        name = registry.recognise(where)
    except OSError as error:  # no permission, a name that is too long
        raise StoreError(f"{path}: {error.strerror or error}") from error
    if name is None:
        raise NotAStore(_what_instead(where))
    store = registry.load("store", name)()
    manifest = Manifest.from_bytes(store.manifest(where), str(path))
    if manifest.store != name:
        raise IncompleteStore(f"{path}: the manifest is of a {manifest.store} store, the files are {name}")
    store.check(where, manifest)
    return Opened(where, store, manifest)


def _what_instead(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such file or folder"
    if path.is_dir() and path.suffix:
        return f"{path}: no manifest: not a bigconv store, or one that was never finished"
    if path.is_dir():
        return f"{path}: a folder, but not a store. To make one of it: bigconv convert {path} out.h5"
    return f"{path}: not a store that bigconv knows"
