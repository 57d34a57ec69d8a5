"""Batches into a training loop: DataLoader workers and the Loader's threads, against the gather and the decoder alone.

Issue figures: 20,000 x 12 KiB uint8, batch 256, shuffled: num_workers=2 >= 5x the per-sample np.memmap dataset with 2
workers; Loader(threads=2) >= 0.8 of np.take into a warm buffer while the consumer works elsewhere. 100,000 x 512 B
float32, batch 1,024: own order >= 0.7 of np.take, stock sampler >= 10x per-sample np.memmap. Photos decoded with 2
workers or threads: >= 0.9 of simplejpeg alone in 2 processes.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from torch.utils.data import DataLoader, Dataset

import bigconv
from bigconv.block import Block, Ragged
from bigconv.runtime import BatchOrder, Loader, StoreDataset
from bigconv.schema import Field, Schema
from bigconv.stores.hdf5 import Hdf5
from bigconv.testing.store_suite import write
from tests.benchmarks._timing import lasting, rates, table
from tests.benchmarks.reading import PerSampleMemmap, epoch, limit

LIMIT, TUTORIAL = "np.take into one warm buffer", "per-sample np.memmap"


def each(loaders: dict[str, object]) -> dict[str, Callable[[], int]]:
    return {name: lasting(lambda loader=loader: epoch(loader)) for name, loader in loaders.items()}


def workers(dataset, batch, kept=False, **options):
    return DataLoader(dataset, batch, shuffle=True, num_workers=2, persistent_workers=kept, **options)


class Nothing(Dataset):
    """No data: what is left is what starting, feeding and ending workers takes."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitems__(self, rows):
        return {"x": rows}


def busy(loader, seconds):
    """A consumer that works elsewhere: on another device, or in C without Python's lock."""

    def run() -> int:
        seen = 0
        for batch in loader:
            seen += len(batch["x"])
            time.sleep(seconds)
        return seen

    return run


def ratio(found, one, other, what) -> None:
    print(f"  {what}: {found[one] / found[other]:.2f}")


def fixed(folder: Path, x, batch: int) -> None:
    x.tofile(folder / "x.bin")
    np.save(folder / "x.npy", x)
    bigconv.convert([folder / "x.npy"], folder / "out.h5")
    dataset = StoreDataset(folder / "out.h5")
    tutorial = PerSampleMemmap(folder / "x.bin", x.shape, x.dtype)
    ways = {LIMIT: lasting(limit(np.load(folder / "x.npy", mmap_mode="r"), batch))}
    alone = rates(ways)[LIMIT]
    ways |= each(
        {
            TUTORIAL: DataLoader(tutorial, batch, shuffle=True),
            "StoreDataset, stock sampler": DataLoader(dataset, batch, shuffle=True),
            "StoreDataset, own order": DataLoader(dataset, sampler=BatchOrder(dataset, batch), batch_size=None),
            "Loader(threads=0)": Loader(dataset, batch, shuffle=True, threads=0),
            "Loader(threads=1)": Loader(dataset, batch, shuffle=True, threads=1),
            "Loader(threads=2)": Loader(dataset, batch, shuffle=True),
        }
    )
    ways["Loader(threads=2), consumer half the time elsewhere"] = lasting(
        busy(Loader(dataset, batch, shuffle=True), batch / alone / 2)
    )
    found = rates(ways)
    # apart: starting processes protects all memory of this one against writing, and an epoch here is a few milliseconds
    found |= rates(
        each(
            {
                f"{TUTORIAL}, 2 new workers": workers(tutorial, batch),
                "StoreDataset, 2 new workers": workers(dataset, batch),
                "no data, 2 new workers": workers(Nothing(len(x)), batch, collate_fn=dict),
                f"{TUTORIAL}, 2 kept workers": workers(tutorial, batch, kept=True),
                "StoreDataset, 2 kept workers": workers(dataset, batch, kept=True),
            }
        )
    )
    table(f"{len(x):,} x {x[0].nbytes:,} B {x.dtype}, batch {batch:,}, shuffled, .h5", found, LIMIT)
    ratio(found, "StoreDataset, stock sampler", TUTORIAL, "stock sampler against per-sample, 0 workers")
    ratio(found, "no data, 2 new workers", f"{TUTORIAL}, 2 new workers", "2 new workers, no data, against per-sample")
    for kind in ("new", "kept"):
        both = (f"StoreDataset, 2 {kind} workers", f"{TUTORIAL}, 2 {kind} workers")
        ratio(found, *both, f"2 {kind} workers against per-sample with as many")


class TwoProcesses:
    """simplejpeg alone: two processes that decode, and drop the pixels."""

    def __init__(self, jpegs: list[bytes]) -> None:
        self.count, fork = len(jpegs), multiprocessing.get_context("fork")
        self.ends = []
        for half in (jpegs[::2], jpegs[1::2]):
            mine, its = fork.Pipe()
            fork.Process(target=self.decode, args=(its, half), daemon=True).start()
            self.ends.append(mine)

    @staticmethod
    def decode(end, jpegs) -> None:
        while end.recv():
            for jpeg in jpegs:
                simplejpeg.decode_jpeg(jpeg)
            end.send(True)

    def __call__(self) -> int:
        for end in self.ends:
            end.send(True)
        for end in self.ends:
            end.recv()
        return self.count

    def close(self) -> None:
        for end in self.ends:
            end.send(False)


def photos(folder: Path, count: int, height: int, width: int, batch: int) -> None:
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(count):
        coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
        smooth = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
        jpegs.append(
            simplejpeg.encode_jpeg(np.ascontiguousarray(smooth + rng.integers(0, 8, smooth.shape, np.uint8)), 90)
        )
    field = Field("x", "uint8", (None,), "encoded")
    rows = Ragged.of([np.frombuffer(jpeg, np.uint8) for jpeg in jpegs], field)
    write(folder / "photos.h5", Hdf5(), Block(Schema((field,)), {"x": rows}), 1000)
    dataset = StoreDataset(folder / "photos.h5")
    alone = "simplejpeg alone in 2 processes"
    reference = TwoProcesses(jpegs)
    ways: dict[str, Callable[[], int]] = {alone: reference}
    ways |= each(
        {
            "StoreDataset, 0 workers": DataLoader(dataset, batch, shuffle=True),
            "StoreDataset, 2 kept workers": workers(dataset, batch, kept=True),
            "Loader(threads=2)": Loader(dataset, batch, shuffle=True),
        }
    )
    kilobytes = sum(map(len, jpegs)) / count / 1024
    table(f"{count:,} JPEGs of {height}x{width}, {kilobytes:.0f} KiB, batch {batch}", rates(ways, 7), alone)
    reference.close()


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        fixed(Path(name), rng.integers(0, 255, (20_000, 3, 64, 64), dtype=np.uint8), 256)
    with tempfile.TemporaryDirectory() as name:
        fixed(Path(name), rng.standard_normal((100_000, 128)).astype(np.float32), 1024)
    with tempfile.TemporaryDirectory() as name:
        photos(Path(name), 1_280, 400, 500, 32)
    with tempfile.TemporaryDirectory() as name:
        photos(Path(name), 10_000, 32, 32, 256)


if __name__ == "__main__":
    main()
