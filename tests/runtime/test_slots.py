"""Batches out of DataLoader workers: right however they are started, kept, dropped and killed; nothing is left over."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from bigconv.errors import RowError
from bigconv.runtime import StoreDataset, slots
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from tests.warm import Warm

Make = Callable[..., Path]
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="slots are for Linux")
SCHEMA = Schema(
    (
        Field("image", "uint8", (3, 64, 32), "image", "chw"),  # 6 KiB: four make a batch that goes into a slot
        Field("x", "float64", (3, 300)),
        Field("label", "int64", (), "label"),
    )
)
BLOCK = cases.block(SCHEMA, 200, seed=4)
IMAGE, X, LABEL = (torch.from_numpy(np.array(BLOCK[name])) for name in SCHEMA.names)
X = X.nan_to_num()


@pytest.fixture
def path(make_store: Make) -> Path:
    return make_store(BLOCK, ".mmap")


def row_of(label: torch.Tensor) -> list[int]:
    """Row numbers of labels, which are all different."""
    return [int((value == LABEL).nonzero().item()) for value in label]


def check(batches: Iterator[dict[str, torch.Tensor]] | DataLoader[Any] | list[dict[str, torch.Tensor]]) -> None:
    """Every row exactly once, bit for bit, in plain writable tensors."""
    seen: list[int] = []
    for batch in batches:
        rows = row_of(batch["label"])
        assert torch.equal(batch["image"], IMAGE[rows])
        assert torch.equal(batch["x"].nan_to_num(), X[rows])
        assert {type(column) for column in batch.values()} == {torch.Tensor}
        assert batch["x"].dtype == torch.float64
        for column in batch.values():
            column.zero_()
        seen += rows
    assert sorted(seen) == list(range(200))


def leftovers() -> set[str]:
    """What lies in `/dev/shm`, less the semaphores of multiprocessing's queues and what runs meanwhile."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("sem.", "bigconv-", "torture-"))}


def test_labels_tell_rows_apart() -> None:
    assert len(set(LABEL.tolist())) == 200


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_every_row_once(path: Path, workers: int, persistent: bool, pinned: bool) -> None:
    if persistent and workers == 0:
        pytest.skip("torch refuses it")
    before = leftovers()
    loader = DataLoader(
        StoreDataset(path),
        batch_size=7,
        shuffle=True,
        num_workers=workers,
        persistent_workers=persistent,
        pin_memory=pinned,
    )
    for _ in range(2):
        check(loader)
    assert leftovers() <= before


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(path: Path, method: str) -> None:
    """Also with rows in memory, a batch kept, and an epoch that ends early."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    before = leftovers()
    dataset = StoreDataset(path, in_memory=True)
    workers = 1 if method == "spawn" else 2  # which imports torch anew, seconds each
    loader = DataLoader(
        dataset, 7, shuffle=True, num_workers=workers, persistent_workers=True, multiprocessing_context=method
    )
    kept = next(iter(loader))
    rows = row_of(kept["label"])
    for _ in range(2):
        check(loader)
    assert torch.equal(kept["image"], IMAGE[rows])
    assert leftovers() <= before


def test_a_consumer_may_keep_every_batch(path: Path) -> None:
    loader = DataLoader(StoreDataset(path), batch_size=4, num_workers=2)
    batches = list(loader)
    assert len(batches) == 50
    check(batches)


def test_labels_kept_do_not_keep_images(path: Path) -> None:
    """Each column has memory of its own."""
    loader = DataLoader(StoreDataset(path, fields=("image", "x")), batch_size=4, num_workers=1)
    images, kept = set(), []
    for image, x in loader:
        images.add(image.data_ptr())
        kept.append(x)
    assert len(kept) == 50
    assert len(images) <= slots.SLOTS
    assert torch.equal(torch.cat(kept).nan_to_num(), X)


def test_memory_is_used_again(path: Path) -> None:
    loader = DataLoader(StoreDataset(path), batch_size=4, num_workers=2, persistent_workers=True)
    addresses = {batch["image"].data_ptr() for _ in range(3) for batch in loader}
    assert len(addresses) <= 2 * slots.SLOTS


def test_slots_grow_with_the_batch(path: Path) -> None:
    sizes = [1, 5, 2, 40, 3, 90, 4, 55]
    ends = np.cumsum(sizes)
    batches = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    loader = DataLoader(StoreDataset(path), batch_sampler=batches, num_workers=1)
    check(loader)
    check(list(loader))


def test_the_interpreter_ends_while_a_batch_is_sent(warm: Warm, tmp_path: Path) -> None:
    """As a spawned worker does, after an early break: nobody waits for the thread that sends."""
    code = """
