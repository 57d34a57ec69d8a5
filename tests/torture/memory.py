"""Peak private memory of a conversion stays flat from a little input to a lot, under a hard limit (`RLIMIT_DATA`).

Without workers into every store; with two, of arrays, and of images that they decode, all of one size and of many.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bigconv import fsio
from tests.torture import Case
from tests.torture._child import tree
from tests.torture._runs import SUFFIXES

MIB, GIB = 1 << 20, 1 << 30
SMALL, LARGE = 1.0, 8.0  # GiB, at scale 1
QUICK = 0.05  # below this scale two runs stand for all
CEILING, A_WORKER = 300 * MIB, 150 * MIB  # bytes of all processes together: without workers, and for each of them
FLAT = 1.1  # of the peak of a little input, in either direction
LOOK, GLANCE = 0.02, 0.001  # s between samples: of all that the kernel adds up, and of one number a process
PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT = 512 * MIB  # bytes of RLIMIT_DATA, for each process: private memory that is asked for, used or not
PICTURES = 40  # that are different; the others are links to them
PROGRAM = (
    "import resource\n"
    f"resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))\n"
    "from bigconv.cli.app import main\n"
    "main()\n"
)


@dataclass(frozen=True)
class Peak:
    """Most memory of a run, in bytes. Mapped pages of files don't count.

    `private`: anonymous memory of all processes at one time, what they share divided among them; `shared`: memory that
    blocks travel through; both sampled every `LOOK` s. `own`: the most anonymous memory of each process, added up,
    sampled every `GLANCE` s: it doesn't depend on which processes happen to hold their most together, so that a long
    run has no better chance to show a high peak than a short one.
    """

    private: int
    shared: int
    own: int


def peak(arguments: list[str]) -> Peak:
    command = [sys.executable, "-c", PROGRAM, "convert", *arguments, "-q"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    private = shared = 0
    own: dict[int, int] = {}
    files: dict[int, int] = {}
    due = 0.0
    try:
        while process.poll() is None:
            if time.monotonic() >= due:
                pids = tree(process.pid)
                found = [_held(pid) for pid in pids]
                private = max(private, sum(held[0] for held in found))
                shared = max(shared, sum(held[1] for held in found))
                for pid in pids:
                    if pid not in files:
                        with suppress(OSError):
                            files[pid] = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
                due = time.monotonic() + LOOK
            for pid, file in files.items():
                with suppress(OSError, ValueError):  # it has ended
                    _, resident, of_files, *_ = map(int, os.pread(file, 256, 0).split())
                    own[pid] = max(own.get(pid, 0), (resident - of_files) * PAGE)
            time.sleep(GLANCE)
    finally:
        for file in files.values():
            os.close(file)
    if process.returncode:
        raise RuntimeError(f"convert ended with {process.returncode}")
    return Peak(private, shared, sum(own.values()))


def _held(pid: int) -> tuple[int, int]:
    sizes = {"Pss_Anon:": 0, "Pss_Shmem:": 0}
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            words = line.split()
            if words[0] in sizes:
                sizes[words[0]] = int(words[1]) * 1024
    except OSError:
        pass
    return sizes["Pss_Anon:"], sizes["Pss_Shmem:"]


def _array(path: Path, nbytes: float) -> Path:
    """A `.npy` file of rows of 12 KiB, mostly a hole."""
    array = np.lib.format.open_memmap(path / "x.npy", "w+", np.uint8, (max(1, round(nbytes / 12288)), 12288))
    array[::50] = 1
    return path / "x.npy"


def _pictures(path: Path, nbytes: float, sizes: Callable[[int], tuple[int, int]]) -> Path:
    """A folder of PNG files that make so many bytes of pixels. Their noise isn't compressed: decoding is quick."""
    folder, rng, held, number = path / "raw", np.random.default_rng(0), 0, 0
    folder.mkdir()
    while held < nbytes:
        file, first = folder / f"{number:06}.png", folder / f"{number % PICTURES:06}.png"
        if number < PICTURES:
            pixels = rng.integers(0, 256, (*sizes(number), 3), np.uint8)
            Image.fromarray(pixels).save(file, compress_level=0)
        else:
            os.link(first, file)
        height, width = sizes(number % PICTURES)
        held += height * width * 3
        number += 1
    return folder


def _alike(path: Path, nbytes: float) -> Path:
    return _pictures(path, nbytes, lambda number: (640, 640))


def _of_many_sizes(path: Path, nbytes: float) -> Path:
    return _pictures(path, nbytes, lambda number: (200 + 37 * number, 900 - 13 * number))


#: A name, what makes the input, the store's extension, and the workers.
RUNS: tuple[tuple[str, Callable[[Path, float], Path], str, int], ...] = (
    *((f"array, {suffix}", _array, suffix, 0) for suffix in SUFFIXES),
    ("array, .h5, 2 workers", _array, ".h5", 2),
    ("images, .h5, 2 workers", _alike, ".h5", 2),
    ("images of many sizes, .mmap, 2 workers", _of_many_sizes, ".mmap", 2),
)
FEW = (1, 5)


def run(scale: float) -> Iterator[Case]:
    if not os.path.exists("/proc/self/smaps_rollup"):
        yield Case("memory", skipped="the kernel doesn't tell what a process holds (/proc/PID/smaps_rollup)")
        return
    for name, make, suffix, workers in RUNS if scale >= QUICK else [RUNS[n] for n in FEW]:
        yield _flat(name, make, suffix, workers, scale)


def _flat(name: str, make: Callable[[Path, float], Path], suffix: str, workers: int, scale: float) -> Case:
    peaks = []
    for size in (SMALL * scale, LARGE * scale):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            source, dest = make(Path(folder), size * GIB), Path(folder) / f"out{suffix}"
            try:
                peaks.append(peak([str(source), str(dest), "--workers", str(workers), *_steps(make)]))
            except RuntimeError as error:
                return Case(f"{name}, {size:g} GiB", str(error))
            finally:
                fsio.remove(dest)
    little, much = peaks
    allowed = CEILING + workers * A_WORKER
    told = f"{little.own // MIB} MiB, then {much.own // MIB}; together {much.private // MIB} of {allowed // MIB} MiB"
    print(f"    {name}: {told} (shared: {little.shared // MIB}, {much.shared // MIB})", flush=True)
    flat = scale < QUICK or max(little.own, much.own) <= FLAT * min(little.own, much.own)  # a tiny run is too short
    return Case(f"{name}: {told}", "" if flat and max(little.private, much.private) <= allowed else "not flat, or more")


def _steps(make: Callable[[Path, float], Path]) -> list[str]:
    return [] if make is _array else ["--label-from", "none"]
