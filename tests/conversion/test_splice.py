"""--append and --retry-rejects: old rows stay bit by bit, and new ones come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bigconv
from bigconv.errors import FindingsError, OutputError, UsageError
from bigconv.testing import cases
from bigconv.view.opening import open_store
from bigconv.view.report import verify, whence

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
    assert [t and t["file"] for t in told] == ["bb/0.png", "aa/0.png", "bb/05.png"]
    again = bigconv.convert(raw, dest, append=True)
    assert again.content_digest == manifest.content_digest
    image(raw / "bb" / "0.png", 99)
    (raw / "bb" / "0.png").write_bytes((raw / "bb" / "0.png").read_bytes() + b"x")
    with pytest.raises(OutputError, match=r"bb/0\.png"):
        bigconv.convert(raw, dest, append=True)


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
    assert bigconv.convert(raw, dest, retry_rejects=True).rows == 6


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