import sys
import time
import torch
import torch.utils.data._utils.worker as torch_worker
from bigconv.runtime import slots
torch_worker._worker_info = object()
slots.buffer("x", 1)
queue = torch.multiprocessing.get_context("spawn").Queue()
queue.cancel_join_thread()
batch = [torch.zeros(5) for _ in range(20_000)]
sys.setswitchinterval(0.1)  # a thread that lets go of Python's lock now waits until the end
queue.put(batch)
time.sleep(0.001)  # the thread has begun
"""
    done = warm.python(code, tmp_path, whole=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("persistent", [False, True])
def test_early_break(path: Path, persistent: bool) -> None:
    before = leftovers()
    loader = DataLoader(StoreDataset(path), 4, num_workers=2, persistent_workers=persistent)
    kept = []
    for _ in range(5):
        for batch in loader:
            kept.append(batch)
            break
    assert all(torch.equal(batch["image"], IMAGE[:4]) for batch in kept)
    check(loader)
    assert leftovers() <= before


def test_killed_worker(path: Path) -> None:
    """An error that says so, no hang; and the next loop works."""
    before = leftovers()
    loader = DataLoader(StoreDataset(path), 4, num_workers=2)
    iterator = iter(loader)
    kept = next(iterator)
    with pytest.raises(RuntimeError, match="killed by signal"):  # torch's signal handler, wherever we are
        os.kill(iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        time.sleep(30)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(iterator)
    del iterator
    assert torch.equal(kept["image"], IMAGE[:4])
    check(loader)
    del kept
    assert not slots._rings
    assert leftovers() <= before


def test_killed_parent_leaves_nothing(path: Path, warm: Warm, tmp_path: Path) -> None:
    """Slots have no name, so nobody has to remove them."""
    before = leftovers()
    code = f"""
