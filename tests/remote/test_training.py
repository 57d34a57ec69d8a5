"""Epochs over parts behind an S3 server: in this process, in forked and in spawned workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from torch.utils.data import DataLoader

import bigconv
from bigconv.dataset import read
from bigconv.runtime import Loader, StoreDataset, StreamDataset
from tests.remote._given import PARTS, ROWS, occupied, parts, put
from tests.remote._proxy import Proxy


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts(tmp_path_factory.mktemp("parts"))


@contextmanager
def watching(cache: Path) -> Iterator[list[int]]:
    """Bytes that the cache takes, looked at all the time."""
    seen, stop = [0], threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.append(occupied(cache))
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    stop.set()
    thread.join()


def rows(loader: object) -> list[int]:
    return [int(row) for batch in loader for row in batch["x"][:, 0]]  # type: ignore[attr-defined]


def test_every_row_once_and_the_next_epoch_without_the_network(s3: Proxy, local: Path) -> None:
    stream = StreamDataset(put(local, "train"), shuffle=True, batch_size=64, window=200)
    assert sorted(rows(DataLoader(stream, batch_size=None))) == list(range(ROWS))
    assert len(s3.gets("part-")) == PARTS
    s3.reset()
    stream.set_epoch(1)
    assert sorted(rows(DataLoader(stream, batch_size=None))) == list(range(ROWS))
    assert s3.requests == []


def test_forked_workers_within_the_limit(s3: Proxy, local: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent has talked to the storage before it forks, in threads that its workers don't have."""
    size = read(local).parts[0].bytes
    monkeypatch.setenv("BIGCONV_CACHE_BYTES", str(3 * size))
    url = put(local, "train")
    assert bigconv.open(url)[0]["x"][0] == 0
    stream = StreamDataset(url, shuffle=True, batch_size=50, window=200)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    with watching(cache) as seen:
        assert sorted(rows(loader)) == list(range(ROWS))
        stream.set_epoch(1)
        assert sorted(rows(loader)) == list(range(ROWS))
    assert size <= max(seen) <= 4 * size


def test_a_spawned_worker_and_a_bad_line(s3: Proxy, local: Path) -> None:
    url = put(local, "train")
    dataset = StoreDataset(url)
    assert dataset[0]["x"][0] == 0
    s3.reset()
    for kind in ("error", "truncated", "flipped"):
        s3.inject(kind, lambda method, path: method == "GET" and "part-" in path and "list-type" not in path, times=2)
    loader = DataLoader(dataset, batch_size=100, num_workers=1, multiprocessing_context="spawn")
    assert rows(loader) == list(range(ROWS))
    assert len(s3.gets("part-")) == PARTS - 1 + 6


def test_threads_fetch_parts_ahead(s3: Proxy, local: Path) -> None:
    """While the first batch is being read, the parts of those behind it are on their way."""
    loader = Loader(StoreDataset(put(local, "train")), batch_size=20, threads=2)
    assert sorted(rows(loader)) == list(range(ROWS))
    assert len(s3.gets("part-")) == PARTS


def test_the_next_parts_are_asked_for_before_they_are_read(s3: Proxy, local: Path) -> None:
    dataset = StoreDataset(put(local, "train"))
    dataset.will_need(np.arange(ROWS // PARTS * 2))
    end = time.monotonic() + 20
    while len(s3.gets("part-")) < 3 and time.monotonic() < end:  # those two, and the one behind
        time.sleep(0.01)
    assert sorted({request[:28] for request in s3.gets("part-")}) == [
        f"GET /bucket/train/part-0000{n}" for n in range(3)
    ]
    assert dataset[: ROWS // PARTS * 3]["x"][:, 0].tolist() == list(range(ROWS // PARTS * 3))
    assert len([request for request in s3.gets("part-") if "part-00003" not in request]) == 3
