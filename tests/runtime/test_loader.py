"""Loader against a DataLoader without workers; and that its threads end, whatever happens."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _damaged
import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from bigconv.errors import RowError, UsageError
from bigconv.runtime import BatchOrder, Loader, StoreDataset
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from tests.warm import Warm

Make = Callable[..., Path]
SCHEMA = Schema((Field("x", "uint8", (30,)), Field("label", "int64", (), "label")))
BLOCK = cases.block(SCHEMA, 103, seed=1)
LABELS = np.asarray(BLOCK["label"]).tolist()


class Numbers(Dataset[int]):
    """The plainest dataset there is; calls `at(i)` before it gives row i."""

    def __init__(self, rows: int, at: Callable[[int], object] = lambda i: None) -> None:
        self.rows, self.at = rows, at

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> int:
        assert type(i) is int
        self.at(i)
        return i


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def dataset(make_store: Make) -> StoreDataset:
    return StoreDataset(make_store(BLOCK, ".mmap"))


def flat(batches: Any) -> list[int]:
    return [int(i) for batch in batches for i in batch]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_as_a_dataloader(dataset: StoreDataset, threads: int, drop_last: bool) -> None:
    options = {"batch_size": 8, "drop_last": drop_last}
    loader = Loader(dataset, threads=threads, **options)  # type: ignore[arg-type]
    expected = list(DataLoader(dataset, **options))  # type: ignore[arg-type]
    for _ in range(2):
        got = list(loader)
        assert len(got) == len(loader) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
            a["x"].zero_()


def test_shuffle(dataset: StoreDataset) -> None:
    """Every row once; an order that follows from seed and epoch, whatever the number of threads."""

    def epochs(loader: Loader) -> list[list[int]]:
        return [torch.cat([batch["label"] for batch in loader]).tolist() for _ in range(2)]

    first, second = epochs(Loader(dataset, 8, shuffle=True, seed=3))
    assert sorted(first) == sorted(second) == sorted(LABELS)
    assert first != second != LABELS
    assert epochs(Loader(dataset, 8, shuffle=True, seed=3, threads=5, prefetch=9)) == [first, second]
    assert epochs(Loader(dataset, 8, shuffle=True, seed=4))[0] != first
    loader = Loader(dataset, 8, shuffle=True, seed=3)
    loader.set_epoch(1)
    assert epochs(loader)[0] == second


@pytest.mark.parametrize("threads", [0, 2])
def test_any_dataset_and_any_order(dataset: StoreDataset, threads: int) -> None:
    plain = Numbers(20)
    assert flat(Loader(plain, 3, threads=threads)) == list(range(20))
    assert flat(Loader(Subset(plain, [4, 2, 9]), 2, threads=threads)) == [4, 2, 9]
    assert sorted(flat(Loader(Subset(plain, [4, 2, 9]), 2, shuffle=True, threads=threads))) == [2, 4, 9]
    assert flat(Loader(ConcatDataset([plain, plain]), 7, threads=threads)) == list(range(20)) * 2
    assert flat(b[0] for b in Loader(TensorDataset(torch.arange(9)), 2, threads=threads)) == list(range(9))
    assert flat(Loader(plain, 2, sampler=[7, 7, 1], threads=threads)) == [7, 7, 1]
    assert flat(Loader(plain, 2, sampler=[7, 7, 1], drop_last=True, threads=threads)) == [7, 7]
    assert set(flat(Loader(plain, 2, sampler=WeightedRandomSampler([0] * 19 + [1], 4), threads=threads))) == {19}
    assert [b.tolist() for b in Loader(plain, batch_sampler=[[3], [1, 2]], threads=threads)] == [[3], [1, 2]]
    assert list(Loader(plain, None, sampler=[3, 1], threads=threads)) == [3, 1]
    assert list(Loader(plain, 8, collate_fn=sum, threads=threads)) == [28, 92, 70]
    assert list(Loader(Numbers(0), 8, shuffle=True, threads=threads)) == []
    order = BatchOrder(dataset, 16, seed=3)
    whole = Loader(dataset, None, sampler=order, threads=threads)
    assert len(whole) == 7
    assert sorted(torch.cat([batch["label"] for batch in whole]).tolist()) == sorted(LABELS)
    labels = torch.cat([batch["label"] for batch in Loader(Subset(dataset, range(5, 50)), 8, threads=threads)])
    assert labels.tolist() == LABELS[5:50]


def test_other_datasets_get_lists() -> None:
    class Whole(Numbers):
        def __getitems__(self, rows: Any) -> list[int]:
            assert type(rows) is list
            assert type(rows[0]) is int
            return rows

    assert sorted(flat(Loader(Whole(20), 3, shuffle=True))) == list(range(20))


@pytest.mark.parametrize("in_order", [True, False])
def test_order_of_batches(in_order: bool) -> None:
    """The first batch is the slowest: in order all wait for it, else it comes when it's done."""
    later = threading.Event()
    dataset = Numbers(12, lambda i: later.wait(20) if i == 0 and not in_order else time.sleep(0.01 * (i < 2)))
    seen = []
    for batch in Loader(dataset, 1, threads=3, in_order=in_order):
        seen.append(int(batch))
        if len(seen) == 5:
            later.set()
    assert sorted(seen) == list(range(12))
    assert (seen == list(range(12))) == in_order


