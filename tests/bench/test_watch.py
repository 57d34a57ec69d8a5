"""`watch` against loops whose waits and steps are known."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from bigconv.bench import watch as module
from bigconv.bench.watch import Waits, watch

timed = pytest.mark.timed  # holds clocks against one another: python -m pytest -m timed


class Sleepy(Dataset[torch.Tensor]):
    def __init__(self, rows: int, cost: float) -> None:
        self.rows, self.cost = rows, cost

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> torch.Tensor:
        time.sleep(self.cost)
        return torch.tensor([i])


@timed
def test_waiting_and_training_are_told_apart() -> None:
    loader = watch(DataLoader(Sleepy(40, 0.002), 4), quiet=True)
    for epoch in range(2):
        for i, batch in enumerate(loader):
            assert batch.shape == (4, 1)
            time.sleep(0.008)
            if epoch and i == 4:
                break
    report = loader.report()
    assert (report["batches"], report["samples"], report["epochs"]) == (15, 60, 2)
    assert report["waiting"] == pytest.approx(0.5, abs=0.07)
    assert report["wait_ms"]["p50"] == pytest.approx(8.5, rel=0.12)
    assert report["wait_ms"]["max"] >= report["wait_ms"]["p99"] >= report["wait_ms"]["p50"]
    assert report["workers"] == 0
    assert "no worker prepares batches" in report["bottleneck"]


@timed
def test_fast_loading_is_no_bottleneck() -> None:
    loader = watch([torch.zeros(3, 2)] * 20, quiet=True)
    for _ in loader:
        time.sleep(0.015)
    report = loader.report()
    assert report["samples"] == 60
    assert report["waiting"] < 0.03
    assert "Training is the bottleneck" in report["bottleneck"]
    assert report["stalls"] == 0


@timed
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_their_efficiency(persistent: bool) -> None:
    class Busy(Sleepy):
        def __getitem__(self, i: int) -> torch.Tensor:
            end = time.thread_time() + self.cost
            while time.thread_time() < end:
                pass
            return torch.tensor([i])

    efficiency = []
    for dataset in (Busy(150, 0.002), Sleepy(150, 0.002)):
        loader = watch(DataLoader(dataset, 4, num_workers=1, persistent_workers=persistent), every=0.05, quiet=True)
        for _ in range(2):
            for _ in loader:
                pass
        report = loader.report()
        assert report["workers"] == 1
        efficiency.append(report["worker_efficiency"])
        del loader
        gc.collect()
    assert 0 < 1.5 * efficiency[1] < efficiency[0] < 1.1


def test_a_line_while_it_runs_and_a_table_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(module.sys, "stderr", out)
    loader = watch([torch.zeros(2)] * 10, every=0.01)
    for _ in loader:
        time.sleep(0.004)
    lines = out.getvalue().splitlines()
    assert lines and all(line.startswith("watch: ") and "samples/s · waiting" in line for line in lines)
    with loader:
        pass
    told = out.getvalue()[sum(len(line) + 1 for line in lines) :]
    assert "waiting for data" in told and "10 batches, 20 samples in 1 epochs" in told
    loader.close()
    assert str(loader) in told
    assert out.getvalue().count("waiting for data") == 1


def test_everything_else_is_the_loaders_own() -> None:
    class Mine(list):  # type: ignore[type-arg]
        def set_epoch(self, epoch: int) -> str:
            return f"epoch {epoch}"

    loader = watch(Mine([1, 2]), quiet=True)
    assert len(loader) == 2
    assert loader.set_epoch(3) == "epoch 3"
    with pytest.raises(AttributeError):
        _ = loader.nothing
    assert loader.report()["batches"] == 0
    assert loader.report()["bottleneck"] == "Nothing has been read yet."


def test_errors_pass_through_and_the_loop_can_go_on() -> None:
    class Failing:
        def __iter__(self) -> Iterator[int]:
            yield 1
            raise ValueError("bad batch")

    loader = watch(Failing(), quiet=True)
    with pytest.raises(ValueError, match="bad batch"):
        list(loader)
    assert loader.report()["batches"] == 1


def test_waits_keep_quantiles_in_constant_memory() -> None:
    waits = Waits()
    for i in range(1, 10_001):
        waits.add(i / 1e6)
    assert waits.quantile(0.5) == pytest.approx(5e-3, rel=0.05)
    assert waits.quantile(0.99) == pytest.approx(9.9e-3, rel=0.05)
    waits.add(0.0)
    waits.add(1e9)
    assert waits.longest == 1e9


@timed
def test_under_one_percent_of_a_millisecond_step() -> None:
    """Of a loop whose batch and step take 1 ms together; by CPU time, as the machine may be shared."""
    batch = torch.zeros(256, 8)

    def loop(loader: object) -> float:
        start = time.thread_time()
        for _ in loader:  # type: ignore[attr-defined]
            pass
        return time.thread_time() - start

    plain = min(loop([batch] * 3000) for _ in range(5))
    watched = min(loop(watch([batch] * 3000, quiet=True)) for _ in range(5))
    assert (watched - plain) / 3000 < 10e-6
