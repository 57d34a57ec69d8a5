"""Data that the tests of this folder read, and what the cache takes on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import bigconv

ROWS, PARTS = 800, 8
BUCKET = "bucket"


def raw(folder: Path, rows: int = ROWS, seed: int = 0) -> Path:
    """`x.npy`: int64 `[rows, 50]`; the first of each row is its number."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 1 << 40, (rows, 50))
    values[:, 0] = np.arange(rows)
    np.save(folder / "x.npy", values)
    return folder / "x.npy"


def parts(folder: Path, **options: Any) -> Path:
    """A local sharded directory."""
    bigconv.convert(raw(folder), folder / "train", shards=PARTS, workers=0, **options)
    return folder / "train"


def put(local: Path, key: str) -> str:
    """Copy a folder or file into the bucket as it is; its URL."""
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).put(str(local), f"{BUCKET}/{key}", recursive=local.is_dir())
    return f"s3://{BUCKET}/{key}"


def keys(prefix: str) -> dict[str, str]:
    """Name below a prefix of the bucket -> entity tag."""
    import s3fs

    found = s3fs.S3FileSystem(use_listings_cache=False).find(f"{BUCKET}/{prefix}", detail=True)
    return {key.removeprefix(f"{BUCKET}/{prefix}").lstrip("/"): str(info["ETag"]) for key, info in found.items()}


def occupied(cache: Path) -> int:
    """Bytes of parts in a cache, whole and on their way."""
    total = 0
    for folder, _, files in os.walk(cache):
        for name in files:
            if "part-" in name and not (Path(folder).name == "work" and not name.endswith(".partial")):
                try:
                    total += os.stat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    continue
    return total
