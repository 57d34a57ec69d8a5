"""--append and --retry-rejects: old rows stay bit by bit, and new ones come in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import xxhash
from PIL import Image

import bigconv
from bigconv import fsio
from bigconv.conversion import build, parts_run
from bigconv.errors import FindingsError, OutputError, UsageError
from bigconv.testing import cases
from bigconv.view.opening import open_store
from bigconv.view.report import verify, whence
from tests.torture._runs import contents

SUFFIXES = (".h5", ".zarr", ".lmdb", ".mmap")


def image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for i in range(6):
        image(tmp_path / "raw" / "bb" / f"{i}.png", i)
    return tmp_path / "raw"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_append_adds_new_files_behind_the_old_rows(raw: Path, tmp_path: Path, suffix: str) -> None:
    dest = tmp_path / f"out{suffix}"
    bigconv.convert(raw, dest, workers=0)
    old = bigconv.open(dest)[:]
    image(raw / "bb" / "05.png", 50)
    image(raw / "aa" / "0.png", 60)  # a class that sorts before the old one: old numbers stay
    manifest = bigconv.convert(raw, dest, workers=2, append=True)
    view = bigconv.open(dest)
    assert manifest.rows == len(view) == 8
    assert all(cases.same(view[:6][name], old[name]) for name in ("image", "label"))
    assert view.schema["label"].classes == ("bb", "aa")
    assert [int(view[i]["image"][0, 0, 0]) for i in (6, 7)] == [60, 50]
    assert view[:]["label"].tolist() == [0] * 6 + [1, 0]
    opened = open_store(dest)
    assert verify(opened) == []
    told = [whence(opened, i) for i in (0, 6, 7)]
    hashed = [xxhash.xxh3_128_hexdigest((raw / t["file"]).read_bytes()) for t in told if t]
    assert [t and t["xxh3"] for t in told] == hashed
    assert [t and t["file"] for t in told] == ["bb/0.png", "aa/0.png", "bb/05.png"]
    again = bigconv.convert(raw, dest, append=True)
    assert again.content_digest == manifest.content_digest
    image(raw / "bb" / "0.png", 99)
    (raw / "bb" / "0.png").write_bytes((raw / "bb" / "0.png").read_bytes() + b"x")
    with pytest.raises(OutputError, match=r"bb/0\.png"):
        bigconv.convert(raw, dest, append=True)


@pytest.mark.parametrize("name", ["out.h5", "out.mmap", "parts"])
def test_an_append_that_was_killed_when_it_had_published(
    raw: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left is removed by the same command, and is in nobody's way."""
    dest, partial = tmp_path / name, tmp_path / f"{name}.partial"
    bigconv.convert(raw, dest, workers=0, shards=2 if name == "parts" else None)
    for count in (1, 2):
        image(raw / "bb" / f"1{count}.png", count)
        with monkeypatch.context() as patch:
            remove = fsio.remove
            patch.setattr(fsio, "remove", lambda path: None if path.name.startswith("digests-") else remove(path))
            for module in (build, parts_run):
                patch.setattr(module, "remove_work", lambda folder: None)
            bigconv.convert(raw, dest, workers=0, append=True)
        assert (partial / "plan.json").exists()
    assert len(bigconv.open(dest)) == 8
    bigconv.convert(raw, dest, workers=0, append=True)
    assert not partial.exists()
    assert verify(open_store(dest)) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_retried_rejects_give_what_a_whole_conversion_gives(raw: Path, tmp_path: Path, suffix: str) -> None:
    good = {}
    for name in ("0.png", "3.png", "5.png"):
        good[name] = (raw / "bb" / name).read_bytes()
        (raw / "bb" / name).write_bytes(b"no picture")
    dest = tmp_path / f"out{suffix}"
    with pytest.raises(FindingsError):
        bigconv.convert(raw, dest, workers=0)
    bigconv.convert(raw, dest, workers=0, max_rejects=3)
    assert len(bigconv.open(dest)) == 3
    (raw / "bb" / "3.png").write_bytes(good["3.png"])
    bigconv.convert(raw, dest, workers=0, max_rejects=2, retry_rejects=True)
    for name in ("0.png", "5.png"):
        (raw / "bb" / name).write_bytes(good[name])
    bigconv.convert(raw, dest, workers=0, retry_rejects=True)
    whole = tmp_path / f"whole{suffix}"
    bigconv.convert(raw, whole, workers=0)
    assert open_store(dest).manifest.content_digest == open_store(whole).manifest.content_digest
    assert verify(open_store(dest)) == []
    assert whence(open_store(dest), 3) == whence(open_store(whole), 3)
    for row in range(6):
        told = whence(open_store(dest), row)
        assert told is not None and told["xxh3"] == xxhash.xxh3_128_hexdigest((raw / told["file"]).read_bytes())
    assert bigconv.convert(raw, dest, retry_rejects=True).rows == 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rejects_are_retried_before_anything_was_published(raw: Path, tmp_path: Path, suffix: str) -> None:
    """The rows of the run that failed are taken over; the result is byte for byte that of a run without rejects."""
    good = {name: (raw / "bb" / name).read_bytes() for name in ("0.png", "3.png", "5.png")}
    times = {name: (raw / "bb" / name).stat().st_mtime_ns for name in good}
    for name in good:
        (raw / "bb" / name).write_bytes(b"no picture")
    dest, whole = tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    with pytest.raises(FindingsError, match="--retry-rejects"):
        bigconv.convert(raw, dest, workers=0)

    def mend(name: str) -> None:
        (raw / "bb" / name).write_bytes(good[name])
        os.utime(raw / "bb" / name, ns=(times[name], times[name]))

    mend("3.png")
    with pytest.raises(FindingsError, match=r"2 of 6"):
        bigconv.convert(raw, dest, workers=0, retry_rejects=True)
    assert not dest.exists()
    mend("0.png")
    mend("5.png")
    made = bigconv.convert(raw, dest, workers=0, retry_rejects=True)
    assert made.rows == 6
    bigconv.convert(raw, whole, workers=0)
    assert contents(dest) == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([raw.name, dest.name, whole.name]), "nothing left over"


