"""One flipped bit anywhere in a store, a file cut short or longer: found by --verify (or refused), never a signal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bigconv import fsio
from bigconv.conversion.shard import shard
from bigconv.errors import StoreError
from bigconv.schema import Field, Schema
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.memmap import Memmap
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView
from tests.torture import Case
from tests.torture._child import streamed
from tests.torture._runs import workspace

SCHEMA = Schema((Field("x", "uint8", (33,)), Field("t", "uint16", (None,)), Field("y", "int64")))
ROWS = 24
PART = 0.2
#: Small, so that every byte can be tried: the index of a Zarr shard takes 16 bytes a chunk that it could hold.
STORES = {
    "a.mmap": Memmap(),
    "a.h5": Hdf5(),
    "a.zarr": Zarr(chunk_bytes=256, shard_bytes=512),
    "a.lmdb": Lmdb(),
    "zstd.h5": Hdf5(compress="zstd", chunk=8),
    "lz4.h5": Hdf5(compress="lz4", chunk=8),
    "zstd.zarr": Zarr(chunk=8, shard_bytes=128, compress="zstd"),
    "lz4.zarr": Zarr(chunk=8, shard_bytes=128, compress="lz4"),
    "zstd.lmdb": Lmdb(compress="zstd"),
    "lz4.lmdb": Lmdb(compress="lz4"),
}


def run(scale: float) -> Iterator[Case]:
    """At scale 1 every byte and every length of plain stores, a part of them of compressed and sharded ones."""
    with workspace() as root:
        for name, store in STORES.items():
            path = root / name
            write(path, store, cases.block(SCHEMA, ROWS), 16)
            yield from streamed(partial(_damaged, path, scale if name.startswith("a.") else scale * PART))
        shard([root / "a.mmap"], root / "parts", shards=2, to="hdf5", workers=0)
        yield from streamed(partial(_damaged, root / "parts", scale * PART))


def _damaged(path: Path, scale: float) -> Iterator[Case]:
    files = [path] if path.is_file() else [path / name for name in fsio.files_below(path)]
    rng = np.random.default_rng(0)
    for file in files:
        whole = file.read_bytes()
        for at in _some(len(whole), scale, rng):
            changed = bytearray(whole)
            changed[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            yield Case(f"{path.name} {file.name} byte {at}", "" if _found(path) else "not found")
        for size in sorted({*_lengths(len(whole)), *_some(len(whole), scale, rng)}):
            file.write_bytes(whole[:size])
            yield Case(f"{path.name} {file.name} cut to {size}", "" if _found(path) else "not found")
        for more in (b"\0", b"x", bytes(8), bytes(4096), whole):
            file.write_bytes(whole + more)
            yield Case(f"{path.name} {file.name} with {len(more)} bytes more", "" if _found(path) else "not found")
        file.write_bytes(whole)
    yield Case(f"{path.name} as it was", "" if verify(open_store(path)) == [] else "damage found in a whole store")


def _some(size: int, scale: float, rng: np.random.Generator) -> list[int]:
    """Numbers below `size`: a part of them, all at scale 1."""
    wanted = round(size * scale)
    return list(range(size)) if wanted >= size else sorted(rng.choice(size, max(2, wanted), replace=False).tolist())


def _lengths(size: int) -> set[int]:
    """Lengths of each class: nothing, within a signature, a header, a page, and just short of the whole."""
    ends = {0, 1, 7, 8, 9, 47, 48, 127, 128, 4095, 4096, 4097, size // 2, size - 4096, size - 8, size - 1}
    return {n for n in ends if 0 <= n < size}


def _found(path: Path) -> bool:
    """Whether damage is refused or found; a read that goes through must not be wrong unnoticed or end the process."""
    try:
        opened = open_store(path)
        try:
            StoreView.of([opened]).take(np.arange(ROWS))
        except StoreError:
            return True
        return bool(verify(opened))
    except StoreError:
        return True
