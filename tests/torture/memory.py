"""Peak private memory of a conversion stays flat from a little input to a lot, under a hard limit (`RLIMIT_DATA`)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigconv import fsio
from tests.torture import Case
from tests.torture._runs import SUFFIXES

GIB = 1 << 30
SMALL, LARGE = 1.0, 8.0  # GiB, at scale 1
QUICK = 0.05  # below this scale one store stands for all
CEILING = 300 << 20  # bytes, without workers
LIMIT = 512 << 20  # bytes of RLIMIT_DATA: private memory that is asked for, used or not
PROGRAM = (
    "import resource\n"
    f"resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))\n"
    "from bigconv.cli.app import main\n"
    "main()\n"
)


def peak(arguments: list[str]) -> int:
    """Largest sum of RssAnon over the process and its children, sampled; bytes. Mapped pages of files don't count."""
    command = [sys.executable, "-c", PROGRAM, "convert", *arguments, "--workers", "0", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    highest = 0
    while process.poll() is None:
        highest = max(highest, sum(_anonymous(pid) for pid in _tree(process.pid)))
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"convert ended with {process.returncode}")
    return highest


def _tree(root: int) -> list[int]:
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                todo += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def _anonymous(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run(scale: float) -> Iterator[Case]:
    if not os.path.exists("/proc/self/status"):
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        root = Path(name)
        for suffix in SUFFIXES if scale >= QUICK else SUFFIXES[1:2]:
            peaks = []
            for size in (SMALL * scale, LARGE * scale):
                source = root / "x.npy"
                rows = max(1, round(size * GIB / 12288))
                array = np.lib.format.open_memmap(source, "w+", np.uint8, (rows, 12288))
                array[::50] = 1
                del array
                try:
                    peaks.append(peak([str(source), str(root / f"out{suffix}")]))
                except RuntimeError as error:
                    yield Case(f"{suffix} {size:g} GiB", str(error))
                    return
                fsio.remove(root / f"out{suffix}")
            told = f"{peaks[0] / 2**20:.0f} MiB, then {peaks[1] / 2**20:.0f} MiB"
            flat = scale < QUICK or peaks[1] <= 1.1 * peaks[0] + (8 << 20)  # a tiny run is over before its peak is seen
            print(f"    {suffix}: {told}", flush=True)
            yield Case(f"{suffix} {told}", "" if flat and max(peaks) <= CEILING else "not flat, or over 300 MiB")
