"""Stores behind an S3 server, read through the cache: what comes damaged, late, or not at all."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bigconv
from bigconv.dataset import read
from bigconv.errors import IncompleteStore, NotAStore, StoreError
from bigconv.remote import urls
from tests.remote._given import PARTS, ROWS, forked, keys, killed, occupied, parts, put, raw, system
from tests.remote._proxy import Proxy


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "FIRST_PAUSE", 0.001)


def of_part(number: int) -> urls.Callable[[str, str], bool]:
    return lambda method, path: method == "GET" and f"part-{number:05}" in path and "list-type" not in path


def part_bytes(local: Path) -> int:
    return read(local).parts[0].bytes


def test_a_sharded_directory_is_fetched_part_by_part(s3: Proxy, local: Path, cache: Path) -> None:
    url = put(local, "train")
    s3.reset()
    view = bigconv.open(url)
    assert len(view) == ROWS
    assert s3.gets("part-") == []
    assert view[250]["x"][0] == 250
    assert len(s3.gets("part-")) == 1
    assert view.take(np.arange(ROWS))["x"][:, 0].tolist() == list(range(ROWS))
    assert len(s3.gets("part-")) == PARTS
    s3.reset()
    again = bigconv.open(url)
    assert again.take(np.arange(ROWS))["x"][:, 0].tolist() == list(range(ROWS))
    assert s3.gets("part-") == []
    assert occupied(cache) == PARTS * part_bytes(local)


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".lmdb", ".mmap"])
def test_one_store_is_fetched_whole(s3: Proxy, tmp_path: Path, suffix: str) -> None:
    bigconv.convert(raw(tmp_path), tmp_path / f"out{suffix}", workers=0)
    url = put(tmp_path / f"out{suffix}", f"out{suffix}")
    with bigconv.open(url) as view:
        assert view[::-1]["x"][:, 0].tolist() == list(range(ROWS))[::-1]
        assert repr(view).startswith(f"StoreView({url}: {ROWS} rows")


@pytest.mark.parametrize("kind", ["error", "slow", "truncated", "flipped", "stalled"])
def test_what_goes_wrong_once_is_fetched_again(s3: Proxy, local: Path, kind: str) -> None:
    url = put(local, "train")
    s3.reset()
    s3.inject(kind, of_part(2), pause=0.001)
    assert bigconv.open(url)[200]["x"][0] == 200
    assert len(s3.gets("part-")) == (1 if kind == "slow" else 2)


def test_what_stays_damaged_is_refused(s3: Proxy, local: Path, cache: Path) -> None:
    url = put(local, "train")
    s3.inject("flipped", of_part(1), times=100)
    with pytest.raises(IncompleteStore, match=rf"{url}/part-00001\S*: damaged, as fetched 3 times"):
        bigconv.open(url)[150]
    assert occupied(cache) == 0
    s3.reset()
    assert bigconv.open(url)[150]["x"][0] == 150


def test_a_damaged_single_store_is_refused(s3: Proxy, tmp_path: Path) -> None:
    bigconv.convert(raw(tmp_path), tmp_path / "out.h5", workers=0)
    url = put(tmp_path / "out.h5", "out.h5")
    s3.inject("flipped", lambda method, path: method == "GET" and path.endswith("out.h5"), times=100)
    with pytest.raises(StoreError, match=r"damaged|not a store"):
        bigconv.open(url)


def test_a_server_that_fails_is_told_of(s3: Proxy, local: Path) -> None:
    url = put(local, "train")
    view = bigconv.open(url)
    s3.inject("error", of_part(0), times=100)
    with pytest.raises(StoreError, match=rf"part-00000\S*: can't be fetched, in {urls.TRIES} tries"):
        view[0]


def test_a_wrong_credential(s3: Proxy, local: Path) -> None:
    url = put(local, "train")
    s3.inject("denied", lambda *_: True, times=100)
    with pytest.raises(StoreError, match=f"{url}.*: access denied; check the credentials"):
        bigconv.open(url)


def test_a_vanished_bucket(s3: Proxy, local: Path) -> None:
    url = put(local, "train")
    view = bigconv.open(url)
    system().rm("bucket", recursive=True)
    with pytest.raises(IncompleteStore, match=r"part-00000\S*: a part of the dataset is missing in the storage"):
        view[0]
    with pytest.raises(NotAStore, match=f"{url}: no such file or folder"):
        bigconv.open(url)


def test_a_part_replaced_by_another(s3: Proxy, local: Path, tmp_path: Path, cache: Path) -> None:
    """Of another dataset, and so of the same size; and one of another size. Nothing of it is kept."""
    url = put(local, "train")
    listed = read(local).parts
    put(local / listed[1].name, f"train/{listed[0].name}")
    view = bigconv.open(url)
    with pytest.raises(IncompleteStore, match=r"part-00000\S*: holds other rows than the dataset lists\nThe dataset"):
        view[0]
    put(raw(tmp_path, 3), f"train/{listed[0].name}")
    with pytest.raises(IncompleteStore, match="and the dataset lists"):
        view[0]
    assert occupied(cache) == 0
    put(local / listed[0].name, f"train/{listed[0].name}")
    assert view[0]["x"][0] == 0


def test_neighbours_are_left_alone(s3: Proxy, local: Path, tmp_path: Path) -> None:
    """Names that begin alike, and the empty objects by which some tools mark folders."""
    put(raw(tmp_path), "training/x.npy")
    url = put(local, "train")
    system().pipe_file("bucket/train.npy", b"no store")
    system().call_s3("put_object", Bucket="bucket", Key="train/", Body=b"")
    assert len(bigconv.open(url)) == ROWS
    with pytest.raises(NotAStore, match="not a store"):
        bigconv.open("s3://bucket/training")
    assert set(keys("train/")) >= {"manifest.json"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_killed_download_goes_on(s3: Proxy, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle of a part: what has come stays, and the next fetches the rest of it."""
    from bigconv.remote import download

    local = parts(tmp_path)
    url, size = put(local, "train"), part_bytes(local)
    s3.reset()
    s3.inject("stalled", lambda method, path: of_part(0)(method, path) and len(s3.gets("part-00000")) > 2, times=10)
    monkeypatch.setattr(download, "RANGE_BYTES", size // 5)
    monkeypatch.setattr(download, "AT_ONCE", 1)
    child = forked(lambda: bigconv.open(url)[0])
    wait(lambda: len(s3.gets("part-00000")) > 2)
    killed(child)
    had = occupied(cache)
    assert 0 < had < size
    s3.reset()
    assert bigconv.open(url)[0]["x"][0] == 0
    assert len(s3.gets("part-00000")) == 5 - had // (size // 5) + (size % 5 > 0)
    assert occupied(cache) == size


def test_others_wait_for_who_fetches(s3: Proxy, local: Path, cache: Path) -> None:
    url = put(local, "train")
    s3.reset()
    s3.inject("slow", of_part(0), pause=0.05)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(int(bigconv.open(url)[0]["x"][0]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0, 0, 0]
    assert len(s3.gets("part-00000")) == 1


def wait(until: urls.Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_limit_holds_while_parts_come_and_go(
    s3: Proxy, local: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = part_bytes(local)
    url = put(local, "train")
    monkeypatch.setenv("BIGCONV_CACHE_BYTES", str(2 * size))
    view, most = bigconv.open(url), 0
    for row in np.random.default_rng(0).integers(0, ROWS, 40).tolist():
        assert view[row]["x"][0] == row
        most = max(most, occupied(cache))
    assert size <= most <= 3 * size
