"""Conversion against what people write today and against the hardware: the speed table of the design.

Reach: 20,000 JPEGs of 32x32 -> .h5: >= 12x a Pillow loop into h5py, >= 0.6 of simplejpeg in two processes with the
result dropped; photos of about 500x400 -> 256x256 .h5: >= 3.5x and >= 0.8; a .npy of 2 GB -> .mmap, .h5, .zarr: >= 0.5
of cp + sync, .lmdb: >= 0.25.  `--quick` uses a fifth of the data.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import simplejpeg
from PIL import Image

from bigconv import fsio
from tests.benchmarks import _photos
from tests.benchmarks._timing import rates, table

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
    out.unlink()
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


own_clock: list[float] = []  # rows/s that the command itself tells: without start-up, and with its plan made


def bigconv(arguments: list[str], out: Path, rows: int) -> int:
    """The command as a user types it, start-up of the interpreter and all."""
    done = subprocess.run([*COMMAND, *arguments, str(out), "-q", "--json"], check=True, stdout=subprocess.PIPE)
    own_clock.append(rows / json.loads(done.stdout)["seconds"])
    fsio.remove(out)
    return rows


def images(folder: Path, quick: bool) -> None:
    plans = [
        ("20,000 JPEGs of 32x32", 20_000, 32, 32, 0, 0),
        ("10,000 photos of ~500x400 -> 256x256", 10_000, 400, 500, 60, 256),
    ]
    for title, count, height, width, spread, size in plans:
        count //= 5 if quick else 1
        root = _photos.folder(folder / f"raw{size}", count, height, width, spread)
        steps = ["--resize", str(size), "--fit", "stretch"] if size else []
        with ProcessPoolExecutor(2) as pool:
            ways: dict[str, Callable[[], int]] = {
                "Pillow loop into h5py": lambda: pillow_loop(root, size, folder / "loop.h5"),
                "decode in 2 processes, dropped": lambda: limit(pool, root, size),
                "bigconv convert --workers 2": lambda: bigconv(
                    [str(root), "--workers", "2", *steps], folder / "o.h5", count
                ),
            }
            own_clock.clear()
            found = rates(ways, 3)
        found["  by its own clock, from the plan on"] = statistics.median(own_clock)
        table(title + (" (a fifth of them)" if quick else ""), found, "decode in 2 processes, dropped", "img/s")
        ours = found["bigconv convert --workers 2"]
        print(f"  against the Pillow loop: {ours / found['Pillow loop into h5py']:.1f}x")
        shutil.rmtree(root)


def arrays(folder: Path, quick: bool) -> None:
    source = folder / "x.npy"
    rows = 40_000 if quick else 160_000
    out = np.lib.format.open_memmap(source, "w+", np.uint8, (rows, 12288))
    for i in range(0, rows, 8000):
        out[i : i + 8000] = np.random.default_rng(i).integers(0, 256, (8000, 12288), np.uint8)
    out.flush()
    del out
    os.sync()

    def copy() -> int:
        subprocess.run(["cp", str(source), str(folder / "copy")], check=True)
        subprocess.run(["sync", str(folder / "copy")], check=True)
        (folder / "copy").unlink()
        return rows * 12288

    ways: dict[str, Callable[[], int]] = {"cp + sync": copy}
    for suffix in (".mmap", ".h5", ".zarr", ".lmdb"):
        ways[f"bigconv convert x.npy o{suffix}"] = lambda s=suffix: bigconv(
            [str(source)], folder / f"o{s}", rows * 12288
        )
    table(f"a .npy of {rows * 12288 / 1e9:.1f} GB, 12 KiB rows", rates(ways, 3), "cp + sync", "B/s")


def main() -> None:
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        images(Path(name), quick)
        arrays(Path(name), quick)


if __name__ == "__main__":
    main()
