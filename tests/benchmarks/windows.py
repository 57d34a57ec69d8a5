"""Token windows, against numpy's strided windows of the same tokens; ragged rows, against joining memory views.

Issue figures: 1,000,000 windows of 1,024 uint16: >= 0.7 of a strided np.take. Here that is indexing
`sliding_window_view(tokens, 1024)` with a batch of starts: np.take itself would first copy all windows, 2 GB.
20,000 ragged rows of 9 KB on average, batch 64: >= 0.5 of `b"".join` of memory views of the rows.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from bigconv import registry
from bigconv.block import Block, Ragged
from bigconv.runtime import BatchOrder
from bigconv.runtime.windows import WindowDataset
from bigconv.schema import Field, Schema
from bigconv.testing.store_suite import write
from bigconv.view.table import StoreView
from tests.benchmarks._timing import rates, table

SUFFIXES = (".mmap", ".h5", ".zarr", ".lmdb")
TOKENS, LENGTH, STRIDE = 64_000_000, 1024, 48
REPEATS = 9
TURN = 204_800  # windows: 50 ms, in which threads that slept while others had their turn are soon awake


def stores(folder: Path, field: Field, column: Ragged) -> dict[str, Path]:
    made = {}
    for suffix in SUFFIXES:
        made[suffix] = folder / f"out{suffix}"
        store = registry.load("store", registry.store_for(made[suffix]))()
        write(made[suffix], store, Block(Schema((field,)), {field.name: column}), 1000)
    return made


def each(take: Callable[[np.ndarray], object], count: int, batch: int, times: int) -> Callable[[], int]:
    """Take some batches of a shuffled epoch, worked out before; the next call goes on where this one ended."""
    numbers = itertools.cycle(list(BatchOrder(count, batch, drop_last=True)))

    def run() -> int:
        for rows in itertools.islice(numbers, times):
            take(rows)
        return times * batch

    return run


def loaded(dataset: WindowDataset, batch: int, times: int, own: bool) -> Callable[[], int]:
    """Batches of one shuffled epoch of a DataLoader without workers."""
    options = {"sampler": BatchOrder(dataset, batch), "batch_size": None} if own else {"shuffle": True}
    epochs = itertools.chain.from_iterable(
        iter(DataLoader(dataset, **({"batch_size": batch} | options))) for _ in itertools.count()
    )

    def run() -> int:
        return sum(len(b["tokens"]) for b in itertools.islice(epochs, times))

    return run


def windows(folder: Path, batch: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50_000, TOKENS, dtype=np.uint16)
    cuts = np.unique(rng.integers(1, TOKENS, 16_000))
    offsets = np.concatenate([[0], cuts, [TOKENS]]).astype(np.int64)
    made = stores(folder, Field("tokens", "uint16", (None,), "tokens"), Ragged(tokens, offsets))
    plain = np.lib.stride_tricks.sliding_window_view(
        np.load(made[".mmap"] / "tokens.values.npy", mmap_mode="r"), LENGTH
    )
    starts = np.arange(0, TOKENS - LENGTH + 1, STRIDE)
    times = TURN // batch
    ways = {"strided windows of np.memmap": each(lambda rows: plain[starts[rows]], len(starts), batch, times)}
    for suffix, path in made.items():
        stream = WindowDataset(path, "tokens", LENGTH, STRIDE, cross_documents=True)
        inside = WindowDataset(path, "tokens", LENGTH, STRIDE)
        assert np.array_equal(stream[[9, 1_000_000]]["tokens"].numpy(), plain[starts[[9, 1_000_000]]])
        ways[f"{suffix} inside documents"] = each(inside.__getitems__, len(inside), batch, times)
        ways[f"{suffix} across documents"] = each(stream.__getitems__, len(stream), batch, times)
        ways[f"{suffix} inside, DataLoader, own order"] = loaded(inside, batch, times, own=True)
        ways[f"{suffix} inside, DataLoader, stock sampler"] = loaded(inside, batch, times, own=False)
    title = f"{len(inside):,} windows of {LENGTH:,} uint16 in {len(offsets) - 1:,} documents, batch {batch:,}"
    table(title, rates(ways, REPEATS), next(iter(ways)), "windows/s")


def ragged(folder: Path) -> None:
    rng = np.random.default_rng(0)
    offsets = np.append(0, np.cumsum(rng.integers(1_000, 17_000, 20_000)))
    values = np.frombuffer(rng.bytes(int(offsets[-1])), np.uint8)
    made = stores(folder, Field("a", "uint8", (None,)), Ragged(values, offsets))
    mapped = memoryview(np.load(made[".mmap"] / "a.values.npy", mmap_mode="r"))
    bounds = offsets.tolist()
    ways = {
        "join of memory views": each(
            lambda rows: b"".join([mapped[bounds[i] : bounds[i + 1]] for i in rows.tolist()]), 20_000, 64, 200
        )
    }
    ways |= {f"StoreView.take {suffix}": each(StoreView([path]).take, 20_000, 64, 200) for suffix, path in made.items()}
    table("20,000 ragged rows of 9 KB, batch 64", rates(ways, REPEATS), next(iter(ways)))


def main() -> None:
    for batch in (256, 1024):
        with tempfile.TemporaryDirectory() as name:
            windows(Path(name), batch)
    with tempfile.TemporaryDirectory() as name:
        ragged(Path(name))


if __name__ == "__main__":
    main()
