"""From a URL to a local path that stands for it: stores and raw files whole, a sharded directory part by part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bigconv import fsio, registry
from bigconv.errors import InputError, NotAStore, StoreError
from bigconv.remote.cache import Cache, Entry, Lease
from bigconv.remote.download import fetch_file, fetch_range, small
from bigconv.remote.urls import PathLike, Url, identity, parsed, talking

MANIFEST = "manifest.json"
TRIES = 3  # of a part that comes damaged
FILES_AT_ONCE = 8  # of a folder of small files, whose latency is all that they cost
_DATASET = b'"format":"bigconv-dataset"'
Prove = Callable[[Path], None]


@dataclass(frozen=True)
class Mirror:
    """A folder of the cache that stands for a URL. `path`: the local copy, whole or filled part by part."""

    url: Url
    path: Path

    @classmethod
    def at(cls, path: Path) -> Mirror | None:
        """The mirror whose local copy a path is; None for other paths."""
        folder = path.parent
        try:
            url = parsed((folder / "url").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if folder.parent != Cache.default().root:  # a file of that name anywhere else means nothing
            return None
        return cls(url, path) if isinstance(url, Url) and url.name == path.name else None

    def fetch(self, name: str, nbytes: int, prove: Prove) -> Lease:
        """A part of a sharded directory, held. Raises `StoreError` when it can't be had, or is damaged there too."""
        entry = Entry(self.path.parent, self.path.name, name)
        return _fetched(self.url / name, entry, nbytes, prove)

    def whole(self, prove: Prove) -> Lease:
        """A store that is not in parts, held; fetched again where it had to make room."""
        entry = Entry(self.path.parent, self.path.name)
        here = Cache.default().held(entry)
        if here is not None:
            return here
        found = objects(self.url)
        return _fetched(self.url, entry, _bytes(found), prove, found)

    def beside(self, name: str) -> None:
        """A small file of a sharded directory."""
        if not (self.path / name).exists():
            data = small(self.url / name)
            if data is not None:
                fsio.replace_file(self.path / name, data)


def local_copy(path: PathLike, raw: bool = False) -> Path:
    """A local path that stands for `path`, which may be a URL; of a sharded directory, only the manifest is there.

    `raw`: files and folders that are no store are fetched too. Raises `NotAStore`, `InputError`, `StoreError`.
    """
    url = parsed(path)
    if isinstance(url, Path):
        return url
    manifest = small(url / MANIFEST)
    if manifest is not None and _DATASET in manifest:
        mirror = _begun(url, manifest)
        fsio.replace_file(mirror.path / MANIFEST, manifest)
        return mirror.path
    found = objects(url)
    if not found:
        raise (InputError if raw else NotAStore)(f"{url}: no such file or folder")
    if not raw and not _store_like(url, found):
        raise NotAStore(f"{url}: not a store. To make one of it: bigconv convert {url} out.h5")
    told = json.dumps([[name, info["size"], identity(info)] for name, info in found.items()])
    mirror = _begun(url, told.encode(), folder=False)
    entry = Entry(mirror.path.parent, mirror.path.name)
    limit = Cache.default().limit
    if raw and _bytes(found) > limit:
        raise InputError(
            f"{url}: {_bytes(found)} bytes, more than the cache may hold ({limit}).\n"
            "Set BIGCONV_CACHE_BYTES, or name a part of it"
        )
    _fetched(url, entry, _bytes(found), _anything, found).release()
    return mirror.path


def _begun(url: Url, state: bytes, folder: bool = True) -> Mirror:
    """The folder of the cache for a URL in a state."""
    key = hashlib.sha256(f"{url}\n".encode() + state).hexdigest()[:32]
    mirror = Mirror(url, Cache.default().root / key / url.name)
    here = mirror.path if folder else mirror.path.parent
    with fsio.writing(here):
        here.mkdir(parents=True, exist_ok=True)
    if not (here := mirror.path.parent / "url").exists():
        fsio.replace_file(here, str(url).encode())
    return mirror


def _anything(path: Path) -> None:
    """Raw files have no digests: their sizes have been held against the listing."""


def _fetched(url: Url, entry: Entry, nbytes: int, prove: Prove, found: dict[str, Any] | None = None) -> Lease:
    def make(partial: Path) -> None:
        there = objects(url) if found is None else found
        if not there:
            raise StoreError(f"{url}: no such object: it is missing in the storage")
        for attempt in range(1, TRIES + 1):
            _download(url, there, partial)
            try:
                prove(partial)
                return
            except StoreError as error:
                fsio.remove(partial)
                if attempt == TRIES:
                    why = str(error).removeprefix(f"{partial}: ")
                    raise type(error)(f"{url}: damaged, as fetched {TRIES} times: {why}") from error

    return Cache.default().fetch(entry, nbytes, make)


def _download(url: Url, found: dict[str, Any], partial: Path) -> None:
    def one(name: str) -> None:
        info = found[name]
        target = partial / name if name else partial
        fetch_file(url / name if name else url, target, int(info["size"]))
        stamp = _mtime(info)
        if stamp:
            os.utime(target, ns=(stamp, stamp))

    if list(found) == [""]:
        one("")
        return
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="bigconv-files") as pool:
        list(pool.map(one, found))


def objects(url: Url) -> dict[str, Any]:
    """Name below the URL, empty for itself -> what the storage tells of it, in bytewise order."""
    with talking(url):
        try:
            listed = url.system.find(url.key, detail=True, withdirs=False)
        except FileNotFoundError:
            return {}
    found = {}
    for key, info in listed.items():
        name = key.lstrip("/").removeprefix(url.key).lstrip("/")
        if info.get("type") == "file" and not {".", ".."} & set(name.split("/")) and "//" not in name:
            found[name] = info
    return {"": found[""]} if "" in found else dict(sorted(found.items()))


def _bytes(found: dict[str, Any]) -> int:
    return sum(int(info["size"]) for info in found.values())


def _store_like(url: Url, found: dict[str, Any]) -> bool:
    """Whether it is worth fetching as a store: only its first bytes are read."""
    if "" not in found:
        return bool({MANIFEST, "zarr.json"} & set(found))
    size = int(found[""]["size"])
    return size > 8 and fetch_range(url.system, url, 0, 8) == registry.HDF5_SIGNATURE


def _mtime(info: dict[str, Any]) -> int:
    """Time of an object in ns, 0 where it is not told."""
    told = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(told, datetime):
        return int(told.timestamp()) * 10**9
    return int(float(told) * 10**9) if isinstance(told, (int, float)) else 0
