"""A dataset of 10,000 parts and a billion rows: the manifest is generated, three of its parts are real.

Reach: opened under 1 s, `take` of random rows in O(log parts), a shuffled epoch started in milliseconds. `--quick`: a
tenth of the parts; a number: so many.
"""

from __future__ import annotations

import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import bigconv
from bigconv import dataset
from bigconv.conversion.parts_cut import Cut
from bigconv.conversion.shard import ShardRequest
from bigconv.conversion.shard_source import Pick
from bigconv.dataset import Part, part_name
from bigconv.view.opening import open_parts
from bigconv.view.order import Permutation
from bigconv.view.table import StoreView

ROWS = 100_000  # a part


def made(folder: Path, parts: int) -> tuple[Path, list[int]]:
    """A directory whose manifest lists `parts` parts, of which those in the list can be read; the others are links."""
    np.save(folder / "x.npy", np.arange(3 * ROWS, dtype=np.int32).reshape(-1, 1))
    bigconv.convert(folder / "x.npy", folder / "one.h5", workers=0)
    bigconv.shard(folder / "one.h5", folder / "many", rows=ROWS, workers=0)
    there = open_parts(folder / "many")
    real, listed = there.manifest.parts, []
    for number in range(parts):
        like = real[number % 3]
        name = part_name("simulated", number, ".h5")
        listed.append(Part(name, like.rows, like.bytes, like.content_digest))
        (folder / "many" / name).symlink_to(like.name)
    manifest = replace(there.manifest, parts=tuple(listed), rows=parts * ROWS)
    (folder / "many" / dataset.NAME).write_bytes(manifest.to_bytes())
    return folder / "many", [0, parts // 2, parts - 1]


def clock(what: str, call: Callable[[], Any], repeats: int = 5) -> Any:
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    print(f"  {what:58s} {best * 1e3:10.2f} ms")
    return result


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    parts = numbers[0] if numbers else 1_000 if "--quick" in sys.argv else 10_000
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        path, _ = made(Path(name), parts)
        size = (path / dataset.NAME).stat().st_size
        print(f"{parts:,} parts, {parts * ROWS:,} rows, a manifest of {size / 1e6:.1f} MB")
        view: StoreView = clock("open", lambda: bigconv.open(path))
        few = rng.integers(0, len(view), 256)
        clock("part and row of 256 random rows (log parts)", lambda: view.whence(few))
        near = np.concatenate([rng.integers(0, ROWS, 128), rng.integers(len(view) - ROWS, len(view), 128)])
        clock("take 256 random rows of 2 parts, open already", lambda: view.take(near))
        fresh = rng.integers(0, len(view), 256)
        start = time.perf_counter()
        view.take(fresh)
        print(
            f"  {'take 256 random rows of 250 parts not open yet':58s} {(time.perf_counter() - start) * 1e3:10.2f} ms"
        )
        clock("the same again", lambda: view.take(fresh))
        tracemalloc.start()
        order = clock("start a shuffled epoch", lambda: Permutation(len(view), 1, 0), 3)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"  {'memory of its order, at most':58s} {held / 1e6:10.2f} MB")
        clock("rows of the next 1,024 positions", lambda: order.at(np.arange(5_000_000, 5_001_024)))
        again = ShardRequest((path,), Path(name) / "again", Cut(rows=ROWS), Pick(shuffle=True), "memmap")
        clock(f"plan {parts:,} new parts of all rows, shuffled", again.plan, 1)


if __name__ == "__main__":
    main()
