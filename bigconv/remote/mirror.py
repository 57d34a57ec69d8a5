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
from bigconv.errors import IncompleteStore, InputError, NotAStore, StoreError
from bigconv.remote.cache import COPY, WHOLE, Cache, Entry, Lease
from bigconv.remote.download import fetch_file, fetch_range, small
from bigconv.remote.urls import PathLike, Url, again, identity, parsed, talking

MANIFEST = "manifest.json"
TRIES = 3  # of a part that comes damaged
FILES_AT_ONCE = 8  # of a folder of small files, whose latency is all that they cost
_DATASET = b'"format":"bigconv-dataset"'
Objects = dict[str, dict[str, Any]]  # name below a URL, empty for itself -> what the storage tells of it
#: Raises `StoreError` for what is damaged: it is fetched again. What is whole, but not what was asked for, it tells.
Prove = Callable[[Path], str]


@dataclass(frozen=True)
class Mirror:
    """A folder of the cache that stands for a URL. `path`: the local copy, whole or filled part by part."""

    url: Url
    path: Path

    @classmethod
    def of(cls, url: Url, state: bytes) -> Mirror:
        """The folder for a URL in a state, begun."""
        cache = Cache.default()
        key = hashlib.sha256(f"{url}\n".encode() + state).hexdigest()[:32]
        cache.keep(cache.root / key / "url", str(url).encode())
        return cls(url, cache.root / key / COPY / url.name)

    @classmethod
    def at(cls, path: Path) -> Mirror | None:
        """The mirror whose local copy a path is; None for other paths."""
        if path.parent.name != COPY:
            return None
        folder = path.parent.parent
        try:
            url = parsed((folder / "url").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if folder.parent != Cache.default().root:  # a file of that name anywhere else means nothing
            return None
        return cls(url, path) if isinstance(url, Url) and url.name == path.name else None

    def documents(self, name: str = "") -> Path:
        """Folder for the small files of what is read where it is: a part, or what is not in parts."""
        return self.path.parent.parent / "documents" / (name or self.path.name)

    def here(self, name: str = WHOLE) -> Lease | None:
        """A part, or what is not in parts, held if it is here as a whole."""
        return Cache.default().held(self._entry(name))

    def _entry(self, name: str = WHOLE) -> Entry:
        return Entry(self.path.parent.parent, self.path.name, name)

    def fetch(self, name: str, nbytes: int, prove: Prove) -> Lease:
        """A part of a sharded directory, held. Raises `StoreError` when it can't be had, or is damaged there too."""
        url = self.url / name

        def make(partial: Path) -> None:
            there = objects(url)
            if not there:
                raise IncompleteStore(f"{url}: a part of the dataset is missing in the storage\n{GONE}")
            if sizes(there) != nbytes:
                told = f"has {sizes(there)} bytes, and the dataset lists {nbytes}: it is another's"
                raise IncompleteStore(f"{url}: {told}\n{GONE}")
            _fetched(url, there, partial, prove)

        return Cache.default().fetch(self._entry(name), nbytes, make)

    def whole(self, prove: Prove, found: Objects | None = None) -> Lease:
        """What is not in parts, held; fetched again where it had to make room. `found`: as it was listed just now."""
        if (here := self.here()) is not None:
            return here
        listed = objects(self.url) if found is None else found
        if not listed:
            raise IncompleteStore(f"{self.url}: it isn't there any more")

        def make(partial: Path) -> None:
            _fetched(self.url, listed, partial, prove)
            if _state(objects(self.url)) != _state(listed):
                fsio.remove(partial)
                raise StoreError(f"{self.url}: changed while it was fetched; try again when nobody writes there")

        return Cache.default().fetch(self._entry(), sizes(listed), make)

    def beside(self, name: str) -> None:
        """A small file of a sharded directory, which is held against digests when it is read."""
        if not (self.path / name).exists() and (data := small(self.url / name)) is not None:
            Cache.default().keep(self.path / name, data)

    def adopt(self, local: Path) -> None:
        """Take over what was just uploaded, so that it isn't fetched: `local` is gone afterwards, or too large."""
        nbytes = sum(fsio.files_below(local).values()) if local.is_dir() else local.stat().st_size
        cache = Cache.default()
        if nbytes <= cache.limit:
            cache.fetch(self._entry(), nbytes, lambda partial: _taken_over(local, partial)).release()


#: What to do when a part isn't the one that the manifest lists.
GONE = "The dataset was replaced, or not uploaded as a whole: open it anew, or upload it again"


@dataclass(frozen=True)
class Look:
    """What is at a URL: the manifest of a sharded directory, or all objects."""

    url: Url
    manifest: bytes | None
    found: Objects

    @classmethod
    def at(cls, url: Url) -> Look:
        manifest = small(url / MANIFEST)
        if manifest is not None and _DATASET in manifest:
            return cls(url, manifest, {})
        return cls(url, None, objects(url))


def local_copy(path: PathLike | Look, prove: Prove, raw: bool = False) -> tuple[Path, Lease | None]:
    """A local path that stands for `path`, which may be a URL, held; of a sharded directory, only the manifest is
    there.

    `raw`: files and folders that are no store are fetched too. Raises `NotAStore`, `InputError`, `StoreError`.
    """
    if not isinstance(path, Look):
        where = parsed(path)
        if isinstance(where, Path):
            return where, None
        path = Look.at(where)
    url, manifest, found = path.url, path.manifest, path.found
    if manifest is not None:
        mirror = Mirror.of(url, manifest)
        Cache.default().keep(mirror.path / MANIFEST, manifest)
        return mirror.path, None
    if not found:
        raise (InputError if raw else NotAStore)(f"{url}: no such file or folder")
    mirror = mirror_of(url, found)
    if not raw and not mirror.path.exists() and not _store_like(url, found):
        raise NotAStore(f"{url}: not a store. To make one of it: bigconv convert {url} out.h5")
    limit = Cache.default().limit
    if raw and sizes(found) > limit:
        raise InputError(
            f"{url}: {sizes(found)} bytes, more than the cache may hold ({limit}).\n"
            "Set BIGCONV_CACHE_BYTES, or name a part of it"
        )
    return mirror.path, mirror.whole(prove, found)


def mirror_of(url: Url, found: Objects) -> Mirror:
    """The folder of the cache for what is not in parts, as it was listed."""
    return Mirror.of(url, _state(found))


def _state(found: Objects) -> bytes:
    return json.dumps([[name, info["size"], identity(info)] for name, info in found.items()]).encode()


def _taken_over(local: Path, partial: Path) -> None:
    fsio.remove(partial)
    os.rename(local, partial)


def _fetched(url: Url, found: Objects, partial: Path, prove: Prove) -> None:
    """Download and prove; what comes damaged, again."""
    for attempt in range(1, TRIES + 1):
        _download(url, found, partial)
        try:
            wrong = prove(partial)
        except StoreError as error:
            fsio.remove(partial)
            if attempt == TRIES:
                why = str(error).removeprefix(f"{partial}: ")
                raise IncompleteStore(f"{url}: damaged, as fetched {TRIES} times: {why}") from error
            continue
        if wrong:
            fsio.remove(partial)
            raise IncompleteStore(f"{url}: {wrong}\n{GONE}")
        return


def _download(url: Url, found: Objects, partial: Path) -> None:
    def one(name: str) -> None:
        info = found[name]
        target = partial / name if name else partial
        fetch_file(url / name, target, int(info["size"]))
        stamp = mtime(info)
        if stamp:
            os.utime(target, ns=(stamp, stamp))

    if len(found) == 1:
        one(next(iter(found)))
        return
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="bigconv-files") as pool:
        futures = [pool.submit(one, name) for name in found]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def objects(url: Url) -> Objects:
    """What is below a URL, in bytewise order of the names. Raises `StoreError`."""

    def ask() -> Any:
        return url.system.find(url.key, detail=True, withdirs=False)

    with talking(url):
        try:
            listed = again(url, "listed", ask)
        except FileNotFoundError:
            return {}
    found = {}
    for key, info in listed.items():
        if info.get("type") != "file" or key.endswith("/"):  # some tools mark folders by empty objects
            continue
        name = key.lstrip("/").removeprefix(url.key.lstrip("/")).removeprefix("/")
        bad = set("\\:" if os.name == "nt" else "\0")
        if name and ({"", ".", ".."} & set(name.split("/")) or bad & set(name)):
            raise StoreError(f"{url}: the object {name!r} can't be a local file; move it away")
        found[name] = info
    return {"": found[""]} if "" in found else dict(sorted(found.items()))


def sizes(found: Objects) -> int:
    """Bytes of all objects."""
    return sum(int(info["size"]) for info in found.values())


def _store_like(url: Url, found: Objects) -> bool:
    """Whether it is worth fetching as a store: only its first bytes are read."""
    if "" not in found:
        return bool({MANIFEST, "zarr.json"} & set(found))
    return int(found[""]["size"]) > 8 and fetch_range(url, 0, 8) == registry.HDF5_SIGNATURE


def mtime(info: dict[str, Any]) -> int:
    """Time of an object in ns, 0 where it is not told."""
    told = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(told, datetime):
        return int(told.timestamp()) * 10**9
    return int(float(told) * 10**9) if isinstance(told, (int, float)) else 0
