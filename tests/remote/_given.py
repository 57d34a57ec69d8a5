"""Data that the tests of this folder read, and what the cache takes on the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import bigconv
from bigconv import fsio
from bigconv.remote.cache import Cache

ROWS, PARTS = 400, 4
BUCKET = "bucket"


def system() -> Any:
    """S3 by its own library."""
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


def raw(folder: Path, rows: int = ROWS, seed: int = 0) -> Path:
    """`x.npy`: int64 `[rows, 50]`; the first of each row is its number."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 1 << 40, (rows, 50))
    values[:, 0] = np.arange(rows)
    np.save(folder / "x.npy", values)
    os.utime(folder / "x.npy", (1e9 + seed, 1e9 + seed))  # the same file, whenever it is asked for
    return folder / "x.npy"


def parts(folder: Path, **options: Any) -> Path:
    """A local sharded directory."""
    bigconv.convert(raw(folder), folder / "train", shards=PARTS, workers=0, **options)
    return folder / "train"


def put(local: Path, key: str) -> str:
    """Copy a folder or file into the bucket as it is; its URL."""
    files = fsio.files_below(local) if local.is_dir() else {"": 0}
    for name in files:
        system().put_file(str(local / name), f"{BUCKET}/{key}/{name}".rstrip("/"))
    return f"s3://{BUCKET}/{key}"


def keys(prefix: str) -> dict[str, str]:
    """Name below a prefix of the bucket -> entity tag."""
    found = system().find(f"{BUCKET}/{prefix}", detail=True)
    return {key.removeprefix(f"{BUCKET}/{prefix}").lstrip("/"): str(info["ETag"]) for key, info in found.items()}


def forked(what: Callable[[], object]) -> int:
    """A process of its own, to be killed: quicker to start than one that has to import everything."""
    child = os.fork()
    if child == 0:
        try:
            what()
        finally:
            os._exit(0)
    return child


def killed(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def occupied(cache: Path, part: str = "part-") -> int:
    """Bytes of parts in a cache, whole and on their way; while nobody makes room, but parts may come."""
    if not cache.exists():
        return 0
    found: dict[int, int] = {}  # by inode: who gets its name meanwhile is seen twice
    with Cache(cache)._alone():
        for folder, _, files in os.walk(cache):
            for name in files:
                if part in name and not (Path(folder).name == "work" and not name.endswith(".partial")):
                    with suppress(FileNotFoundError):
                        info = os.stat(os.path.join(folder, name))
                        found[info.st_ino] = info.st_size
    return sum(found.values())
