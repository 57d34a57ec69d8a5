"""`StreamDataset`: every row once over ranks and workers, whole batches, states that go on anywhere."""

import gc
import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from itertools import islice, zip_longest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bigconv.block import Block, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.runtime import stream as stream_module
from bigconv.runtime.dataset import StoreDataset
from bigconv.runtime.stream import StreamDataset
from bigconv.schema import Field, Schema

Make = Callable[..., Path]
pytestmark = [
    # more workers than the test machine has cores: they are about order, not speed
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*is deprecated, please:UserWarning"),  # torchdata's import of torch
]
SCHEMA = Schema((Field("x", "float32", (3,)), Field("label", "int64", (), "label")))


def numbered(rows: int, first: int = 0) -> Block:
    """Rows that carry their own number."""
    label = np.arange(first, first + rows)
    return Block(SCHEMA, {"x": np.repeat(label[:, None], 3, axis=1).astype(np.float32), "label": label})


@pytest.fixture
def path(make_store: Make) -> Path:
    return make_store(numbered(103), ".h5")


def labels(batches: object) -> list[int]:
    """Labels of batches or rows; each row is held against its own number on the way."""
    found: list[int] = []
    for batch in batches:  # type: ignore[attr-defined]
        label = torch.as_tensor(batch["label"]).reshape(-1)
        assert torch.equal(batch["x"].reshape(-1, 3)[:, 0].long(), label)
        found += label.tolist()
    return found


def plain(stream: StreamDataset, workers: int, **options: object) -> DataLoader:
    if workers:
        options = {"multiprocessing_context": "fork", **options}
    return DataLoader(stream, batch_size=None, num_workers=workers, **options)  # type: ignore[arg-type]


def test_in_order_and_shuffled(make_store: Make, suffix: str) -> None:
    path = make_store(numbered(103), suffix)
    assert labels(StreamDataset(path)) == list(range(103))
    assert labels(StreamDataset(path, batch_size=16)) == list(range(103))
    shuffled = labels(StreamDataset(path, shuffle=True, batch_size=16))
    assert sorted(shuffled) == list(range(103))
    assert shuffled != list(range(103))
    assert labels(StreamDataset(path, shuffle=True)) == shuffled  # by rows or by batches: the same order


def test_batches_are_those_of_the_dataset(path: Path) -> None:
    stream = StreamDataset(path, batch_size=10, fields=("label",))
    sizes = [len(label) for (label,) in stream]
    assert sizes == [10] * 10 + [3]
    assert len(stream) == 11
    doubled = StreamDataset(path, batch_size=10, transform=lambda row: row["label"] * 2)
    assert torch.cat(list(doubled)).tolist() == [2 * i for i in range(103)]
    assert list(StreamDataset(path, transform=lambda row: row["label"])) == list(range(103))
    whole = StoreDataset(path, batch_transform=lambda batch: batch["label"].sum())
    assert sum(int(total) for total in StreamDataset(whole, batch_size=10)) == sum(range(103))


def test_a_loader_batches_single_rows(path: Path) -> None:
    loader = DataLoader(StreamDataset(path, shuffle=True, seed=2), batch_size=8)
    assert len(loader) == 13
    assert sorted(labels(loader)) == list(range(103))


