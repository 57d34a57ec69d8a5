"""Conversion against what people write today and against the hardware: the speed table of the design.

Reach: 20,000 JPEGs of 32x32 -> .h5: >= 12x a Pillow loop into h5py, >= 0.6 of simplejpeg in two processes with the
result dropped; photos of about 500x400 -> 256x256 .h5: >= 3.5x and >= 0.8; a .npy of 2 GB -> .mmap, .h5, .zarr: >= 0.5
of cp + sync, .lmdb: >= 0.25.  `--quick` uses a fifth of the data.

bigconv is measured twice: the command as it is typed, start-up of interpreter, imports and fork server included, and
`bigconv.convert()` in a process that has called it before. The second is the like of the loop and of the limit, which
have started and imported everything too; the plan and the start of the workers are in both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import simplejpeg
from PIL import Image

import bigconv
from bigconv import fsio
from tests.benchmarks import _photos
from tests.benchmarks._timing import INSTALLED, rates, table

COMMAND = [sys.executable, "-c", "from bigconv.cli.app import main; main()", "convert"]


def files_of(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jpg"))


def pillow_loop(root: Path, size: int, out: Path) -> int:
    """What tutorials teach: open, resize, assign, one by one."""
    files = files_of(root)

    def load(path: Path) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR) if size else image)

    first = load(files[0])
    with h5py.File(out, "w") as file:
        images = file.create_dataset("image", (len(files), *first.shape), "u1")
        labels = file.create_dataset("label", (len(files),), "i8")
        for i, path in enumerate(files):
            images[i] = load(path)
            labels[i] = int(path.parent.name[-1])
    return len(files)


def _decode(paths: list[str], size: int) -> None:
    if size:
        import torch

        torch.set_num_threads(1)
    for path in paths:
        with open(path, "rb") as file:
            image = simplejpeg.decode_jpeg(file.read(), "RGB")
        if size:
            pixels = torch.from_numpy(image).reshape(1, *image.shape).permute(0, 3, 1, 2)
            torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def limit(pool: ProcessPoolExecutor, root: Path, size: int) -> int:
    """Decode (and resize) in two processes that are there already, the result dropped."""
    files = [str(p) for p in files_of(root)]
    list(pool.map(_decode, [files[0::2], files[1::2]], [size, size]))
    return len(files)


def command(source: Path, out: Path, items: int, arguments: Sequence[str] = ()) -> int:
    """The command as a user types it, start-up and all."""
    subprocess.run(
        [*COMMAND, str(source), *arguments, str(out), "-q"], check=True, env=INSTALLED, stdout=subprocess.DEVNULL
    )
    return items


def call(source: Path, out: Path, items: int, **options: Any) -> int:
    """The same in this process, where bigconv is imported and its fork server runs since the first call."""
    bigconv.convert(source, out, progress=False, **options)
    return items


def clear(folder: Path) -> None:
    """Remove what a way has made."""
    for out in folder.glob("out*"):
        fsio.remove(out)


def images(folder: Path, quick: bool) -> None:
    plans = [  # the one with torch first: what the fork server imports is settled when it starts
        ("10,000 photos of ~500x400 -> 256x256", 10_000, 400, 500, 60, 256),
        ("20,000 JPEGs of 32x32", 20_000, 32, 32, 0, 0),
    ]
    for title, count, height, width, spread, size in plans:
        count //= 5 if quick else 1
        root = _photos.folder(folder / f"raw{size}", count, height, width, spread)
        options: dict[str, Any] = {"resize": size, "fit": "stretch"} if size else {}
        steps = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with ProcessPoolExecutor(2) as pool:
            ways: dict[str, Callable[[], int]] = {
                "Pillow loop into h5py": lambda: pillow_loop(root, size, folder / "out_loop.h5"),
                "decode in 2 processes, dropped": lambda: limit(pool, root, size),
                "bigconv convert --workers 2": lambda: command(
                    root, folder / "out.h5", count, ["--workers", "2", *steps]
                ),
                "bigconv.convert(workers=2)": lambda: call(root, folder / "out.h5", count, workers=2, **options),
            }
            found = rates(ways, 3, after=lambda: clear(folder))
        table(title + (" (a fifth of them)" if quick else ""), found, "decode in 2 processes, dropped", "img/s")
        for name in list(ways)[2:]:
            print(f"  {name}: {found[name] / found['Pillow loop into h5py']:.1f}x the Pillow loop")
        shutil.rmtree(root)


def arrays(folder: Path, quick: bool) -> None:
    source = folder / "x.npy"
    rows = 40_000 if quick else 160_000
    made = np.lib.format.open_memmap(source, "w+", np.uint8, (rows, 12288))
    for i in range(0, rows, 8000):
        made[i : i + 8000] = np.random.default_rng(i).integers(0, 256, (8000, 12288), np.uint8)
    made.flush()
    del made
    os.sync()

    def copy() -> int:
        subprocess.run(["cp", str(source), str(folder / "out.npy")], check=True)
        subprocess.run(["sync", str(folder / "out.npy")], check=True)
        return rows * 12288

    ways: dict[str, Callable[[], int]] = {"cp + sync": copy}
    for suffix in (".mmap", ".h5", ".zarr", ".lmdb"):
        out = folder / f"out{suffix}"
        ways[f"bigconv convert x.npy out{suffix}"] = lambda out=out: command(source, out, rows * 12288)
        ways[f"bigconv.convert('x.npy', 'out{suffix}')"] = lambda out=out: call(source, out, rows * 12288)
    found = rates(ways, 3, after=lambda: clear(folder))
    table(f"a .npy of {rows * 12288 / 1e9:.1f} GB, 12 KiB rows", found, "cp + sync", "B/s")


def main() -> None:
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        images(Path(name), quick)
        arrays(Path(name), quick)


if __name__ == "__main__":
    main()
