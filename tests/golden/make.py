"""Makes the golden stores of a format version: `python tests/golden/make.py tests/golden/v1`, once, with its release.

They are never made again: every later version must read what the first one wrote. `test_golden.py` holds their values.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, execute
from bigconv.sources.array_folder import ArrayFolder
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.memmap import Memmap
from bigconv.stores.zarr import Zarr

#: Zarr in tiny chunks and shards: awkward, and small, as a shard's index takes 16 bytes a chunk that it could hold.
STORES = {".mmap": Memmap(), ".h5": Hdf5(), ".zarr": Zarr(chunk_bytes=16, shard_bytes=64), ".lmdb": Lmdb()}
ROWS = 5
TEXTS = ("", "plain", "naïve ☃", "two\nlines", "x" * 40)
MTIME = 1_000_000_000  # seconds: the same wherever this runs


def samples(folder: Path) -> Path:
    """One `.npz` a sample: fixed, ragged in one axis and in two, text."""
    rng = np.random.default_rng(20240229)
    folder.mkdir()
    for i in range(ROWS):
        path = folder / f"{i}.npz"
        np.savez(
            path,
            flag=np.bool_(rng.integers(2)),
            grid=rng.integers(0, 256, (2, 3)).astype(np.uint8),
            half=rng.normal(size=2).astype(np.float16),
            picture=rng.integers(0, 256, (1 + i % 2, 2 + i % 3)).astype(np.uint8),
            text=np.array(TEXTS[i]),
            tokens=rng.integers(0, 50_000, i).astype(np.uint16),
            wave=(rng.normal(size=2) + 1j * rng.normal(size=2)).astype(np.complex64),
        )
        os.utime(path, (MTIME, MTIME))
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir()
    with tempfile.TemporaryDirectory() as name:
        source = ArrayFolder.find([samples(Path(name) / "raw")])
        for suffix, store in STORES.items():
            execute(Plan(source, (), source.schema, source.plan(), store), target / f"mixed{suffix}", Policy(0))
