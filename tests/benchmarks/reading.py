"""Reading fixed rows: every store against np.take into one warm buffer, and against the tutorials' datasets.

Issue figures: 20,000 x 12 KiB uint8, batch 256, shuffled, stock DataLoader(num_workers=0): every store >= 0.5 of
np.take; >= 3x the per-sample np.memmap dataset, >= 10x the per-sample h5py one. 200,000 x 512 B float32 rows, batch
1,024, through our own batch order: >= 0.5.

np.take is one thread. A batch is gathered by all the threads that torch has in the process, as many as there are cores
if nobody says otherwise; the rows "one torch thread" show what is left without them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import bigconv
from bigconv.runtime import BatchOrder, Loader, StoreDataset
from tests.benchmarks._timing import rates, table

SUFFIXES = (".mmap", ".h5", ".zarr", ".lmdb")


class PerSampleMemmap(Dataset):
    """What tutorials teach: one np.memmap, sample by sample."""

    def __init__(self, path, shape, dtype):
        self.x = np.memmap(path, dtype=dtype, mode="r", shape=shape)
        self.y = np.arange(len(self.x))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return torch.from_numpy(np.array(self.x[i])), int(self.y[i])


class PerSampleH5(Dataset):
    """What tutorials teach: one h5py dataset, sample by sample."""

    def __init__(self, path):
        self.path, self.x = path, None
        with h5py.File(path) as file:
            self.n = len(file["x"])

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if self.x is None:
            file = h5py.File(self.path)
            self.x, self.y = file["x"], file["y"]
        return torch.from_numpy(self.x[i]), int(self.y[i])


def epoch(loader) -> int:
    seen = 0
    for batch in loader:
        seen += len(batch["x"] if isinstance(batch, dict) else batch[0])
    return seen


def limit(x, batch, seed=0):
    """A shuffled epoch of np.take into one buffer that is already there."""
    order = np.random.default_rng(seed).permutation(len(x))
    out = np.empty((batch, *x.shape[1:]), x.dtype)

    def run() -> int:
        for i in range(0, len(x) - batch + 1, batch):
            np.take(x, order[i : i + batch], axis=0, out=out, mode="clip")
        return len(x) // batch * batch

    return run


def stores(folder: Path, x) -> dict[str, Path]:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.arange(len(x)))
    made = {}
    for suffix in SUFFIXES:
        made[suffix] = folder / f"out{suffix}"
        bigconv.convert([folder / "x.npy", folder / "y.npy"], made[suffix])
    return made


def alone(way):
    """The same with one torch thread."""

    def run() -> int:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return way()
        finally:
            torch.set_num_threads(before)

    return run


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = rng.integers(0, 255, (20_000, 3, 64, 64), dtype=np.uint8)
        made = stores(folder, x)
        x.tofile(folder / "x.bin")
        loaders = {
            "per-sample np.memmap": DataLoader(PerSampleMemmap(folder / "x.bin", x.shape, "u1"), 256, shuffle=True),
            "per-sample h5py": DataLoader(PerSampleH5(made[".h5"]), 256, shuffle=True),
        }
        for suffix, path in made.items():
            loaders[f"StoreDataset {suffix}"] = DataLoader(StoreDataset(path, fields=("x", "y")), 256, shuffle=True)
        ways = {"np.take into one warm buffer": limit(np.load(made[".mmap"] / "x.npy", mmap_mode="r"), 256)}
        ways |= {key: (lambda loader=loader: epoch(loader)) for key, loader in loaders.items()}
        ways |= {f"{key}, one torch thread": alone(ways[key]) for key in loaders if key.startswith("StoreDataset")}
        found = rates(ways)
        table("20,000 x 12 KiB uint8, batch 256, shuffled, DataLoader(num_workers=0)", found, next(iter(ways)))
        for peer in ("per-sample np.memmap", "per-sample h5py"):
            ratios = ", ".join(f"{s} {found[f'StoreDataset {s}'] / found[peer]:.1f}x" for s in made)
            print(f"  against {peer}: {ratios}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = rng.standard_normal((200_000, 128)).astype(np.float32)
        made = stores(folder, x)
        ways = {"np.take into one warm buffer": limit(np.load(made[".mmap"] / "x.npy", mmap_mode="r"), 1024)}
        for suffix, path in made.items():
            dataset = StoreDataset(path, fields=["x"])
            loader = DataLoader(dataset, sampler=BatchOrder(dataset, 1024), batch_size=None)
            ways[f"DataLoader {suffix}, own order"] = lambda loader=loader: epoch(loader)
            own = Loader(dataset, 1024, shuffle=True, threads=0)
            ways[f"Loader(threads=0) {suffix}"] = lambda own=own: epoch(own)
            ways[f"Loader(threads=0) {suffix}, one torch thread"] = alone(ways[f"Loader(threads=0) {suffix}"])
        table("200,000 x 512 B float32, batch 1,024, own batch order", rates(ways, 9), next(iter(ways)))


if __name__ == "__main__":
    main()
