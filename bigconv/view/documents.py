"""The small files of a store that is read in place, behind a URL: fetched, held against digests, kept in the cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from bigconv import fsio
from bigconv.errors import IncompleteStore, NotAStore, StoreError
from bigconv.hashes import hasher
from bigconv.manifest import Manifest
from bigconv.remote.download import small
from bigconv.remote.mirror import FILES_AT_ONCE, GONE, TRIES
from bigconv.remote.urls import Url


def manifest_at(at: Url, folder: Path, store: Any, fresh: bool) -> Manifest:
    """The manifest of a store, by the file that holds it; as it is there now, if `fresh`.

    Raises `NotAStore` for nothing there, or another's.
    """
    file = folder / store.manifest_file

    def read() -> Manifest | None:
        if not file.exists():
            return None
        try:
            return Manifest.from_bytes(store.manifest(folder), str(at))
        except NotAStore as error:
            file.unlink(missing_ok=True)
            raise NotAStore(str(error).replace(str(folder), str(at))) from error

    def fetch() -> bytes:
        raw = small(at / store.manifest_file)
        if raw is None:
            raise NotAStore(f"{at}: no {store.manifest_file}: not a store, or one that was never finished")
        return raw

    found: Manifest = _kept(at / store.manifest_file, file, read, fetch, fresh)
    return found


def documents(at: Url, folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Have files here, as the manifest lists them: bytes and digest. Raises `IncompleteStore`, `StoreError`."""
    algorithm = manifest.digests.algorithm

    def one(name: str) -> None:
        file, listed = folder / name, manifest.files.get(name)

        def read() -> bytes | None:
            raw = file.read_bytes() if file.exists() else None
            if raw is not None and (len(raw), _hashed(raw, algorithm)) != listed:
                raise IncompleteStore("not the bytes that its manifest lists")
            return raw

        def fetch() -> bytes:
            raw = None if listed is None else small(at / name)
            if raw is None:
                raise IncompleteStore(f"{at}: {name} is missing\n{GONE}")
            return raw

        _kept(at / name, file, read, fetch)

    if len(names) < 2:
        for name in names:
            one(name)
        return
    with ThreadPoolExecutor(min(FILES_AT_ONCE, len(names)), thread_name_prefix="bigconv-documents") as pool:
        for _ in pool.map(one, names):
            pass


def _hashed(raw: bytes, algorithm: str) -> str:
    total = hasher(algorithm)
    total.update(raw)
    found: str = total.hexdigest()
    return found


def _kept(url: Url, file: Path, read: Callable[[], Any], fetch: Callable[[], bytes], fresh: bool = False) -> Any:
    """What `read` gives of a file that `fetch` brings where it is not here. What is damaged, also here, comes again."""
    if not fresh:
        with suppress(IncompleteStore, OSError):
            if (found := read()) is not None:
                return found
    for attempt in range(1, TRIES + 1):
        raw = fetch()
        with fsio.writing(file):  # not synced: what isn't whole after a power cut is fetched again
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.new")
            new.write_bytes(raw)
            os.replace(new, file)
        try:
            if (found := read()) is not None:
                return found
        except NotAStore:
            raise
        except StoreError as error:
            file.unlink(missing_ok=True)
            if attempt == TRIES:
                raise IncompleteStore(f"{url}: damaged, as fetched {TRIES} times: {error}") from error
    raise IncompleteStore(f"{url}: is removed here again and again")
