"""DataLoader in all its settings: every row exactly once, epoch after epoch; workers killed, loops left; nothing leaks.

Start methods x workers x persistent x pinned memory (where there is a GPU).
"""

from __future__ import annotations

import gc
import os
import signal
import time
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import MP_STATUS_CHECK_INTERVAL

from bigconv.runtime import Loader, StoreDataset, StreamDataset
from bigconv.schema import Field, Schema
from bigconv.stores.hdf5 import Hdf5
from bigconv.testing import cases
from bigconv.testing.given import write
from tests.torture import Case
from tests.torture._child import streamed
from tests.torture._runs import workspace

ROWS, BATCH = 1003, 64
EPOCHS = 50  # of the run that looks for leaks, at scale 1
LATE = 6 * MP_STATUS_CHECK_INTERVAL  # seconds; less than `streamed` has patience for, and much on a busy machine
GROWTH = 32 << 20  # 32 MiB of private memory: less is the allocator's business
FIELDS = Schema((Field("x", "uint8", (3000,)), Field("label", "int64"), Field("t", "uint16", (None,))))


def run(scale: float) -> Iterator[Case]:
    with workspace() as root:
        path = root / "a.h5"
        block = cases.block(FIELDS, ROWS)
        block.columns["label"][:] = np.arange(ROWS)  # type: ignore[index]
        write(path, Hdf5(), block, 100)
        yield from streamed(partial(_all, path, scale))  # in a process of its own: leaks are its own too


def _all(path: Path, scale: float) -> Iterator[Case]:
    import multiprocessing

    multiprocessing.current_process()._config["daemon"] = False  # so that it may have workers itself
    methods = ("fork", "spawn", "forkserver") if scale >= 1 else ("fork",)
    pins = (False, True) if torch.cuda.is_available() else (False,)
    if pins == (False,):
        yield Case("pinned memory", skipped="no GPU, so there is nothing to pin for")
    counts = (0, 1, 4) if scale >= 1 else (0, 1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # of more workers than cores: meant
    for method, workers, persistent, pinned in product(methods, counts, (False, True), pins):
        if not workers and (persistent or method != "fork"):
            continue
        settings: dict[str, Any] = {"num_workers": workers, "pin_memory": pinned}
        if workers:
            settings |= {"multiprocessing_context": method, "persistent_workers": persistent}
        name = f"{method} {workers} workers{' persistent' * persistent}{' pinned' * pinned}"
        yield Case(name, _exactly_once(path, settings, 3 if scale >= 1 else 1))
        if workers == 1 or scale >= 1:
            times = 2 if scale < 1 else 10 if method == "fork" else 3  # others import torch anew in each worker
            yield Case(f"{name}, left early", _left_early(path, settings, times))
        if workers and (method == "fork" or not persistent) and (scale >= 1 or not persistent):
            yield Case(f"{name}, a worker killed", _killed(path, settings))
    epochs = max(3, round(EPOCHS * scale))
    ways: dict[str, Any] = {
        "no workers": lambda: DataLoader(_dataset(path), BATCH, shuffle=True),
        "workers": lambda: DataLoader(_dataset(path), BATCH, shuffle=True, num_workers=2),
        "streamed": lambda: DataLoader(StreamDataset(_dataset(path), shuffle=True, batch_size=BATCH), None),
        "threads": lambda: Loader(_dataset(path), BATCH, shuffle=True, threads=2),
    }
    for name, loader in ways.items():
        yield Case(f"{epochs} epochs, {name}", _leaks(loader, epochs))


def _dataset(path: Path) -> StoreDataset:
    return StoreDataset(path, fields=["x", "label"])


def _seen(loader: Any) -> list[int]:
    return [label for batch in loader for label in batch["label"].tolist()]


def _exactly_once(path: Path, settings: dict[str, Any], epochs: int) -> str:
    loader = DataLoader(_dataset(path), BATCH, shuffle=True, **settings)
    orders = []
    for _ in range(epochs):
        seen = _seen(loader)
        if sorted(seen) != list(range(ROWS)):
            return f"{len(seen)} rows, {len(set(seen))} different, of {ROWS}"
        orders.append(seen)
    return "two epochs in one order" if len(orders) > 1 and orders[0] == orders[1] else ""


def _left_early(path: Path, settings: dict[str, Any], times: int) -> str:
    before = _held()
    for _ in range(times):
        for _ in DataLoader(_dataset(path), BATCH, shuffle=True, **settings):
            break
    return _grown(before)


def _killed(path: Path, settings: dict[str, Any]) -> str:
    """A worker that is killed must end the loop with an error, soon, not let it wait for ever.

    torch hears at once of a child of its own. For one that a fork server made it looks every 5 s, if nothing comes, and
    with a `timeout` only once that is over: so there is none. A loop that goes on waiting is ended by `streamed`.
    """
    loader = DataLoader(_dataset(path), BATCH, **settings)
    batches = iter(loader)
    next(batches)
    start = time.monotonic()
    try:
        os.kill(batches._workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]  # torch may raise before it returns
        left = sum(len(batch["label"]) for batch in batches)
    except RuntimeError as error:
        told = "worker" in str(error)
        quick = time.monotonic() - start < LATE
        return "" if told and quick else f"after {time.monotonic() - start:.0f} s: {error}"
    finally:
        del batches, loader
    return "" if left == ROWS - BATCH else f"no error, {left} rows"  # all had been sent before


Held = tuple[int, int, set[str]]


def _held() -> Held:
    """Private memory, bytes; descriptors; names in /dev/shm."""
    gc.collect()
    private = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    shm = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    return int(private.split()[1]) * 1024, len(os.listdir("/proc/self/fd")), shm


def _grown(before: Held) -> str:
    """What has leaked; what ends a little later may do so."""
    for _ in range(50):
        after = _held()
        shm = {name for name in after[2] - before[2] if not name.startswith(("sem.", "torture-"))}
        if after[1] <= before[1] + 1 and not shm and after[0] < before[0] + GROWTH:
            return ""
        time.sleep(0.1)
    memory = f"{(after[0] - before[0]) >> 20} MiB"
    return f"{memory} of memory, {after[1] - before[1]} descriptors, in /dev/shm: {sorted(shm)}"


def _leaks(make: Any, epochs: int) -> str:
    loader = make()
    for _ in range(2):
        _seen(loader)
    before = _held()
    for _ in range(epochs):
        if sorted(_seen(loader)) != list(range(ROWS)):
            return "not every row exactly once"
    return _grown(before)