def test_rows_of_different_sizes_need_a_collate(make_store: Make) -> None:
    field = Field("t", "int32", (None,))
    rows = [np.arange(n, dtype=np.int32) for n in (3, 1, 2, 0)]
    path = make_store(Block(Schema((field,)), {"t": Ragged.of(rows, field)}), ".h5")
    with pytest.raises(SchemaError, match="can't be stacked"):
        list(StreamDataset(path, batch_size=4))
    (lengths,) = StreamDataset(path, batch_size=4, collate_fn=lambda batch: [len(row["t"]) for row in batch])
    assert lengths == [3, 1, 2, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("how", [{}, {"drop_last": True}, {"pad": True}])
def test_every_row_once_over_ranks_and_shards(make_store: Make, world_size: int, how: dict) -> None:
    """Uneven shards, rows or batches."""
    shards = [make_store(numbered(n, at), ".h5", f"s{at}") for at, n in ((0, 50), (50, 1), (51, 77))]
    for batch_size in (None, 5):
        options = {"shuffle": True, "world_size": world_size, "batch_size": batch_size, **how}
        ranks = [StreamDataset(shards, rank=rank, **options) for rank in range(world_size)]
        read = [list(rank) for rank in ranks]
        assert [len(rank) for rank in ranks] == [len(batches) for batches in read]
        found = np.bincount([label for batches in read for label in labels(batches)], minlength=128)
        if not how:
            assert (found == 1).all()
        else:
            assert len({str([np.shape(b["label"]) for b in batches]) for batches in read}) == 1
            assert found.max() == 1 if "drop_last" in how else found.min() == 1
            assert abs(int(found.sum()) - 128) < world_size * (batch_size or 1)


class Workers:
    """The workers of a DataLoader, one after another in this process: many of them in no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.patch, self.number = monkeypatch, number

    def read(self, make: Callable[[], StreamDataset], batches: int | None = None) -> tuple[list[int], StreamDataset]:
        """Labels of the first so many batches, as a DataLoader asks for them, and a stream whose reading it was."""
        readers = []
        for worker in range(max(self.number, 1)):
            info = SimpleNamespace(id=worker, num_workers=self.number) if self.number else None
            self.patch.setattr(stream_module, "get_worker_info", lambda info=info: info)
            readers.append(iter(make()))
        self.patch.setattr(stream_module, "get_worker_info", lambda: None)
        got = (batch for turn in zip_longest(*readers) for batch in turn if batch is not None)
        return labels(islice(got, batches)), make()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("how", [{}, {"drop_last": True}, {"pad": True}])
def test_every_row_once_over_ranks_and_workers(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, world_size: int, workers: int, how: dict
) -> None:
    """Uneven shards; and what a rank reads doesn't depend on its workers."""
    shards = [make_store(numbered(n, at), ".h5", f"s{at}") for at, n in ((0, 50), (50, 1), (51, 77))]
    dataset = StoreDataset(shards)
    found: list[int] = []
    for rank in range(world_size):

        def make(rank: int = rank) -> StreamDataset:
            return StreamDataset(dataset, shuffle=True, rank=rank, world_size=world_size, batch_size=5, **how)

        read, _ = Workers(monkeypatch, workers).read(make)
        assert read == labels(make())
        found += read
    counts = np.bincount(found, minlength=128)
    assert counts.max() == 1 or "pad" in how
    assert counts.min() == 1 or "drop_last" in how


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 4), (3, 1), (2, 4)])
@pytest.mark.parametrize(("later_ranks", "later_workers"), [(1, 1), (2, 4), (8, 0)])
def test_resume_at_any_batch_on_any_layout(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, ranks: int, workers: int, later_ranks: int, later_workers: int
) -> None:
    dataset = StoreDataset([make_store(numbered(n, at), ".h5", f"s{at}") for at, n in ((0, 20), (20, 1), (21, 18))])

    def read(ranks: int, workers: int, state: dict | None, batches: int | None = None) -> tuple[list[int], dict]:
        found: list[int] = []
        for rank in range(ranks):

            def make(rank: int = rank) -> StreamDataset:
                made = StreamDataset(dataset, shuffle=True, rank=rank, world_size=ranks, batch_size=3)
                if state is not None:
                    made.load_state_dict(state)
                return made

            labels, stream = Workers(monkeypatch, workers).read(make, batches)
            found += labels
        return found, stream.state_dict(batches=batches or 0)

    for batches in range(1 + -(-39 // (3 * ranks))):
        first, state = read(ranks, workers, None, batches)
        second, _ = read(later_ranks, later_workers, json.loads(json.dumps(state)))
        assert sorted(first + second) == list(range(39)), batches


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(path: Path, workers: int) -> None:
    stream = StreamDataset(path, shuffle=True, batch_size=7, rank=1, world_size=2)
    alone = labels(stream)
    loader = plain(stream, workers, persistent_workers=True)
    assert labels(loader) == alone
    stream.set_epoch(1)  # reaches workers that live on
    second = labels(loader)
    assert second == labels(stream)
    assert second != alone


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_start_methods(path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    stream = StreamDataset(path, shuffle=True, batch_size=10)
    next(iter(stream))
    stream.set_epoch(3)
    assert labels(plain(stream, 2, multiprocessing_context=method)) == labels(stream)


def test_rows_over_workers(path: Path) -> None:
    loader = DataLoader(StreamDataset(path, shuffle=True), batch_size=8, num_workers=3, multiprocessing_context="fork")
    assert sorted(labels(loader)) == list(range(103))


def test_rank_of_torch_distributed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is when the stream is made or read; another process is told."""
    early = StreamDataset(path)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    stream = StreamDataset(path)
    sent, sent_early = pickle.dumps(stream), pickle.dumps(early)
    assert len(labels(early)) == 26
    monkeypatch.undo()
    for one in (stream, pickle.loads(sent), pickle.loads(sent_early)):
        assert labels(one) == list(range(1, 103, 4))
    assert labels(StreamDataset(path)) == list(range(103))


def test_epochs(path: Path) -> None:
    stream = StreamDataset(path, shuffle=True, seed=5)
    first = labels(stream)
    assert labels(stream) == first  # nothing moves on by itself
    stream.set_epoch(1)
    assert labels(stream) != first
    stream.set_epoch(0)
    assert labels(stream) == first
    assert labels(StreamDataset(path, shuffle=True, seed=6)) != first


@pytest.mark.parametrize("batch_size", [None, 6])
@pytest.mark.parametrize("stop", [0, 1, 5, 17])
def test_resume_in_one_process(path: Path, batch_size: int | None, stop: int) -> None:
    options = {"shuffle": True, "batch_size": batch_size, "window": 40, "chunk": 8}
    stream = StreamDataset(path, **options)
    stream.set_epoch(2)
    whole = list(stream)
    reading = iter(stream)
    first = [next(reading) for _ in range(stop)]
    state = json.loads(json.dumps(stream.state_dict()))
    later = StreamDataset(path, **options)
    later.load_state_dict(state)
    assert later.epoch == 2
    assert labels(first) + labels(later) == labels(whole)
    assert labels(later) == labels(whole)  # after that from the start again
    # the epoch that a loop sets for the part it resumes is the state's own
    later.load_state_dict(state)
    later.set_epoch(2)
    assert len(labels(later)) == 103 - len(labels(first))
    later.load_state_dict(state)
    later.set_epoch(3)
    assert len(labels(later)) == 103
    # of two iterators the newer one counts
    older, newer = iter(stream), iter(stream)
    next(older), next(newer)
    state = stream.state_dict()
    list(older)
    assert stream.state_dict() == state


def test_resume_after_the_last_batch(path: Path) -> None:
    """Nothing is left of that epoch; the next one is whole."""
    stream = StreamDataset(path, shuffle=True, batch_size=10)
    for _ in stream:
        state = stream.state_dict()
    stream.load_state_dict(state)
    assert labels(stream) == []
    stream.set_epoch(1)
    assert sorted(labels(stream)) == list(range(103))


def test_resume_a_plain_loader_with_workers(path: Path) -> None:
    stream = StreamDataset(path, shuffle=True, batch_size=6)
    whole = labels(stream)
    stream = StreamDataset(path, shuffle=True, batch_size=6)
    loader = iter(plain(stream, 2))
    first = [next(loader) for _ in range(5)]
    state = stream.state_dict(batches=5)
    del loader
    for workers in (0, 1, 3):
        later = StreamDataset(path, shuffle=True, batch_size=6)
        later.load_state_dict(state)
        loader = iter(plain(later, workers))
        second = [next(loader) for _ in range(2)]
        again = later.state_dict(batches=2)
        del loader
        last = StreamDataset(path, shuffle=True, batch_size=6)
        last.load_state_dict(again)
        assert labels(first) + labels(second) + labels(plain(last, 2)) == whole


def test_resume_on_other_ranks_and_workers(path: Path) -> None:
    """Saved on 2 ranks, gone on with on 3, with other batches and workers; from both states, or from one."""
    options = {"shuffle": True, "seed": 9}
    states, first = [], []
    for rank in range(2):
        stream = StreamDataset(path, rank=rank, world_size=2, batch_size=4, **options)
        reading = iter(stream)
        first += labels([next(reading) for _ in range(7)])
        states.append(stream.state_dict())
    for state in (StreamDataset.merge(states), states[0], states[1]):
        rest = []
        for rank in range(3):
            later = StreamDataset(path, rank=rank, world_size=3, batch_size=5, **options)
            later.load_state_dict(state)
            rest += labels(plain(later, rank))
        assert sorted(first + rest) == list(range(103))


def test_states_of_another_order_are_refused(path: Path, make_store: Make) -> None:
    state = StreamDataset(path, shuffle=True, batch_size=4).state_dict()
    for other in (
        StreamDataset(path, shuffle=True, seed=1),
        StreamDataset(path),
        StreamDataset(path, shuffle=True, window=16),
        StreamDataset(make_store(numbered(102), ".h5", "other"), shuffle=True),
    ):
        with pytest.raises(UsageError, match=r"of another order: (seed|shuffle|window|rows) was"):
            other.load_state_dict(state)
    with pytest.raises(UsageError, match="not a state"):
        StreamDataset(path).load_state_dict({"epoch": 1})
    with pytest.raises(UsageError, match="give StreamDataset the batch_size"):
        StreamDataset(path).state_dict(batches=3)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_size", [None, 6])
def test_stateful_loader(path: Path, workers: int, batch_size: int | None) -> None:
    """torchdata's loader stops and goes on anywhere, over rows or whole batches, at the end of an epoch too."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make() -> tuple[StreamDataset, StatefulDataLoader]:
        stream = StreamDataset(path, shuffle=True, seed=4, batch_size=batch_size)
        outer = None if batch_size else 6
        context = {"multiprocessing_context": "fork"} if workers else {}
        return stream, StatefulDataLoader(stream, batch_size=outer, num_workers=workers, **context)

    _, loader = make()
    whole = labels(loader)
    assert sorted(whole) == list(range(103))
    total = len(list(loader))
    for stop in (0, 1, 4, total):
        _, loader = make()
        reading = iter(loader)
        first = labels([next(reading) for _ in range(stop)])
        state = loader.state_dict()
        _, loader = make()
        loader.load_state_dict(state)
        assert first + labels(loader) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loader_at_the_end_of_an_epoch(path: Path, workers: int) -> None:
    """A finished epoch's state leads to the next epoch, whole."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    context = {"multiprocessing_context": "fork"} if workers else {}
    stream = StreamDataset(path, shuffle=True, batch_size=6)
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=workers, **context)
    list(loader)
    state = loader.state_dict()
    later = StreamDataset(path, shuffle=True, batch_size=6)
    loader = StatefulDataLoader(later, batch_size=None, num_workers=workers, **context)
    loader.load_state_dict(state)
    later.set_epoch(1)
    stream.set_epoch(1)
    assert labels(loader) == labels(stream)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_stateful_loaders_merge(path: Path, batch_size: int | None) -> None:
    """Workers stopped wherever they were, put together, gone on with on another number of all."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    first, states = [], []
    for rank in range(2):
        stream = StreamDataset(path, shuffle=True, batch_size=batch_size, rank=rank, world_size=2)
        outer = None if batch_size else 4
        loader = StatefulDataLoader(stream, batch_size=outer, num_workers=3, multiprocessing_context="fork")
        reading = iter(loader)
        first += labels([next(reading) for _ in range(4 + rank)])
        states.append(loader.state_dict())
        del reading, loader
    state = StreamDataset.merge(states)
    rest = []
    for rank in range(3):
        later = StreamDataset(path, shuffle=True, batch_size=7, rank=rank, world_size=3)
        later.load_state_dict(state)
        rest += labels(plain(later, 2))
    assert sorted(first + rest) == list(range(103))
    lane = StreamDataset(path, shuffle=True, batch_size=4)
    lane.load_state_dict(states[0]["_snapshot"]["_worker_snapshots"]["worker_1"]["dataset_state"])
    with pytest.raises(UsageError, match="Put the workers' states together"):
        next(iter(lane))


def test_mixing(make_store: Make) -> None:
    sources = [
        make_store(numbered(40), ".h5", "a"),
        [make_store(numbered(30, 40 + 30 * i), ".h5", f"b{i}") for i in (0, 1)],
    ]
    options = {"weights": [0.75, 0.25], "rows": 400, "batch_size": 10, "shuffle": True, "seed": 2}
    stream = StreamDataset(sources, **options)
    assert len(stream) == 40
    whole = labels(stream)
    of_a = [label for label in whole if label < 40]
    assert len(of_a) == pytest.approx(300, abs=40)
    counts = np.bincount(of_a)
    assert counts.max() - counts.min() <= 1
    of_b = [label for label in whole if label >= 40]
    assert len(set(of_b[:60])) == 60
    again = StreamDataset(sources, **options)
    assert labels(plain(again, 2)) == whole
    reading = iter(stream)
    first = labels([next(reading) for _ in range(11)])
    again.load_state_dict(stream.state_dict())
    assert first + labels(again) == whole
    assert sum(len(labels(StreamDataset(sources, rank=r, world_size=3, **options))) for r in range(3)) == 400


def descriptors() -> int:
    """How many are open. Queues of multiprocessing close theirs in threads of their own: these end first."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(30)
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_leaving_early_is_clean(path: Path) -> None:
    """A loop that breaks leaves no worker, no descriptor; the next one begins anew."""
    stream = StreamDataset(path, shuffle=True, batch_size=4)
    whole = labels(stream)
    counts = []
    for _ in range(4):
        for _ in plain(stream, 2):
            break
        counts.append(descriptors())
        assert not multiprocessing.active_children()
    assert counts[1:] == counts[:1] * 3
    assert labels(plain(stream, 2)) == whole


def test_an_error_names_the_row_and_does_not_hang(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # so many seconds torch waits for each worker of an iterator that an error has ended: five
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)

    def transform(row: dict) -> dict:
        if row["label"] == 50:
            raise ValueError("row 50 is bad")
        return row

    for batch_size in (None, 7):
        with pytest.raises(ValueError, match="row 50 is bad"):
            list(plain(StreamDataset(path, transform=transform, batch_size=batch_size), 2))
    gc.collect()  # the iterators, here


def test_refused(path: Path) -> None:
    for message, build in {
        "2 weights for 1 sources": lambda: StreamDataset(path, weights=[1, 2]),
        "positive numbers": lambda: StreamDataset([path, path], weights=[1, 0]),
        "give weights too": lambda: StreamDataset(path, rows=5),
        "rows must be positive": lambda: StreamDataset([path], weights=[1], rows=0),
        "need a batch_size": lambda: StreamDataset(path, collate_fn=list),
        "batch_size must be positive": lambda: StreamDataset(path, batch_size=-1),
        "exclude each other": lambda: StreamDataset(path, drop_last=True, pad=True),
        "rank and world_size together": lambda: StreamDataset(path, rank=1),
        "rank 2 of 2": lambda: StreamDataset(path, rank=2, world_size=2),
        "window and chunk": lambda: StreamDataset(path, window=0),
        "whole numbers": lambda: StreamDataset(path, shuffle=True, seed=-1),
        "its own fields": lambda: StreamDataset(StoreDataset(path), fields=["x"]),
    }.items():
        with pytest.raises(UsageError, match=message):
            build()
