"""The arrays inside a file or folder, as they lie there: shape, chunks, filters, bytes; of any store, ours or foreign.

Only metadata is read. Links that lead elsewhere (HDF5 external links, external storage, virtual datasets, symbolic
links) are told of and never followed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigconv import registry

MOST = 10_000  # datasets that are listed; more is no store of samples


@dataclass(frozen=True)
class Dataset:
    """One array, or one table of records.

    `name`: path inside the file or folder, with /; empty for the whole of it. `chunks`: items of a chunk along each
    axis, None where it lies in one piece. `filters`: codecs in the order they were applied. `bytes`: decoded; `stored`:
    on disk; None where only reading tells. `notes`: what else matters (`vlen`, `external`, `virtual`, `link`).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None = None
    filters: tuple[str, ...] = ()
    bytes: int | None = None
    stored: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Bytes decoded to one stored."""
        return self.bytes / self.stored if self.bytes and self.stored else None

    @property
    def private(self) -> bool:
        """Whether bigconv keeps it for itself, beside the fields."""
        return self.name.startswith("_bigconv/")

    @property
    def chunk_bytes(self) -> int | None:
        if self.chunks is None or self.bytes is None:
            return None
        items = math.prod(self.shape)
        return math.prod(self.chunks) * self.bytes // items if items else None

    @property
    def chunk_count(self) -> int:
        if self.chunks is None:
            return 1
        return math.prod(-(-n // max(1, c)) for n, c in zip(self.shape, self.chunks, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "chunks": None if self.chunks is None else list(self.chunks),
            "filters": list(self.filters),
            "bytes": self.bytes,
            "stored": self.stored,
            "notes": list(self.notes),
        }


def container(path: Path) -> str | None:
    """`hdf5`, `zarr`, `lmdb`, `memmap`, `npy`, or None for what holds no arrays of its own."""
    found = registry.recognise(path)
    if found is None and path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        return "npy"
    return found


def datasets(path: Path, files: Mapping[str, int] | None = None) -> list[Dataset]:
    """All arrays of one file or store, by name. Raises `StoreError` or `InputError` for a damaged one.

    `files`: bytes of each file below the path, of a Zarr store of which only metadata is here.
    """
    kind = container(path)
    if kind == "hdf5":
        from bigconv.inspection.hdf5_tree import tree

        return tree(path)
    if kind == "zarr":
        from bigconv.inspection import zarr_tree

        return zarr_tree.tree(path, files)
    if kind == "lmdb":
        from bigconv.inspection.lmdb_tree import tree

        return tree(path)
    if kind in ("memmap", "npy"):
        from bigconv.sources.npy import array_files

        if kind == "npy":
            return _arrays(array_files(path))
        names = sorted(name for name in os.listdir(path) if name.endswith(".npy"))
        return [one for name in names for one in _arrays(array_files(path / name), name.removesuffix(".npy"))]
    return []


def _arrays(files: Sequence[Any], name: str = "") -> list[Dataset]:
    found = []
    for file in files:
        mapped = file.offset is not None or file.stored is not None
        stored = file.nbytes if mapped else None
        packed = () if mapped else ("deflate",)
        note = ("fortran",) if file.fortran and len(file.shape) > 1 else ()
        dtype = _dtype(file.dtype)
        found.append(Dataset(file.member or name, dtype, file.shape, None, packed, file.nbytes, stored, note))
    return found


def _dtype(descr: str) -> str:
    import numpy as np

    return str(np.dtype(descr))
