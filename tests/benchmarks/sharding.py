"""A store cut into parts against `cp` + `sync` of the same bytes, and the memory that it takes.

The command is started with compiled modules, as it is when installed.
Reach: 2 GB at 0.5 of the speed or more, in order and shuffled alike as far as the disk lets; private memory flat.
`--quick` uses a tenth of the data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import bigconv
from bigconv import fsio
from tests.benchmarks._timing import rates, table

COMMAND = [sys.executable, "-c", "from bigconv.cli.app import main; main()", "shard"]


def anonymous(pid: int) -> int:
    """Private bytes of a process and all below it (RssAnon: mapped pages don't count)."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, ValueError):
            continue
    return total << 10


def installed(folder: Path) -> dict[str, str]:
    """The environment, with a place for compiled modules, as an installed package has them."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}


def shard(arguments: list[str], out: Path, nbytes: int, peaks: dict[str, int]) -> int:
    process = subprocess.Popen(
        [*COMMAND, *arguments, str(out), "-q", "--json"], stdout=subprocess.PIPE, env=installed(out.parent)
    )
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], anonymous(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    told, _ = process.communicate()
    over.set()
    watcher.join()
    assert process.returncode == 0
    key = " ".join(arguments[1:])
    peaks[key] = max(peaks.get(key, 0), peak[0])
    assert json.loads(told)["status"] == "done"
    return nbytes


def main() -> None:
    rows = 16_000 if "--quick" in sys.argv else 160_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        out = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (rows, 12288))
        for i in range(0, rows, 8000):
            out[i : i + 8000] = np.random.default_rng(i).integers(0, 256, (8000, 12288), np.uint8)
        out.flush()
        del out
        store, nbytes = folder / "x.h5", rows * 12288
        bigconv.convert(folder / "x.npy", store, workers=0)
        (folder / "x.npy").unlink()
        os.sync()
        plan = [*COMMAND, str(store), str(folder / "parts"), "--shards", "2", "--dry-run", "-q"]
        subprocess.run(plan, env=installed(folder), stdout=subprocess.DEVNULL, check=True)  # compiles

        def copy() -> int:
            subprocess.run(["cp", str(store), str(folder / "copy")], check=True)
            subprocess.run(["sync", str(folder / "copy")], check=True)
            return nbytes

        def clear() -> None:
            for made in ("copy", "parts"):
                fsio.remove(folder / made)

        peaks: dict[str, int] = {}
        ways = {"cp + sync": copy}
        size = "64MB" if "--quick" in sys.argv else "256MB"
        for options in (["--size", size], ["--size", size, "--to", "memmap"], ["--size", size, "--shuffle"]):
            ways["bigconv shard " + " ".join(options)] = lambda o=options: shard(  # type: ignore[misc]
                [str(store), *o], folder / "parts", nbytes, peaks
            )
        repeats = 3
        start = time.perf_counter()
        found = rates(ways, repeats, warm=False, after=clear)
        table(f"{nbytes / 1e9:.1f} GB, 12 KiB rows, 2 workers", found, "cp + sync", "B/s")
        for options, peak in peaks.items():
            print(f"  private memory of all processes, {options}: {peak / 1e6:.0f} MB")
        print(f"  in all {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
