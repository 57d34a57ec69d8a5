"""The same rows, shuffled, into a training loop: bigconv's four stores against what others use for it.

Issue figures: 20,000 x 12 KiB uint8, batch 256: with 0 workers and with 2 at least 8 times the best library.

Against the libraries litdata, mosaicml-streaming, webdataset and datasets, each as its documentation recommends for
arrays in local files, and against the datasets that people write themselves, sample by sample, over np.memmap and h5py.
What isn't installed is named and left out: `make bench-peers` installs all, `make bench` goes without. Every loader
first delivers one epoch that is held against the data: all rows once, all bytes right. Then all take turns.
`python -m tests.benchmarks peers ROWS` uses fewer rows.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from bigconv.runtime import Loader, StoreDataset
from tests.benchmarks._timing import lasting, rates
from tests.benchmarks.reading import PerSampleH5, PerSampleMemmap, stores

ROWS, BATCH, WORKERS = 20_000, 256, 2
REPEATS = 3  # turns of each: whole epochs, of which some take a quarter of a minute
TURN = 0.25  # seconds at least: an epoch of 40 ms behind one of seconds tells of cold caches
Loaders = dict[int, Any]  # by number of workers
X, Y = np.ndarray, np.ndarray


def kept(workers: int) -> dict[str, Any]:
    """Workers that live from epoch to epoch, for everybody: their start would hide what is compared."""
    if not workers:
        return {"num_workers": 0}
    return {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "fork"}


def plain(dataset: Any) -> Loaders:
    return {n: DataLoader(dataset, BATCH, shuffle=True, **kept(n)) for n in (0, WORKERS)}


# -- peers ------------------------------------------------------------------------------------------------------------


def litdata(folder: Path, x: X) -> Loaders:
    """README, "Speed up model training": `optimize` with chunks of 64 MB, `StreamingDataset`, `StreamingDataLoader`.

    Arrays of numpy, and 256 of them decoded together: the fastest of all its ways here.
    """
    os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
    import litdata

    out = str(folder / "litdata")
    sample, rows = partial(_sample, str(folder / "x.npy")), list(range(len(x)))
    litdata.optimize(sample, rows, out, chunk_bytes="64MB", num_workers=1, start_method="fork", verbose=False)

    def dataset() -> Any:
        return litdata.StreamingDataset(out, shuffle=True, drop_last=False, batch_decode=256)

    return {n: litdata.StreamingDataLoader(dataset(), batch_size=BATCH, **kept(n)) for n in (0, WORKERS)}


def _sample(path: str, i: int) -> dict[str, Any]:
    return {"x": np.array(np.load(path, mmap_mode="r")[i]), "y": i}


def streaming(folder: Path, x: X) -> Loaders:
    """Quick start: `MDSWriter`, and `StreamingDataset` in a DataLoader, both with the batch size."""
    # its package imports its image datasets, and they torchvision, which has to fit torch's build; not needed here
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of runs that were killed
    out = str(folder / "mds")
    shape = ",".join(map(str, x.shape[1:]))
    with MDSWriter(out=out, columns={"x": f"ndarray:{x.dtype}:{shape}", "y": "int"}) as writer:
        for i, row in enumerate(x):
            writer.write({"x": row, "y": i})

    def dataset() -> Any:
        return StreamingDataset(local=out, batch_size=BATCH, shuffle=True)

    return {n: DataLoader(dataset(), BATCH, **kept(n)) for n in (0, WORKERS)}


def webdataset(folder: Path, x: X) -> Loaders:
    """README: shuffled shards and a buffer of 1,000 samples; batches made in the workers."""
    import webdataset as wds

    (folder / "wds").mkdir()
    pattern = str(folder / "wds" / "%04d.tar")
    with wds.ShardWriter(pattern, maxcount=-(-len(x) // 8), verbose=0) as writer:
        for i, row in enumerate(x):
            writer.write({"__key__": f"{i:08d}", "x.npy": row, "y.cls": i})
    shards = sorted(map(str, (folder / "wds").glob("*.tar")))

    def dataset() -> Any:
        made = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode()
        return made.to_tuple("x.npy", "y.cls").batched(BATCH)

    return {n: wds.WebLoader(dataset(), batch_size=None, **kept(n)) for n in (0, WORKERS)}


def datasets(folder: Path, x: X) -> Loaders:
    """ "Use with PyTorch": arrays as `Array3D`, saved to disk and mapped, the torch format, whole batches at once."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HOME"] = str(folder / "hf")
    from datasets import Array3D, Dataset, Features, Value, load_from_disk

    features = Features({"x": Array3D(x.shape[1:], str(x.dtype)), "y": Value("int64")})
    rows = partial(_rows, str(folder / "x.npy"))
    Dataset.from_generator(rows, features=features).save_to_disk(folder / "arrow")
    own = {"columns": ["x"], "output_all_columns": True}  # without these and a dtype, bytes become int64
    return plain(load_from_disk(str(folder / "arrow")).with_format("torch", dtype=getattr(torch, str(x.dtype)), **own))