def test_prefetch_is_bounded() -> None:
    begun: list[int] = []
    iterator = iter(Loader(Numbers(50, begun.append), 1, threads=3, prefetch=4))
    for ahead in (4, 5):
        for _ in range(1000):
            if len(begun) >= ahead:
                break
            time.sleep(0.01)
        time.sleep(0.05)  # for what should not begin
        assert sorted(begun) == list(range(ahead))
        next(iterator)


def test_without_threads_nothing_is_read_ahead() -> None:
    begun: list[int] = []
    iterator = iter(Loader(Numbers(50, begun.append), 1, threads=0))
    assert begun == []
    next(iterator)
    assert begun == [0]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_errors_come_where_their_batch_would_have(threads: int) -> None:
    def fail(i: int) -> None:
        if i == 13:
            raise ValueError("row 13 is bad")

    iterator = iter(Loader(Numbers(20, fail), 2, threads=threads))
    assert flat(next(iterator) for _ in range(6)) == list(range(12))
    with pytest.raises(ValueError, match="row 13 is bad") as error:
        next(iterator)
    assert error.value.__notes__ == ["in batch 6 of a Loader, rows [12, 13]"]
    assert any(entry.name == "fail" for entry in error.traceback)  # where it happened, not where it was passed on
    if threads:
        assert flat(iterator) == list(range(14, 20))  # who can do without the batch goes on


@pytest.mark.parametrize("threads", [0, 2])
def test_errors_name_the_row(dataset: StoreDataset, threads: int) -> None:
    with pytest.raises(RowError, match="row 999 of 103 rows"):
        list(Loader(dataset, 2, sampler=[1, 2, 3, 999], threads=threads))


def test_errors_of_samplers_and_collate_functions() -> None:
    def sampler() -> Iterator[int]:
        yield from range(5)
        raise OSError("no more numbers")

    got = []
    with pytest.raises(OSError, match="no more numbers"):
        for batch in Loader(Numbers(9), 2, sampler=sampler()):
            got += batch.tolist()
    assert got == [0, 1, 2, 3]

    def collate(rows: list[int]) -> list[int]:
        raise StopIteration

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(Loader(Numbers(9), 2, collate_fn=collate))

    def leave(i: int) -> None:
        sys.exit(3)

    with pytest.raises(SystemExit):
        list(Loader(Numbers(9, leave), 2))


def test_threads_end_with_the_loop() -> None:
    before = threading.active_count()
    loader = Loader(Numbers(100), 2, threads=3)
    for _ in loader:
        assert threading.active_count() > before
        break
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            raise ZeroDivisionError
    gc.collect()
    assert threading.active_count() == before
    iterator = iter(loader)
    next(iterator)
    cycle: list[Any] = [iterator]
    cycle.append(cycle)
    del iterator, cycle
    gc.collect()
    assert threading.active_count() == before
    for _ in loader:
        pass
    assert threading.active_count() == before


def test_several_iterators_at_once(dataset: StoreDataset) -> None:
    loader = Loader(dataset, 8)
    for a, b, c in zip(loader, loader, Loader(dataset, 8), strict=True):
        assert torch.equal(a["label"], b["label"])
        assert torch.equal(a["label"], c["label"])


