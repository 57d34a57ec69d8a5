"""Memory of batches that is used again: never while anything of a batch is left."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch

from bigconv.runtime import buffers
from bigconv.runtime.buffers import SMALLEST, Buffers

SIZE = 2 * SMALLEST


def lent(pool: Buffers, nbytes: int = SIZE) -> np.ndarray:
    memory = pool.lend(nbytes)
    assert memory is not None
    assert (memory.dtype, memory.shape) == (np.uint8, (nbytes,))
    assert memory.flags.writeable
    return memory


def address(array: Any) -> int:
    return array.data_ptr() if isinstance(array, torch.Tensor) else array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "kept",
    [
        lambda memory: memory,
        lambda memory: memory[7:9],
        lambda memory: memory.view(np.int32).reshape(-1, 4)[3],
        torch.from_numpy,
        lambda memory: torch.from_numpy(memory)[5:6],
        lambda memory: torch.from_numpy(memory).view(torch.float32).reshape(2, -1).t(),
        lambda memory: torch.from_numpy(memory).untyped_storage(),
        lambda memory: torch.from_numpy(memory).numpy(),
        lambda memory: memoryview(memory)[:1],
        lambda memory: {"a": [torch.from_numpy(memory)]},
    ],
)
def test_what_is_kept_stays(kept: Any) -> None:
    pool = Buffers()
    memory = lent(pool)
    where = address(memory)
    held = kept(memory)
    del memory
    gc.collect()
    others = [lent(pool) for _ in range(3)]
    assert where not in map(address, others)
    del held, others
    gc.collect()
    assert where in map(address, [lent(pool) for _ in range(4)])


def test_used_again_at_once() -> None:
    pool = Buffers()
    where = address(lent(pool))
    for nbytes in (SIZE, SIZE, SIZE - 1, SIZE // 2):
        assert address(lent(pool, nbytes)) == where
    assert address(lent(pool, SIZE + 1)) != where


def test_the_same_few_are_used_again() -> None:
    """Out of many that were needed once: others have left the processor's cache."""
    pool = Buffers()
    many = [lent(pool) for _ in range(8)]
    del many
    used = set()
    batch: Any = None
    for _ in range(20):  # as a training loop does: the old batch is let go of when the new one is there
        batch = lent(pool)
        used.add(address(batch))
    assert len(used) == 2


def test_small_ones_are_left_to_numpy() -> None:
    assert Buffers().lend(SMALLEST - 1) is None


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MOST_BYTES", 4 * SIZE)
    pool = Buffers()
    everything = [lent(pool) for _ in range(10)]
    assert len({address(memory) for memory in everything}) == 10
    del everything
    assert sum(map(len, pool._kept)) <= 4 * SIZE
    large = lent(pool, 3 * SIZE)  # batches of another size: the free ones make room
    where = address(large)
    del large
    assert address(lent(pool, 3 * SIZE)) == where
    assert sum(map(len, pool._kept)) <= 4 * SIZE


def test_threads_never_share_a_buffer() -> None:
    pool, wrong = Buffers(), []

    def work(number: int) -> None:
        held: list[np.ndarray] = []
        for turn in range(200):
            memory = lent(pool)
            memory[:64] = number * 50 + turn % 50
            held.append(memory)
            del memory
            if len(held) > 3:
                first = held.pop(0)
                if len(set(first[:64].tolist())) > 1 or first[0] // 50 != number:
                    wrong.append(number)
                del first

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
