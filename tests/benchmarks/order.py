"""Orders: time to the first batch of 100 million rows, cost of a batch's row numbers, quality of windowed shuffles.

Issue figures: opening 100 million rows and starting an exact shuffled epoch under 100 ms beyond imports and under 10
MB; row numbers of a batch of 1,024 in under 10 us.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np

import bigconv
from bigconv.runtime.order import BatchOrder
from bigconv.runtime.samplers import ClassBalancedSampler, WeightedSampler
from bigconv.view.order import Mixed, Permutation, epoch_order
from bigconv.view.partition import Lane, Walk

MANY = 100_000_000
BATCH = 1024

OPENING = """
import sys, time
from pathlib import Path
from bigconv.runtime import StoreDataset
from bigconv.runtime.order import BatchOrder
def resident():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])
before = resident()
start = time.perf_counter()
dataset = StoreDataset(sys.argv[1])
batch = dataset[next(iter(BatchOrder(dataset, 1024)))]
print(time.perf_counter() - start, resident() - before)
"""


def opening() -> None:
    """A store of 100 million rows, in a process of its own: open, shuffle, first batch."""
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "x.npy", np.zeros(MANY, np.uint8))
        store = Path(name) / "out.mmap"
        bigconv.convert(Path(name) / "x.npy", store)
        runs = [subprocess.check_output([sys.executable, "-c", OPENING, str(store)], text=True) for _ in range(3)]
    seconds, kib = zip(*(map(float, run.split()) for run in runs), strict=True)
    print("100,000,000 rows: StoreDataset, exact shuffle and the first batch of 1,024, beyond imports")
    milliseconds, mib = statistics.median(seconds) * 1e3, statistics.median(kib) / 1024
    print(f"  {milliseconds:.1f} ms, {mib:.1f} MiB more memory of its own")


def first_batch() -> None:
    print("First batch of an exact shuffle, order alone")
    ways = {
        "BatchOrder, 100,000,000 rows": lambda: next(iter(BatchOrder(MANY, BATCH))),
        "BatchOrder windowed, 100,000,000 rows": lambda: next(iter(BatchOrder(MANY, BATCH, window=1 << 20))),
        "numpy permutation, 10,000,000 rows": lambda: np.random.default_rng(0).permutation(MANY // 10)[:BATCH],
    }
    for name, way in ways.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        tracemalloc.start()
        way()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"  {name:40s} {statistics.median(times) * 1e3:10.2f} ms {peak / 2**20:10.2f} MiB")


def a_batch() -> None:
    """Row numbers of a batch within an epoch, median of 5 stretches of up to 1,000 batches."""

    def mixed(rows: int) -> Mixed:
        half = rows // 2
        return Mixed([half, half], [0.7, 0.3], rows, lambda s, t: epoch_order([half], True, 0, 0, s, t), 0, 0)

    def batches(order):
        return Walk.start(len(order), BATCH, Lane()).batches(order)

    def permuted(rows: int):
        order = np.random.default_rng(0).permutation(rows)
        return (order[i : i + BATCH] for i in range(0, rows, BATCH))

    print("Row numbers of a batch of 1,024, us (what is prepared per epoch included)")
    rng = np.random.default_rng(0)
    weights, labels = rng.random(1_000_000), rng.integers(0, 1000, 1_000_000)
    ways = {}
    for rows in (20_000, 1_000_000, MANY):
        ways[f"exact, {rows:,} rows"] = lambda rows=rows: iter(BatchOrder(rows, BATCH))
        if rows < MANY:
            ways[f"  numpy permutation, {rows:,} rows"] = lambda rows=rows: permuted(rows)
    ways |= {
        "windowed, 100,000,000 rows": lambda: iter(BatchOrder(MANY, BATCH, window=1 << 20)),
        "two stores mixed, 100,000,000 rows": lambda: batches(mixed(MANY)),
        "rank 3 of 8, 100,000,000 rows": lambda: iter(BatchOrder(MANY, BATCH, rank=3, world_size=8)),
        "WeightedSampler, 1,000,000 rows": WeightedSampler(weights, BATCH).__iter__,
        "ClassBalancedSampler, 1,000 classes": ClassBalancedSampler(labels, BATCH).__iter__,
    }
    for name, way in ways.items():
        found = []
        for _ in range(5):
            start = time.perf_counter()
            count = sum(1 for _ in islice(way(), 1000))
            found.append((time.perf_counter() - start) / count)
        print(f"  {name:40s} {statistics.median(found) * 1e6:8.2f}")


def quality() -> None:
    """A store sorted by its 10 classes, the hardest case: how far batches are from random draws of the whole.

    `unevenness`: variance of class counts in a batch over that of an exact shuffle (1 is ideal); `same chunk`: of two
    rows of a batch, how much likelier than in an exact shuffle they come from one chunk; `displaced`: mean way of a
    row over that in an exact shuffle.
    """
    rows, chunk = 1_000_000, 256
    label = np.arange(rows) * 10 // rows
    print("Shuffle quality: 1,000,000 rows sorted by 10 classes, chunks of 256 rows, batches of 1,024")
    print(f"  {'order':28s} {'rows held':>10s} {'unevenness':>11s} {'same chunk':>11s} {'displaced':>10s}")
    orders = {"numpy permutation": None, "exact": rows}
    orders |= {f"window {share:.1%}": int(rows * share) for share in (0.3, 0.1, 0.03, 0.01, 0.003)}
    for name, window in orders.items():
        uneven, same, way = [], [], []
        for epoch in range(3):
            if window is None:
                found = np.random.default_rng(epoch).permutation(rows)
            else:
                order = epoch_order([rows], True, 0, epoch, window=window, chunk=chunk)
                found = np.concatenate(list(Walk.start(rows, BATCH, Lane()).batches(order)))
            batches = found[: rows // BATCH * BATCH].reshape(-1, BATCH)
            counts = np.stack([(label[batches] == c).sum(axis=1) for c in range(10)])
            uneven.append(counts.var(axis=1).mean() / (BATCH * 0.1 * 0.9))
            chunks = np.sort(batches // chunk, axis=1)
            pairs = sum((chunks[:, k:] == chunks[:, :-k]).sum() for k in range(1, 257)) / len(batches)
            same.append(pairs / (BATCH * (BATCH - 1) / 2 * (chunk - 1) / (rows - 1)))
            way.append(np.abs(found - np.arange(rows)).mean() / (rows / 3))
        held = rows if window is None else window
        means = (statistics.mean(map(float, values)) for values in (uneven, same, way))
        print(f"  {name:28s} {held:10,d} {next(means):11.2f} {next(means):11.2f} {next(means):10.2f}")


def uniformity() -> None:
    """Deviation from uniform in standard deviations of chi-square, beside numpy's own."""
    print("Where 5,003 rows land over 300 epochs, 16 x 16 cells: standard deviations from uniform")
    rows, at = 5_003, np.arange(5_003)
    found = {"keyed network": np.zeros((16, 16)), "numpy permutation": np.zeros((16, 16))}
    for epoch in range(300):
        drawn = {"keyed network": Permutation(rows, 1, 0, epoch).at(at)}
        drawn["numpy permutation"] = np.random.default_rng(epoch).permutation(rows)
        for name, order in drawn.items():
            np.add.at(found[name], (at * 16 // rows, order * 16 // rows), 1)
    for name, counts in found.items():
        expected = counts.sum() / counts.size
        print(f"  {name:28s} {(((counts - expected) ** 2 / expected).sum() - 225) / np.sqrt(450):6.2f}")


def main() -> None:
    opening()
    first_batch()
    a_batch()
    quality()
    uniformity()


if __name__ == "__main__":
    main()