import os, signal
from torch.utils.data import DataLoader
from bigconv.runtime import StoreDataset
iterator = iter(DataLoader(StoreDataset({str(path)!r}), 4, num_workers=1))
kept = [next(iterator) for _ in range(3)]
print(iterator._workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = warm.python(code, tmp_path)
    assert parent.returncode == -signal.SIGKILL
    os.kill(int(parent.stdout), signal.SIGKILL)  # the worker would find out by itself, in five seconds
    assert leftovers() <= before


def test_no_warnings_at_exit(path: Path, warm: Warm, tmp_path: Path) -> None:
    code = f"""
import warnings
warnings.simplefilter("error")
from torch.utils.data import DataLoader
from bigconv.runtime import StoreDataset
loader = DataLoader(StoreDataset({str(path)!r}), 4, num_workers=1, persistent_workers=True)
kept = [batch for batch in loader]
iterator = iter(loader)
more = next(iterator)
"""
    done = warm.python(code, tmp_path, whole=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_slots_go_with_the_loader(path: Path) -> None:
    """Also when no batch is left that would be the last to go."""
    loader = DataLoader(StoreDataset(path), 4, num_workers=2, persistent_workers=True)
    check(loader)
    assert len(slots._rings) == 2
    del loader
    gc.collect()
    assert not slots._rings


def test_fifty_epochs_without_growth(path: Path) -> None:
    loader = DataLoader(StoreDataset(path), batch_size=50, num_workers=1)

    def state() -> tuple[int, int, int]:
        gc.collect()
        for thread in threading.enumerate():
            if thread.name == "QueueFeederThread":  # which closes the queue of a worker that has ended
                thread.join(10)
        status = Path("/proc/self/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return len(os.listdir("/proc/self/fd")), rss, sum(map(len, slots._rings.values()))

    for _ in range(3):
        assert sum(len(batch["label"]) for batch in loader) == 200
    before, names = state(), leftovers()
    for _ in range(50):
        assert sum(len(batch["label"]) for batch in loader) == 200
    after = state()
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1] + 8 * 1024  # KiB; an epoch's slots are 2.5 MiB
    assert after[2] <= before[2] + 2
    assert leftovers() <= names


def test_a_forked_child_frees_nothing(path: Path) -> None:
    """A process that is forked meanwhile has copies of the tensors; dropping them there means nothing here."""
    iterator = iter(DataLoader(StoreDataset(path), 4, num_workers=1))
    batch = next(iterator)
    pid = os.fork()
    if pid == 0:
        del batch
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    for _ in iterator:
        pass
    assert torch.equal(batch["image"], IMAGE[:4])


def test_batches_kept_for_a_while(path: Path) -> None:
    """Released in a random order, in the middle of the next epochs."""
    random, kept = np.random.default_rng(0), []
    loader = DataLoader(StoreDataset(path), 5, shuffle=True, num_workers=2, persistent_workers=True)
    for _ in range(5):
        for batch in loader:
            kept.append((row_of(batch["label"]), batch))
            while len(kept) > random.integers(1, 30):
                rows, old = kept.pop(int(random.integers(len(kept))))
                assert torch.equal(old["image"], IMAGE[rows])
                assert torch.equal(old["x"].nan_to_num(), X[rows])
                old["image"].fill_(77)  # a slot that somebody else still saw would show it
                old["x"].fill_(77)


def test_batches_used_in_another_thread(path: Path) -> None:
    """As the pin_memory thread does: received and copied there, released in any order."""
    from concurrent.futures import ThreadPoolExecutor

    loader = DataLoader(StoreDataset(path), 4, num_workers=2)
    with ThreadPoolExecutor(1) as pool:
        iterator = iter(loader)
        batches = [
            pool.submit(lambda: {name: column.clone() for name, column in next(iterator).items()}).result()
            for _ in range(50)
        ]
    check(batches)


class Keeping:
    """A collate function that keeps what it has seen, and sends it again."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def __call__(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.kept.append(default_collate(rows)["image"])
        return self.kept[-1], self.kept[max(0, len(self.kept) - 3)]


def test_a_worker_may_keep_batches(path: Path) -> None:
    """A slot that the worker still looks at isn't filled again, though the parent is done with it."""
    loader = DataLoader(StoreDataset(path), 4, num_workers=1, collate_fn=Keeping())
    for i, (new, old) in enumerate(loader):
        start = 4 * max(0, i - 2)
        assert torch.equal(new, IMAGE[4 * i : 4 * i + 4])
        assert torch.equal(old, IMAGE[start : start + 4])


def many_ways(rows: Any) -> dict[str, Any]:
    image = default_collate(rows)["image"]
    return {
        "whole": image,
        "again": image,
        "view": image[:, 1:],
        "last": image[-1],
        "axes": image.permute(0, 2, 3, 1),
        "half": image.to(torch.bfloat16),
        "bool": image > 3,
        "scalar": image.sum(),
        "empty": image[:0],
        "complex": torch.complex(image[0, 0].double(), image[0, 1].double()),
        "grad": image[0].float().requires_grad_(),
        "sparse": (image[0, 0] > 100).to_sparse(),
        "list": [row["label"] for row in rows],
    }


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_whatever_a_collate_function_makes(path: Path) -> None:
    loader = DataLoader(StoreDataset(path), 4, num_workers=1, collate_fn=many_ways)
    for i, batch in enumerate(loader):
        expected = many_ways([{"image": IMAGE[r], "label": int(LABEL[r])} for r in range(4 * i, 4 * i + 4)])
        for name, value in expected.items():
            got = batch[name]
            if isinstance(value, list):
                assert got == value
                continue
            assert (got.dtype, got.shape, got.requires_grad) == (value.dtype, value.shape, value.requires_grad)
            assert torch.equal(got.to_dense() if got.is_sparse else got, value.to_dense() if value.is_sparse else value)


def rows_as_they_are(rows: Any) -> list[Any]:
    return list(rows)


def test_rows_and_transforms_are_ordinary(path: Path) -> None:
    """A collate function of the user's own and a transform see what they see without workers."""
    rows = [
        row for batch in DataLoader(StoreDataset(path), 4, num_workers=1, collate_fn=rows_as_they_are) for row in batch
    ]
    assert [row["label"] for row in rows] == LABEL.tolist()
    assert torch.equal(torch.stack([row["image"] for row in rows]), IMAGE)
    halves = StoreDataset(path, transform=lambda row: row["image"] // 2)
    assert torch.equal(torch.cat(list(DataLoader(halves, 4, num_workers=2))), IMAGE // 2)
    whole = StoreDataset(path, batch_transform=lambda batch: batch["image"].div_(2, rounding_mode="floor"))
    assert torch.equal(torch.cat(list(DataLoader(whole, 4, num_workers=2))), IMAGE // 2)


def test_without_shared_memory_it_goes_torchs_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refused)
    check(DataLoader(StoreDataset(path), 4, num_workers=1))


def test_errors_name_the_row(path: Path) -> None:
    iterator = iter(DataLoader(StoreDataset(path), 2, sampler=[0, 1, 999, 2, 3], num_workers=1))
    assert torch.equal(next(iterator)["image"], IMAGE[:2])
    with pytest.raises(RowError, match="row 999 of 200 rows"):
        next(iterator)
    assert torch.equal(next(iterator)["image"], IMAGE[3:4])
    assert next(iterator, None) is None


def test_no_buffer_outside_a_worker() -> None:
    assert slots.buffer("x", 1 << 20) is None
    array = np.arange(10_000)
    assert slots.moved("x", array) is array