def test_an_iterator_given_up_lets_go_of_everything() -> None:
    numbers = Numbers(100)
    gone = weakref.ref(numbers)
    iterator = iter(Loader(numbers, 2))
    next(iterator)
    del numbers, iterator
    gc.collect()
    assert gone() is None


def test_batches_are_let_go_of() -> None:
    """The loader keeps no batch that the consumer has had."""
    gone: list[weakref.ref[torch.Tensor]] = []
    for batch in Loader(Numbers(20), 2):
        assert sum(ref() is not None for ref in gone) <= 3  # the loop's variable, and threads about to go on
        gone.append(weakref.ref(batch))
    del batch
    assert all(ref() is None for ref in gone)


def test_ctrl_c_while_waiting() -> None:
    release = threading.Event()
    iterator = iter(Loader(Numbers(10, lambda i: release.wait(20)), 2))

    def press() -> None:
        while not release.is_set():  # again, should it come before anybody waits
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            release.wait(1)

    def heard(*_: object) -> None:
        release.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, heard)  # whatever another test has left
    timer = threading.Timer(0.2, press)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        timer.join()
        assert list(iterator) == []
    finally:
        release.set()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt", "import sys; sys.exit(0)"])
def test_the_process_ends_with_a_loop_half_done(dataset: StoreDataset, warm: Warm, tmp_path: Path, end: str) -> None:
    code = f"""
from bigconv.runtime import Loader, StoreDataset
iterator = iter(Loader(StoreDataset({str(dataset.view.paths[0])!r}), 2, threads=3))
next(iterator)
{end}
"""
    done = warm.python(code, tmp_path, whole=True)
    assert done.stderr.count("Traceback") == ("Keyboard" in end), done.stderr
    assert (done.returncode == 0) == ("Keyboard" not in end)


def test_a_forked_child_is_not_held_up(dataset: StoreDataset) -> None:
    iterator = iter(Loader(dataset, 2))
    next(iterator)
    pid = os.fork()
    if pid == 0:
        del iterator
        gc.collect()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert len(list(iterator)) == 51


def test_state(dataset: StoreDataset) -> None:
    """What has been read ahead doesn't count as read."""

    def labels(loader: Loader, batches: int = 99) -> list[list[int]]:
        return [batch["label"].tolist() for batch, _ in zip(loader, range(batches), strict=False)]

    for threads in (0, 3):
        loader = Loader(dataset, 8, shuffle=True, seed=5, threads=threads)
        one, two = labels(loader), labels(loader)
        loader = Loader(dataset, 8, shuffle=True, seed=5, threads=threads)
        start = loader.state_dict()
        iterator = iter(loader)
        assert loader.state_dict() == start
        assert [next(iterator)["label"].tolist() for _ in range(5)] == one[:5]
        state = loader.state_dict()
        assert [batch["label"].tolist() for batch in iterator] == one[5:]
        end = loader.state_dict()
        fresh = Loader(dataset, 8, shuffle=True, seed=5, threads=threads)
        fresh.load_state_dict(state)
        assert labels(fresh) == one[5:]
        assert labels(fresh) == two
        fresh.load_state_dict(end)
        assert labels(fresh) == two
    with pytest.raises(UsageError, match="own order"):
        Loader(dataset, 8, sampler=[1]).state_dict()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_state_is_the_newest_iterators(dataset: StoreDataset, threads: int) -> None:
    """Whatever is still read from an older one, to its end."""
    loader = Loader(dataset, 8, threads=threads)
    older = iter(loader)
    next(older)
    newer = iter(loader)
    next(newer)
    for _ in older:
        assert (loader.state_dict()["epoch"], loader.state_dict()["taken"]) == (1, 1)
    loader.load_state_dict(loader.state_dict() | {"taken": 4})
    next(newer)
    assert loader.state_dict()["taken"] == 4


@pytest.mark.parametrize("threads", [0, 2])
def test_a_batch_that_failed_is_behind_the_next(threads: int) -> None:
    def at(i: int) -> None:
        if i == 9:
            raise OSError("no such thing")

    loader = Loader(Numbers(40, at), 4, threads=threads)
    batches = iter(loader)
    assert flat([next(batches), next(batches)]) == list(range(8))
    with pytest.raises(OSError, match="no such thing"):
        next(batches)
    assert loader.state_dict()["taken"] == 2  # to be tried again
    assert next(batches).tolist() == [12, 13, 14, 15]
    later = Loader(Numbers(40), 4)
    later.load_state_dict(loader.state_dict())
    assert flat(later) == list(range(16, 40))
    del batches
    gc.collect()  # the error's traceback has it, too


