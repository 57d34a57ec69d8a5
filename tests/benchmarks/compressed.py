"""Compressed and cold stores: size, and speed of random and chunk-aware reading, against plain libraries.

Ratios within one run: each compressed store against the uncompressed one of its kind, against h5py and zarr-python
reading the same file, and an exact shuffle against a chunk-aware one with its measured unevenness (1 is an exact
shuffle; see `quality` in order.py). Cold: files that were put out of the page cache, with read-ahead and without.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  gives h5py the filter
import numpy as np
import zarr

import bigconv
from bigconv.bench.residency import drop, resident
from bigconv.fsio import files_below
from bigconv.runtime import BatchOrder, Loader, StoreDataset
from bigconv.view import readahead
from tests.benchmarks._timing import rates, table

BATCH = 256
QUICK = "--quick" in sys.argv


def kinds(rows: int) -> Iterator[tuple[str, Any]]:
    """Rows of 12 KiB that compress as such data do."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 6, (rows, 14, 14), dtype=np.uint8)
    yield "masks uint8", coarse.repeat(8, 1).repeat(8, 2)[:, :96, :]
    walk = np.cumsum(rng.normal(0, 1, (rows, 3072)), axis=1) + 100
    yield "signals float32", walk.astype(np.float32)
    yield "counts int32", rng.poisson(20, (rows, 3072)).astype(np.int32)


def size(path: Path) -> int:
    return sum(files_below(path).values()) if path.is_dir() else path.stat().st_size


def batches(view: Any, order: np.ndarray) -> Callable[[], int]:
    def run() -> int:
        for a in range(0, len(order), BATCH):
            view.take_field("x", order[a : a + BATCH])
        return len(order)

    return run


def plain(array: Any, some: np.ndarray) -> Callable[[], int]:
    """Row by row, as the library reads them."""

    def run() -> int:
        for row in some.tolist():
            array[row]
        return len(some)

    return run


def warm(folder: Path) -> None:
    rows = 2000 if QUICK else 8000  # 96 MiB, more than decoded chunks are kept
    for name, x in kinds(rows):
        np.save(folder / "x.npy", x)
        order = np.random.default_rng(1).permutation(rows)
        ways: dict[str, Callable[[], int]] = {}
        sizes = {}
        opened = []
        for suffix in (".h5", ".zarr", ".lmdb"):
            for compress in ("none", "lz4", "zstd"):
                path = folder / f"{compress}{suffix}"
                bigconv.convert(folder / "x.npy", path, compress=compress, overwrite=True, workers=0)
                sizes[f"{suffix} {compress}"] = size(path)
                opened.append(bigconv.open(path))
                ways[f"{suffix} {compress}"] = batches(opened[-1], order)
            if suffix == ".h5":
                ways["  h5py, the zstd one, row by row"] = plain(h5py.File(path)["x"], order)
            elif suffix == ".zarr":
                ways["  zarr-python, the zstd one, row by row"] = plain(
                    zarr.open_group(path, mode="r")["x"], order[:200]
                )
        table(f"{name}: {rows:,} rows of 12 KiB, batches of {BATCH} in random order", rates(ways, 3), ".h5 none")
        told = ", ".join(f"{key} {x.nbytes / nbytes:.2f}" for key, nbytes in sizes.items() if "none" not in key)
        print(f"  ratios: {told}")
        for view in opened:
            view.close()


def chunked(folder: Path) -> None:
    """Small rows, many a chunk: what an exact shuffle costs, and what it is worth."""
    rows = 200_000 if QUICK else 400_000
    x = np.cumsum(np.random.default_rng(0).integers(-3, 4, (rows, 128)), axis=1).astype(np.int32)
    label = np.arange(rows) * 10 // rows  # sorted by class, the hardest case
    np.save(folder / "x.npy", x)
    path = folder / "small.zarr"
    bigconv.convert(folder / "x.npy", path, compress="lz4", overwrite=True)
    bigconv.convert(folder / "x.npy", folder / "plain.zarr", overwrite=True)
    batch, ways, quality = 1024, {}, {}
    dataset = StoreDataset(path)
    chunk = dataset.chunk_rows

    def epoch(dataset: StoreDataset, window: int | None) -> Callable[[], int]:
        def run() -> int:
            return sum(len(b["x"]) for b in Loader(dataset, None, sampler=BatchOrder(dataset, batch, window=window)))

        return run

    ways["uncompressed, exact shuffle"] = epoch(StoreDataset(folder / "plain.zarr"), None)
    ways["lz4, exact shuffle"] = epoch(dataset, None)
    for chunks in (256, 1024, 4096):
        ways[f"lz4, windows of {chunks:,} chunks"] = epoch(dataset, chunks * chunk)
        quality[chunks] = unevenness(label, BatchOrder(dataset, batch, window=chunks * chunk).order(0), batch)
    table(f"{rows:,} rows of 512 B, {chunk} a chunk, batches of {batch:,}, Loader", rates(ways, 3), next(iter(ways)))
    exact = unevenness(label, BatchOrder(dataset, batch).order(0), batch)
    told = ", ".join(f"{n:,} chunks {q:.2f} (stated {1 + batch / n:.2f})" for n, q in quality.items())
    print(f"  unevenness of classes, rows sorted by class: exact {exact:.2f}, windows of {told}")


def unevenness(label: np.ndarray, order: np.ndarray, batch: int) -> float:
    """Variance of class counts in a batch over that of random draws."""
    found = label[order[: len(order) // batch * batch].reshape(-1, batch)]
    counts = np.stack([(found == c).sum(axis=1) for c in range(10)])
    return float(counts.var(axis=1).mean() / (batch * 0.1 * 0.9))


def cold(folder: Path) -> None:
    """Every way reads its own part of the store once, after it was put out of the page cache."""
    rows = 20_000 if QUICK else 60_000
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 255, (rows, 12288), dtype=np.uint8))
    path = folder / "cold.h5"
    bigconv.convert(folder / "x.npy", path, overwrite=True)
    (folder / "x.npy").unlink()
    calls = readahead._calls
    order = np.random.default_rng(2).permutation(rows)[:4096]

    def read(ahead: bool, loader: bool) -> Callable[[], int]:
        def run() -> int:
            readahead._calls = calls if ahead else lambda: None  # type: ignore[assignment,return-value]
            drop([path])
            there = resident([path])
            assert there is None or there.cold, there
            dataset = StoreDataset(path)
            parts = [order[a : a + BATCH] for a in range(0, len(order), BATCH)]
            made = Loader(dataset, None, sampler=parts) if loader else map(dataset.__getitem__, parts)
            return sum(len(b["x"]) for b in made)

        return run

    ways = {
        "plain map": read(False, False),
        "read-ahead of the batch": read(True, False),
        "Loader, plain map": read(False, True),
        "Loader, read-ahead": read(True, True),
    }
    table(f"cold: {len(order):,} of {rows:,} rows of 12 KiB", rates(ways, 3, warm=False), "plain map")
    readahead._calls = calls


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        warm(Path(name))
    with tempfile.TemporaryDirectory() as name:
        chunked(Path(name))
    with tempfile.TemporaryDirectory() as name:
        cold(Path(name))


if __name__ == "__main__":
    main()