def test_a_retry_that_is_given_up_leaves_the_first_run_to_go_on_with(raw: Path, tmp_path: Path) -> None:
    (raw / "bb" / "3.png").write_bytes(b"no picture")
    dest = tmp_path / "out.h5"
    for more in ({}, {"retry_rejects": True}):
        with pytest.raises(FindingsError):
            bigconv.convert(raw, dest, workers=0, **more)
    with pytest.raises(UsageError, match="choose one"):
        bigconv.convert(raw, dest, workers=0, retry_rejects=True, restart=True)
    assert bigconv.convert(raw, dest, workers=0, max_rejects=1, restart=True).rows == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([raw.name, "out.h5", "out.h5.rejects.jsonl"])


def test_a_retry_of_other_options_is_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "bb" / "3.png").write_bytes(b"no picture")
    dest = tmp_path / "out.h5"
    with pytest.raises(UsageError, match="there is no"):
        bigconv.convert(raw, dest, workers=0, retry_rejects=True)
    with pytest.raises(FindingsError):
        bigconv.convert(raw, dest, workers=0)
    with pytest.raises(OutputError, match="another recipe"):
        bigconv.convert(raw, dest, workers=0, retry_rejects=True, dtype="float32")
    assert bigconv.convert(raw, dest, workers=0, max_rejects="50%").rows == 5, "goes on from the first run"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([raw.name, "out.h5", "out.h5.rejects.jsonl"])


def test_refusals(raw: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out.h5"
    with pytest.raises(UsageError, match="there is no"):
        bigconv.convert(raw, dest, append=True)
    bigconv.convert(raw, dest, workers=0)
    with pytest.raises(OutputError, match="another recipe"):
        bigconv.convert(raw, dest, append=True, resize=4)
    with pytest.raises(UsageError, match="exclude one another"):
        bigconv.convert(raw, dest, append=True, overwrite=True)
    np.save(tmp_path / "x.npy", np.zeros(4))
    bigconv.convert(tmp_path / "x.npy", tmp_path / "x.h5")
    with pytest.raises(UsageError, match="one row a file"):
        bigconv.convert(tmp_path / "x.npy", tmp_path / "x.h5", append=True)


def test_a_retry_is_offered_only_where_there_can_be_one(raw: Path, tmp_path: Path) -> None:
    """Rows of one file, or some of the files: nobody could tell which inputs are missing."""
    (raw / "bb" / "0.png").write_bytes(b"no image")
    (tmp_path / "x.jsonl").write_text('{"x": 1}\nno json\n{"x": 2}\n')
    with pytest.raises(FindingsError, match=r"--max-rejects 1\. Mended later: --retry-rejects$"):
        bigconv.convert(raw, tmp_path / "a.h5", workers=0)
    for source, options in ((tmp_path / "x.jsonl", {}), (raw, {"limit": 3})):
        with pytest.raises(FindingsError, match=r"--max-rejects 1\.$"):
            bigconv.convert(source, tmp_path / f"{source.name}.h5", workers=0, **options)
        bigconv.convert(source, tmp_path / f"{source.name}.h5", workers=0, **options, max_rejects=1)
        with pytest.raises(UsageError, match="needs input with one row a file"):
            bigconv.convert(source, tmp_path / f"{source.name}.h5", workers=0, **options, retry_rejects=True)
