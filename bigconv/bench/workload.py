"""The shapes of MLPerf Storage, generated, converted and measured on one machine.

Bytes a sample, samples a batch, seconds a training step and the utilisation that is asked for: mlcommons/storage,
configs/dlio/workload/{unet3d,resnet50,cosmoflow}_{a100,h100}.yaml (MLPerf Storage 1.0). As there, a sample is random
bytes; here all have the mean size. MLPerf's own rules ask for data of five times the memory, and for its own loaders:
these figures compare stores and settings on this machine, and are no results of MLPerf.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigconv.bench.api import Question, Report, answer_for
from bigconv.bench.contention import Watcher
from bigconv.bench.measure import Running
from bigconv.bench.subject import store_subject
from bigconv.bench.sweep import Tick, quiet
from bigconv.conversion.request import Request
from bigconv.errors import Interrupted, OutputError, UsageError
from bigconv.schema import unknown

STEPS = 0.3  # share of the seconds for the accelerators


@dataclass(frozen=True)
class Shape:
    """`sample` bytes, `batch` samples; `steps`: seconds of one, by accelerator; `wanted`: its utilisation."""

    sample: int
    batch: int
    steps: dict[str, float]
    wanted: float


SHAPES = {
    "unet3d": Shape(146_600_628, 7, {"A100": 0.636, "H100": 0.323}, 0.90),
    "resnet50": Shape(114_660, 400, {"A100": 0.435, "H100": 0.224}, 0.90),
    "cosmoflow": Shape(2_828_486, 1, {"A100": 0.00551, "H100": 0.00350}, 0.70),
}


def run_workload(name: str, nbytes: int, asked: Question, tick: Tick | None = None) -> Report:
    """Measure a workload with `nbytes` of data. The data are deleted afterwards.

    `extra["accelerators"]`: the share of the time each is kept busy by the recommended loader. Batches larger than the
    data are made smaller, and their steps shorter in proportion. Raises `UsageError`, `OutputError`.
    """
    if name not in SHAPES:
        raise UsageError(unknown("--workload", name, tuple(SHAPES)))
    shape, told, watcher = SHAPES[name], tick or quiet, Watcher()
    rows = max(2, nbytes // shape.sample)
    batch = min(shape.batch, rows)
    with tempfile.TemporaryDirectory(prefix="bigconv-bench-") as scratch:
        folder = Path(scratch)
        _room(folder, 2 * rows * shape.sample)
        told(f"making {rows} samples", 0.0)
        raw, store = folder / "record.npy", folder / f"{name}.mmap"
        _generate(raw, rows, shape.sample)
        told("converting", 0.0)
        Request((raw,), store).run()
        raw.unlink()
        subject = replace(store_subject(store, batch, asked.access), name=name, made=f"StoreDataset({store.name!r})")
        answer = answer_for(subject, asked, asked.seconds * (1 - STEPS), told)
        if answer is None:
            raise Interrupted("stopped before anything was measured")
        used: list[dict[str, Any]] = []
        try:
            for accelerator, step in shape.steps.items() if not answer.swept.interrupted else ():
                told(f"steps of {accelerator}", 1 - STEPS)
                running = Running(subject, answer.advice.setting, step * batch / shape.batch)
                try:
                    for _ in range(3):
                        running.repeat(asked.seconds * STEPS / (3 * len(shape.steps)))
                finally:
                    running.close()
                busy = running.run.busy or 0.0
                used.append(
                    {
                        "accelerator": accelerator,
                        "step_ms": 1e3 * running.run.step,
                        "busy": busy,
                        "wanted": shape.wanted,
                    }
                )
        except KeyboardInterrupt:
            answer.swept.interrupted = True
    contention = watcher.result()
    notes = [*contention.words(), f"{name}: {rows} samples of {shape.sample:,} random bytes; no result of MLPerf"]
    if batch < shape.batch:
        notes.append(
            f"batches of {batch} instead of {shape.batch}, as there are no more samples: steps are shorter, too"
        )
    return Report([answer], contention, answer.swept.interrupted, notes, {"workload": name, "accelerators": used})


def _generate(path: Path, rows: int, sample: int) -> None:
    """`.npy`, uint8 `[rows, sample]`: a piece of noise from another place for each row, as fast as the disk."""
    rng = np.random.default_rng(0)
    noise = np.frombuffer(rng.bytes(sample + (1 << 16)), np.uint8)
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, sample))
    for row in range(rows):
        start = int(rng.integers(0, 1 << 16))
        out[row] = noise[start : start + sample]
    out.flush()


def _room(folder: Path, wanted: int) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise OutputError(
            f"{folder.parent}: {free / 1e9:,.1f} GB are free, {wanted / 1e9:,.1f} GB needed: a smaller --size"
        )
