"""Rows copied by several threads: the same bytes, only where it is quicker, and never in a forked process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigconv.block import Block
from bigconv.runtime import Loader, StoreDataset
from bigconv.runtime import threads as ours
from bigconv.runtime.threads import FIRST, SELDOM, TRIES, WAKING, _Pace
from bigconv.schema import Field, Schema
from bigconv.view import memory

Make = Callable[..., Path]
#: below and above what is copied in pieces; divisible by all, by little and by nothing
WIDTHS = (1, 511, 512, 12288, 24577, 32768, 65536 + 2, 100_003, 196_608)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """torch with two threads, which share every copy; what was chosen, copy by copy."""
    before, chosen = torch.get_num_threads(), []

    def choose(self: _Pace) -> bool:
        chosen.append(True)
        return True

    monkeypatch.setattr(_Pace, "choose", choose)
    monkeypatch.setattr(memory, "SHARED_BYTES", 1)
    torch.set_num_threads(2)
    yield chosen
    torch.set_num_threads(before)


def store(make_store: Make, suffix: str, width: int, rows: int = 60) -> tuple[StoreDataset, np.ndarray]:
    values = np.random.default_rng(width).integers(0, 256, (rows, width), np.uint8)
    schema = Schema((Field("x", "uint8", (width,)), Field("label", "int64")))
    block = Block(schema, {"x": values, "label": np.arange(rows)})
    return StoreDataset(make_store(block, suffix)), values


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("suffix", [".mmap", ".h5", ".zarr", ".lmdb"])
def test_the_same_bytes(make_store: Make, two_threads: list[bool], suffix: str, width: int) -> None:
    dataset, values = store(make_store, suffix, width)
    rows = np.random.default_rng(0).integers(0, 60, 200)
    batch = dataset[rows]
    assert np.array_equal(batch["x"].numpy(), values[rows])
    assert np.array_equal(batch["label"].numpy(), rows)
    assert two_threads


def test_the_same_bytes_with_one_thread(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(memory, "SHARED_BYTES", 1)
    torch.set_num_threads(1)
    try:
        for suffix in (".mmap", ".zarr", ".lmdb"):
            dataset, values = store(make_store, suffix, 5000)
            out = np.empty((3, 5000), np.uint8)
            dataset.view.take_field("x", np.array([4, 0, 59]), out)
            assert np.array_equal(out, values[[4, 0, 59]])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_copies_alone(make_store: Make, two_threads: list[bool]) -> None:
    """Threads don't survive a fork: whoever shared work with them there would wait for ever."""
    dataset, values = store(make_store, ".mmap", 4096)
    dataset[:60]
    shared = len(two_threads)
    assert shared
    child = os.fork()
    if child == 0:
        right = np.array_equal(dataset[:60]["x"].numpy(), values) and len(two_threads) == shared
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_loaders_threads_copy_alone(make_store: Make, two_threads: list[bool]) -> None:
    dataset, _ = store(make_store, ".mmap", 4096)
    list(Loader(dataset, 8, threads=2))
    assert not two_threads
    list(Loader(dataset, 8, threads=0))
    assert two_threads


def run(pace: _Pace, copies: int, cost: Callable[[bool], float]) -> float:
    """Part of the copies that were shared."""
    shared = 0
    for _ in range(copies):
        way = pace.choose()
        shared += way
        pace.note(way, cost(way), 1)
    return shared / copies


def test_the_quicker_way_is_taken() -> None:
    assert run(_Pace(), 1000, lambda shared: 1.0 if shared else 2.0) > 0.95
    assert run(_Pace(), 1000, lambda shared: 2.0 if shared else 1.0) < 0.05
    assert run(_Pace(), 1000, lambda shared: 0.99 if shared else 1.0) < 0.05, "not worth the other cores"


def test_what_has_become_slow_is_left_at_once() -> None:
    pace = _Pace()
    run(pace, 5000, lambda shared: 1.0 if shared else 2.0)
    # somebody else needs the cores now
    assert run(pace, 20, lambda shared: 40.0 if shared else 4.0) <= 0.2
    assert run(pace, 1000, lambda shared: 40.0 if shared else 4.0) < 0.02
    # and is gone again: noticed at the latest after so many copies
    assert run(pace, SELDOM + TRIES + 1000, lambda shared: 1.0 if shared else 2.0) > 0.4


def test_a_trial_that_goes_badly_ends_at_once() -> None:
    pace, tried = _Pace(), []
    for _ in range(FIRST + 1 + TRIES):
        way = pace.choose()
        tried.append(way)
        pace.note(way, 100.0 if way else 1.0, 1)
    assert tried == [False] * FIRST + [True] + [False] * TRIES


def test_threads_that_slept_get_a_second_try() -> None:
    """Their first copy of a trial waits until they are awake, which takes longer than a small copy."""
    pace, idle, shared = _Pace(), 1.0, 0
    for _ in range(100):
        way = pace.choose()
        seconds = (0.8 * WAKING if idle > 1e-3 else 30e-6) if way else 60e-6
        idle = 0.0 if way else idle + seconds
        pace.note(way, seconds, 1 << 19)
        shared += way
    assert shared > 85


def test_a_thread_that_reads_alone_says_so_for_itself(make_store: Make, two_threads: list[bool]) -> None:
    dataset, values = store(make_store, ".mmap", 4096)
    with ours.threads.alone():
        dataset[:60]
        assert not two_threads
        results: list[Any] = []
        other = threading.Thread(target=lambda: results.append(dataset[:60]["x"]))
        other.start()
        other.join()
    assert two_threads
    assert np.array_equal(results[0].numpy(), values)


@pytest.mark.parametrize("rows", [1, 3, 60, 400, 600])
@pytest.mark.parametrize("width", [*WIDTHS, 12_289, 30_000])
def test_in_pieces_that_leave_the_lock_alone(rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into new memory and into one's own."""
    monkeypatch.setattr(memory, "SHARED_BYTES", 1)
    monkeypatch.setattr(memory, "_threads", None)
    held = np.random.default_rng(0).integers(0, 256, width + 5000, np.uint8)
    at = np.random.default_rng(1).integers(0, 5000, rows)
    expected = np.stack([held[a : a + width] for a in at.tolist()])
    copies = [memory.copy_rows(at + held.ctypes.data, width, out) for out in (None, np.empty((rows, width), np.uint8))]
    assert all(np.array_equal(copied, expected) for copied in copies)
    piece = memory._unlocked(width, rows)
    assert width % piece == 0
    assert rows * width // piece > memory.LOCKED_ITEMS or piece == width