def _rows(path: str) -> Any:
    for i, row in enumerate(np.load(path, mmap_mode="r")):
        yield {"x": row, "y": i}


def memmap(folder: Path, x: X) -> Loaders:
    x.tofile(folder / "x.bin")
    return plain(PerSampleMemmap(folder / "x.bin", x.shape, x.dtype))


def h5py(folder: Path, x: X) -> Loaders:
    return plain(PerSampleH5(folder / "out.h5"))


PEERS: dict[str, tuple[str | None, Callable[[Path, X], Loaders]]] = {
    "litdata": ("litdata", litdata),
    "mosaicml-streaming": ("mosaicml-streaming", streaming),
    "webdataset": ("webdataset", webdataset),
    "datasets, torch format": ("datasets", datasets),
    "np.memmap, sample by sample": (None, memmap),
    "h5py, sample by sample": (None, h5py),
}


# -- measured ---------------------------------------------------------------------------------------------------------


def columns(batch: Any) -> tuple[Any, Any]:
    return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch[0], batch[1])


def epoch(loader: Any) -> int:
    return sum(len(columns(batch)[1]) for batch in loader)


def check(name: str, loader: Any, x: X) -> None:
    """All rows once, with their own bytes. Raises `ValueError`."""
    seen = np.zeros(len(x), np.int64)
    for batch in loader:
        rows, numbers = (np.asarray(column) for column in columns(batch))
        seen[numbers] += 1
        if rows.dtype != x.dtype or not np.array_equal(rows, x[numbers]):
            raise ValueError(f"{name}: wrong bytes")
    if not (seen == 1).all():
        raise ValueError(f"{name}: {(seen == 0).sum()} rows are missing, {(seen > 1).sum()} came more than once")


def peers(folder: Path, x: X) -> dict[str, Loaders]:
    made: dict[str, Loaders] = {}
    for name, (package, make) in PEERS.items():
        if package is not None:
            try:
                name = f"{name} {importlib.metadata.version(package)}"
            except importlib.metadata.PackageNotFoundError:
                print(f"  {name}: not installed, left out")
                continue
        made[name] = make(folder, x)
    return made


def main() -> None:
    rows = int(next((a for a in sys.argv[1:] if a.isdigit()), ROWS))
    x = np.random.default_rng(0).integers(0, 255, (rows, 3, 64, 64), dtype=np.uint8)
    print(f"{rows:,} x {x[0].nbytes:,} B {x.dtype}, batch {BATCH}, shuffled; kept workers")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = stores(folder, x)
        ours = {f"bigconv {suffix}": plain(StoreDataset(path)) for suffix, path in paths.items()}
        ours["bigconv .h5, Loader"] = {n: Loader(StoreDataset(paths[".h5"]), BATCH, True, threads=n) for n in (0, 2)}
        theirs = peers(folder, x)
        every = {(name, n): loader for name, loaders in (ours | theirs).items() for n, loader in loaders.items()}
        for (name, n), loader in every.items():
            check(f"{name}, {n} workers", loader, x)
        turns = {key: lasting(partial(epoch, loader), TURN) for key, loader in every.items()}
        found = rates(turns, REPEATS, warm=False)
        report(found, list(ours), list(theirs))
        every.clear()


def report(found: dict[tuple[str, int], float], ours: list[str], theirs: list[str]) -> None:
    print(f"  {'':34s} {'0 workers':>20s} {f'{WORKERS} workers':>22s}")
    for name in itertools.chain(ours, theirs):
        cells = (f"{found[name, n]:12,.0f} rows/s" for n in (0, WORKERS))
        print(f"  {name:34s} {'   '.join(cells)}")
    stock = [name for name in ours if "Loader" not in name]
    written = [name for name in theirs if "sample by sample" in name]
    groups = {"libraries": [name for name in theirs if name not in written], "hand-written datasets": written}
    for (kind, others), n in itertools.product(groups.items(), (0, WORKERS)):
        if others:
            best = max(others, key=lambda name: found[name, n])
            least, most = (choose(found[name, n] for name in stock) / found[best, n] for choose in (min, max))
            print(f"  {n} workers: the stores are {least:.1f} to {most:.1f} times the best of the {kind}, {best}")


if __name__ == "__main__":
    main()
