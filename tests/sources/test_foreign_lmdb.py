"""LMDB files of others: lmdb writes them, and says in which order their keys come."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import numpy as np
import pytest
from _rows import read
from PIL import Image

import bigconv
from bigconv.conversion.options import find_source
from bigconv.errors import InputError
from bigconv.sources.lmdb import ForeignLmdb
from bigconv.sources.lmdb_tree import Tree
from bigconv.testing.source_suite import Made, SourceSuite


def written(path: Path, records: Mapping[bytes, bytes], **options: Any) -> Path:
    with lmdb.open(str(path), map_size=1 << 26, **options) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    return path


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Lmdbs(SourceSuite):
    source = "lmdb"
    file_a_row = False
    limits: ClassVar = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}


class TestImages(Lmdbs):
    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (8, 9, 3), np.uint8) for _ in range(5)]
        records = {b"k%d" % i: png(image) for i, image in enumerate(images)}
        written(folder / "a.lmdb", {b"__len__": b"5", **records})
        return [folder / "a.lmdb"], {}, [{"image": x, "key": f"k{i}"} for i, x in enumerate(images)]


class TestImagesAsTheyAre(Lmdbs):
    def make(self, folder: Path) -> Made:
        files = [png(np.full((i + 1, 2), i, np.uint8)) for i in range(5)]
        written(folder / "a.mdb", {b"%d" % i: file for i, file in enumerate(files)}, subdir=False)
        rows = [{"image": np.frombuffer(file, np.uint8), "key": str(i)} for i, file in enumerate(files)]
        return [folder / "a.mdb"], {"keep_encoded": True}, rows


class TestArrays(Lmdbs):
    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        arrays = [rng.random((n, 3)) for n in (0, 3, 1, 700, 2)]
        written(folder / "a.lmdb", {bytes([255, i]): npy(x.astype(">f8")) for i, x in enumerate(arrays)})
        keys = [np.array([255, i], np.uint8) for i in range(5)]
        return [folder / "a.lmdb"], {}, [{"array": x, "key": key} for x, key in zip(arrays, keys, strict=True)]


class TestBytes(Lmdbs):
    """Values of all sizes, in two environments: in their nodes, and on pages of their own."""

    def make(self, folder: Path) -> Made:
        values = [np.random.default_rng(i).bytes(n) for i, n in enumerate((1, 0, 2022, 2023, 5000, 100_000))]
        for name, start in (("a.lmdb", 0), ("b.lmdb", 3)):
            written(folder / name, {f"é{i}".encode(): values[i] for i in range(start, start + 3)})
        rows = [{"value": np.frombuffer(v, np.uint8), "key": f"é{i}"} for i, v in enumerate(values)]
        return [folder / "a.lmdb", folder / "b.lmdb"], {}, rows


@pytest.mark.parametrize("rows", [1, 40, 3000])
@pytest.mark.parametrize("largest", [3, 4000])
def test_the_walk_is_that_of_lmdb(tmp_path: Path, rows: int, largest: int) -> None:
    """Trees of several levels, after removals and several transactions, keys of all lengths."""
    rng = np.random.default_rng(rows)
    path = tmp_path / "a.lmdb"
    with lmdb.open(str(path), map_size=1 << 28) as env:
        for _ in range(3):
            with env.begin(write=True) as txn:
                for _ in range(rows):
                    txn.put(rng.bytes(int(rng.integers(1, 511))), rng.bytes(int(rng.integers(0, largest))))
        with env.begin(write=True) as txn:
            for key in [key for key, _ in txn.cursor()][::3]:
                txn.delete(key)
        with env.begin() as txn:
            expected = list(txn.cursor())
    data = (path / "data.mdb").read_bytes()
    found = list(Tree(str(path / "data.mdb"), "a").walk())
    assert [(e.key, data[e.at : e.at + e.size]) for e in found] == expected


@pytest.mark.parametrize("suffix", [".mmap", ".h5", ".lmdb", ".zarr"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (6, 7, 3), np.uint8) for i in range(40)]
    path = written(tmp_path / "in.lmdb", {b"%03d" % i: png(x) for i, x in enumerate(images)})
    bigconv.convert(path, tmp_path / f"out{suffix}", workers=0, layout="hwc")
    view = bigconv.open(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(view[:]["image"], images)
    assert [view[i]["key"] for i in range(40)] == [f"{i:03}" for i in range(40)]


def test_own_stores_stay_stores(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    bigconv.convert(tmp_path / "x.npy", tmp_path / "o.lmdb", workers=0)
    assert find_source([tmp_path / "o.lmdb"], None, {}).name == "store"


def test_bad_values_are_rejects_by_key(tmp_path: Path) -> None:
    good = png(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    path = written(
        tmp_path / "a.lmdb", {**{b"%02d" % i: good for i in range(20)}, b"17": b"no image", b"18": good[:90]}
    )
    block, rejects = read(ForeignLmdb.find([path]))
    assert [(r.path, r.row) for r in rejects] == [("a.lmdb", 17), ("a.lmdb", 18)]
    assert rejects[0].error.startswith("key b'17': not an image")
    assert block is not None
    assert len(block) == 18
    arrays = written(tmp_path / "b.lmdb", {**{b"%02d" % i: npy(np.arange(3)) for i in range(20)}, b"18": b"no array"})
    assert [r.error for r in read(ForeignLmdb.find([arrays]))[1]] == [
        "key b'18': its value is no .npy file, as the first ones are"
    ]


def test_pickles_are_refused_by_key(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        path = written(tmp_path / f"{protocol}.lmdb", {b"a": pickle.dumps({"x": 1}, protocol)})
        with pytest.raises(InputError, match=r"key b'a' is a pickle, which could run any code"):
            ForeignLmdb.find([path])


def test_what_is_not_read(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "named.lmdb"), max_dbs=2) as env:
        env.open_db(b"images")
    with pytest.raises(InputError, match=r"holds named databases, such as b'images'"):
        ForeignLmdb.find([tmp_path / "named.lmdb"])
    written(tmp_path / "empty.lmdb", {})
    with pytest.raises(InputError, match="no records in it"):
        ForeignLmdb.find([tmp_path / "empty.lmdb"])


def test_any_flipped_bit_of_the_tree_is_survived(tmp_path: Path) -> None:
    """No number of the file is followed before it is checked: an error, or records within the file; never a crash."""
    path = written(tmp_path / "a.lmdb", {b"%04d" % i: b"x" * (i % 9 * 300) for i in range(60)}) / "data.mdb"
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for page in range(0, len(raw), 4096):
        for at in range(page, page + 48):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                for entry in Tree(str(path), "a").walk():
                    assert entry.at + entry.size <= len(raw)
            except InputError:
                refused += 1
    assert refused > 100
