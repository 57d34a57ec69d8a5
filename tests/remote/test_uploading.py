"""Stores made here and uploaded: what readers see meanwhile, what a failure or a kill leaves, what is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigconv
from bigconv import fsio
from bigconv.errors import NotAStore, OutputError, StoreError, UsageError
from bigconv.locks import Lock
from bigconv.remote import upload, urls
from bigconv.remote.upload import staging
from bigconv.remote.urls import Url
from tests.remote._given import PARTS, ROWS, forked, keys, killed, put, raw, system
from tests.remote._proxy import Proxy

URL = "s3://bucket/train"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "FIRST_PAUSE", 0.001)


def convert(folder: Path, url: str = URL, seed: int = 0, **options: Any) -> Any:
    options = {"workers": 0, **({} if Path(url).suffix else {"shards": PARTS}), **options}
    return bigconv.convert(raw(folder, seed=seed), url, **options)


def putting(part: str) -> Callable[[str, str], bool]:
    return lambda method, path: method == "PUT" and part in path


def contents(prefix: str) -> dict[str, bytes]:
    return {name: system().cat_file(f"bucket/{prefix}/{name}".rstrip("/")) for name in keys(prefix)}


def locally(folder: Path, name: str = "train", seed: int = 0, **options: Any) -> dict[str, bytes]:
    """The same, made without any storage."""
    convert(folder, str(folder / "local" / name), seed, **options)
    path = folder / "local" / name
    names = fsio.files_below(path) if path.is_dir() else {"": 0}
    return {file: (path / file if file else path).read_bytes() for file in names}


@pytest.mark.parametrize("name", ["train", "out.h5", "out.zarr"])
def test_what_is_uploaded_is_what_is_made_here(s3: Proxy, tmp_path: Path, name: str) -> None:
    (tmp_path / "local").mkdir()
    convert(tmp_path, f"s3://bucket/{name}")
    assert contents(name) == locally(tmp_path, name)
    with bigconv.open(f"s3://bucket/{name}") as view:
        assert view[7]["x"][0] == 7


def test_nothing_is_left_here(s3: Proxy, tmp_path: Path, cache: Path) -> None:
    """One store becomes the local copy; it is not fetched to find out that nothing has changed."""
    convert(tmp_path, "s3://bucket/out.h5")
    assert list((cache / "uploads").iterdir()) == []
    s3.reset()
    convert(tmp_path, "s3://bucket/out.h5")
    assert bigconv.open("s3://bucket/out.h5")[3]["x"][0] == 3
    # of a folder's manifest s3fs of 2025 asks with GET whether it is there, later ones with HEAD: it isn't
    assert not [r for r in s3.requests if r.startswith("PUT") or r.split("?")[0] == "GET /bucket/out.h5"]


def test_the_manifest_is_last(s3: Proxy, tmp_path: Path) -> None:
    convert(tmp_path)
    sent = [request for request in s3.requests if request.startswith("PUT")]
    assert sent[-1].endswith("train/manifest.json")
    assert len(sent) == PARTS + 2


@pytest.mark.parametrize(("kind", "times"), [("error", 2), ("truncated", 1)])
def test_a_key_that_fails_is_sent_again(s3: Proxy, tmp_path: Path, kind: str, times: int) -> None:
    s3.inject(kind, putting("part-00003"), times)
    convert(tmp_path)
    assert bigconv.open(URL)[ROWS - 1]["x"][0] == ROWS - 1


def test_an_upload_that_failed_goes_on(s3: Proxy, tmp_path: Path) -> None:
    """The storage fails for good in the middle; the same command later sends what is missing, and makes nothing."""
    (tmp_path / "local").mkdir()
    s3.inject("error", putting("part-00002"), times=100)
    with pytest.raises(OutputError, match=rf"part-00002\S*: can't be uploaded, in {urls.TRIES} tries"):
        convert(tmp_path)
    with pytest.raises(NotAStore):
        bigconv.open(URL)
    before = keys("train")
    assert before
    s3.reset()
    assert convert(tmp_path).rows == ROWS
    again = [request for request in s3.requests if request.startswith("PUT")]
    assert len(again) == PARTS + 2 - len(before)
    assert contents("train") == locally(tmp_path)


def killed_at(s3: Proxy, folder: Path, name: str, last: str) -> None:
    """Kill a conversion while it waits for the answer to its last key, as if the key hadn't arrived."""
    s3.inject("stalled", putting(f"{name}/{last}"), times=100)
    child = forked(lambda: convert(folder, f"s3://bucket/{name}"))
    wait(lambda: bool(system().exists(f"bucket/{name}/{last}")))
    killed(child)
    system().rm_file(f"bucket/{name}/{last}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("name", ["train", "out.zarr"])
def test_a_killed_upload_goes_on(s3: Proxy, tmp_path: Path, name: str) -> None:
    """SIGKILL while a key is on its way: no store is there; the same command makes the same bytes of it."""
    (tmp_path / "local").mkdir()
    killed_at(s3, tmp_path, name, "manifest.json" if name == "train" else "zarr.json")
    with pytest.raises(NotAStore):
        bigconv.open(f"s3://bucket/{name}")
    s3.reset()
    convert(tmp_path, f"s3://bucket/{name}")
    assert len([request for request in s3.requests if request.startswith("PUT")]) == 1
    assert contents(name) == locally(tmp_path, name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("gone", ["part-00000*", "manifest.json"])
def test_killed_while_what_was_uploaded_is_removed_here(s3: Proxy, tmp_path: Path, gone: str) -> None:
    """Half of it is left in the cache, which is nothing to go on from, and in nobody's way."""
    (tmp_path / "local").mkdir()
    killed_at(s3, tmp_path, "train", "manifest.json")
    made = next((tmp_path / "cache" / "uploads").glob("*/train"))
    for path in made.glob(gone):
        fsio.remove(path)
    s3.reset()
    convert(tmp_path, "s3://bucket/train")
    assert contents("train") == locally(tmp_path, "train")
    assert not made.exists()


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_readers_see_the_old_or_the_new(s3: Proxy, tmp_path: Path) -> None:
    """At every request of an upload that replaces a dataset, it is opened and read."""
    convert(tmp_path)
    seen: list[int] = []
    inside: list[bool] = []

    def look(method: str, path: str) -> bool:
        if method in ("PUT", "DELETE") and not inside:
            inside.append(True)
            seen.append(int(bigconv.open(URL)[1]["x"][1]))
            inside.clear()
        return False

    s3.inject("error", look)
    convert(tmp_path, seed=1, overwrite=True)
    now = int(bigconv.open(URL)[1]["x"][1])
    assert len(seen) > PARTS
    assert len(set(seen)) == 2
    assert seen == sorted(seen, key=lambda value: value == now)
    assert len(keys("train")) == PARTS + 2


def test_a_folder_that_is_replaced_is_refused_meanwhile(s3: Proxy, tmp_path: Path) -> None:
    """Its keys keep their names: it is no store while they change, and never half old, half new. A kill in the middle
    is gone on from, without what would be said of a stranger's folder."""
    (tmp_path / "local").mkdir()
    url = "s3://bucket/out.zarr"
    convert(tmp_path, url)
    s3.inject("error", putting("out.zarr/zarr.json"), times=100)
    with pytest.raises(OutputError, match="can't be uploaded"):
        convert(tmp_path, url, seed=1, overwrite=True)
    with pytest.raises(StoreError):
        bigconv.open(url)
    s3.reset()
    convert(tmp_path, url, seed=1, overwrite=True)
    assert contents("out.zarr") == locally(tmp_path, "out.zarr", seed=1)


def test_what_is_there_is_not_replaced(s3: Proxy, tmp_path: Path) -> None:
    convert(tmp_path, "s3://bucket/out.zarr")
    convert(tmp_path)
    for url in ("s3://bucket/out.zarr", URL):
        with pytest.raises(OutputError, match=f"{url}: exists already, made from something else"):
            convert(tmp_path, url, seed=1)
    put(raw(tmp_path), "out.zarr/notes.txt")
    put(raw(tmp_path), "train/notes.txt")
    for url in ("s3://bucket/out.zarr", URL):
        with pytest.raises(OutputError, match=r"bigconv didn't write notes\.txt in it"):
            convert(tmp_path, url, seed=1, overwrite=True)
    put(raw(tmp_path), "other/x.npy")
    with pytest.raises(OutputError, match="not replaced, because bigconv didn't write it"):
        convert(tmp_path, "s3://bucket/other", overwrite=True)
    assert set(keys("other")) == {"x.npy"}


def test_no_bucket_and_no_right(s3: Proxy, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"s3://nowhere/out\.h5: can't be uploaded: no such bucket"):
        convert(tmp_path, "s3://nowhere/out.h5")
    s3.inject("denied", lambda method, path: method == "PUT", times=100)
    with pytest.raises(OutputError, match="access denied; check the credentials"):
        convert(tmp_path, "s3://bucket/out.h5")


def test_two_uploads_to_one_url(s3: Proxy, tmp_path: Path) -> None:
    local = upload.staging(Url("s3", "bucket/train"))
    local.parent.mkdir(parents=True)
    lock = Lock(local.parent / "lock")
    try:
        with pytest.raises(OutputError, match="another bigconv is writing here"):
            convert(tmp_path)
    finally:
        lock.release()
    assert convert(tmp_path).rows == ROWS


def test_rejects_lie_beside_it(s3: Proxy, tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    for i in range(3):
        np.save(folder / f"{i}.npy", np.full(4, i))
    (folder / "9.npy").write_bytes(b"no array")
    bigconv.convert(folder, "s3://bucket/out.h5", workers=0, max_rejects=1)
    assert b"9.npy" in system().cat_file("bucket/out.h5.rejects.jsonl")


def test_a_kill_while_what_has_arrived_is_removed_here(s3: Proxy, tmp_path: Path) -> None:
    convert(tmp_path)
    local = staging(Url("s3", "bucket/train"))
    local.mkdir(parents=True)
    (local / "manifest.json").write_bytes(system().cat_file("bucket/train/manifest.json"))
    system().rm_file("bucket/train/manifest.json")
    assert convert(tmp_path).rows == ROWS


def files(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        np.save(folder / f"{i:03}.npy", np.full(4, i))
    return folder


@pytest.mark.parametrize("to", ["hdf5", "zarr"])
def test_new_files_become_new_parts(s3: Proxy, tmp_path: Path, to: str) -> None:
    """The same bytes as added to a local directory; those that are there aren't sent again."""
    source, local = files(tmp_path / "arrays", range(10)), tmp_path / "local"
    for dest in (URL, local):
        bigconv.convert(source, dest, shards=2, to=to, workers=0)
    old = keys("train")
    files(source, range(10, 17))
    s3.reset()
    made = bigconv.convert(source, URL, append=True, to=to, workers=0)
    sent = {request.split("/train/")[1].split("/")[0] for request in s3.requests if request.startswith("PUT")}
    bigconv.convert(source, local, append=True, to=to, workers=0)
    assert contents("train") == {name: (local / name).read_bytes() for name in fsio.files_below(local)}
    assert not sent & {name.split("/")[0] for name in old if name.startswith("part-")}
    assert bigconv.open(URL)[:]["array"][:, 0].tolist() == list(range(17))
    assert len(made.parts) == 2 + len(sent) - 2  # besides two, the manifest and the digests
    assert bigconv.convert(source, URL, append=True, to=to, workers=0).content_digest == made.content_digest
    assert bigconv.open(URL).take([16])["array"][0, 0] == 16


def test_parts_added_by_somebody_else_are_not_lost(s3: Proxy, tmp_path: Path) -> None:
    source = files(tmp_path / "arrays", range(10))
    bigconv.convert(source, URL, shards=2, workers=0)
    files(source, range(10, 12))
    manifest = system().cat_file("bucket/train/manifest.json")

    def other(method: str, path: str) -> bool:
        if method == "PUT" and "/train/part-" in path:
            system().pipe_file("bucket/train/manifest.json", manifest + b" ")
        return False

    s3.inject("error", other)
    with pytest.raises(OutputError, match=f"{URL}: somebody else has changed it meanwhile"):
        bigconv.convert(source, URL, append=True, workers=0)
    assert system().cat_file("bucket/train/manifest.json") == manifest + b" "


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("out.h5", {"append": True}),
        ("out.h5", {"retry_rejects": True}),
        ("other", {"rank": "0/2", "shards": 2}),
        ("other", {"finalize": True, "shards": 2}),
        ("other", {"engine": "dask:tcp://host:1", "shards": 2}),
    ],
)
def test_what_needs_a_local_destination(s3: Proxy, tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="local DEST"):
        convert(tmp_path, f"s3://bucket/{name}", **how)