Pair = namedtuple("Pair", "a b")


def test_device() -> None:
    """A batch of any build arrives with its tensors on the device. `meta` is a device that every machine has."""

    def collate(rows: list[int]) -> Any:
        return {"pair": Pair(torch.tensor(rows), ["text"]), "list": [torch.ones(2), None], "tuple": (torch.zeros(1),)}

    for batch in Loader(Numbers(4), 2, collate_fn=collate, device="meta"):
        assert type(batch["pair"]) is Pair
        assert batch["pair"].a.device.type == batch["list"][0].device.type == batch["tuple"][0].device.type == "meta"
        assert batch["pair"].b == ["text"]
    assert [b.device.type for b in Loader(Numbers(4), 2, device="cpu")] == ["cpu", "cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("threads", [0, 2])
def test_cuda(dataset: StoreDataset, threads: int) -> None:
    expected = torch.from_numpy(np.array(BLOCK["x"]))
    for _ in range(3):
        batches = list(Loader(dataset, 8, threads=threads, device="cuda"))
        assert torch.equal(torch.cat([batch["x"] for batch in batches]).cpu(), expected)
    pinned = next(iter(Loader(dataset, 8, threads=threads, pin_memory=True)))
    assert pinned["x"].is_pinned()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_pin_memory_without_a_device_says_so(dataset: StoreDataset) -> None:
    with pytest.warns(UserWarning, match="no CUDA device"):
        loader = Loader(dataset, 50, pin_memory=True)
    assert len(list(loader)) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": -1}, "threads must be 0 or more"),
        ({"prefetch": 0}, "prefetch 1 or more"),
        ({"shuffle": True, "sampler": [1]}, "leave out shuffle"),
        ({"batch_sampler": [[1]], "batch_size": 4}, "leave out batch_size"),
        ({"batch_sampler": [[1]], "shuffle": True}, "leave out batch_size"),
        ({"batch_size": None}, "give a sampler"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Loader(Numbers(3), **options)


def test_iterable_datasets_are_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.raises(UsageError, match="use a DataLoader"):
        Loader(Stream())


# -- small batches, several at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("fields", [None, ("label",), ["label", "x"]])
def test_small_batches_have_tensors_of_their_own(dataset: StoreDataset, threads: int, fields: Any, tmp_path) -> None:
    """They are gathered together; what is done to one, or saved of it, has nothing to do with the others."""
    dataset = StoreDataset(dataset.view.paths[0], fields)
    loader = Loader(dataset, 8, shuffle=True, threads=threads, seed=3)
    assert loader.together > 1
    order = list(BatchOrder(dataset, 8, seed=3))
    batches = list(loader)
    assert len(batches) == len(order) == len(loader)
    for batch, rows in zip(batches, order, strict=True):
        label = batch[0] if isinstance(batch, tuple) else batch["label"]
        assert label.tolist() == [LABELS[row] for row in rows]
        assert label.untyped_storage().nbytes() == label.nbytes
        label.fill_(-1)
    torch.save(batches[1], tmp_path / "batch")
    assert (tmp_path / "batch").stat().st_size < 4000


def test_an_error_among_small_batches_comes_in_its_place(dataset: StoreDataset, monkeypatch) -> None:
    _damaged.row_20(monkeypatch)
    for threads in (0, 2):
        batches = iter(Loader(dataset, 8, threads=threads))
        got = [next(batches)["label"].tolist() for _ in range(2)]
        assert got == [LABELS[:8], LABELS[8:16]]
        with pytest.raises(OSError, match="can't read") as raised:
            next(batches)
        assert "batch 2 of a Loader, rows [16, 17" in raised.value.__notes__[0]
        assert next(batches)["label"].tolist() == LABELS[24:32]
        del batches, raised
        gc.collect()


def test_a_state_in_the_middle_of_small_batches(dataset: StoreDataset) -> None:
    loader = Loader(dataset, 8, shuffle=True)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state, rest = loader.state_dict(), [batch["label"].tolist() for batch in batches]
    other = Loader(dataset, 8, shuffle=True, threads=0)
    other.load_state_dict(state)
    assert [batch["label"].tolist() for batch in other] == rest
