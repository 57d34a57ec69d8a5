"""HDF5 and Zarr files of others: h5py and zarr write them, and say what is in them."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import zarr
from _rows import read, values
from PIL import Image

import bigconv
from bigconv.conversion.options import find_source
from bigconv.errors import InputError, MissingPackage, UsageError
from bigconv.sources.hdf5 import ForeignHdf5
from bigconv.sources.zarr import ForeignZarr
from bigconv.testing.source_suite import Made, SourceSuite

WORDS = ["", "é", "naïve ☃", "line\nbreak", "x" * 40, "a b", "c"]
SMALL: dict[str, int] = {"bigconv.sources.foreign.SPAN_BYTES": 64, "bigconv.sources.foreign.ALIGN_BYTES": 256}
STORES = (".mmap", ".h5", ".lmdb", ".zarr")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4 + seed, 5, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class TestHdf5(SourceSuite):
    """Every way rows can lie in a file: in chunks, compressed, big-endian, in groups, as columns of a table."""

    source = "hdf5"
    file_a_row = False
    limits: ClassVar = SMALL

    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        x, y = rng.random((7, 3, 2)), rng.integers(0, 99, (7, 5)).astype(">i4")
        lists = [rng.random(n).astype("f4") for n in (0, 3, 1, 0, 9, 2, 2)]
        table = np.array([(i, i / 3, (i, -i)) for i in range(7)], [("n", "u2"), ("part", "f8"), ("pair", "i1", 2)])
        with h5py.File(folder / "a.h5", "w") as file:
            file["x"] = x
            options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
            file.create_dataset("deep/er/y", data=y, chunks=(3, 2), **options)
            file.create_dataset("lzf", data=x.astype("c8"), compression="lzf")
            file["b"] = x[:, 0, 0] > 0.5
            file["half"] = x.astype("f2")
            file["text"] = WORDS
            file["fixed"] = np.array([b"", b"ab", b"abc"] * 2 + [b"z"])
            ragged = file.create_dataset("lists", (7,), h5py.vlen_dtype("f4"))
            images = file.create_dataset("photos", (7,), h5py.vlen_dtype("u1"), chunks=(2,))
            for i in range(7):
                ragged[i], images[i] = lists[i], np.frombuffer(png(i), np.uint8)
            file["table"] = table
            file["number"] = 3
        rows = [
            {
                "b": x[i, 0, 0] > 0.5,
                "deep.er.y": y[i].astype("i4"),
                "fixed": ["", "ab", "abc", "", "ab", "abc", "z"][i],
                "half": x[i].astype("f2"),
                "lists": lists[i],
                "lzf": x[i].astype("c8"),
                "photos": np.frombuffer(png(i), np.uint8),
                "table.n": table["n"][i],
                "table.part": table["part"][i],
                "table.pair": table["pair"][i],
                "text": WORDS[i],
                "x": x[i],
            }
            for i in range(7)
        ]
        return [folder / "a.h5"], {}, rows


class TestHdf5Files(SourceSuite):
    """Rows of several files one after another, along another axis."""

    source = "hdf5"
    file_a_row = False
    limits: ClassVar = SMALL

    def make(self, folder: Path) -> Made:
        x = np.arange(48.0).reshape(6, 8)
        for name, part in (("a.hdf5", x[:, :5]), ("b.h5", x[:, 5:])):
            with h5py.File(folder / name, "w", libver="latest") as file:
                file.create_dataset("x", data=part, chunks=(4, 2), compression="gzip")
                file["other"] = np.arange(3)
        return [folder], {"axis": 1, "columns": ["x"]}, [{"x": x[:, i]} for i in range(8)]


class Zarrs(SourceSuite):
    source = "zarr"
    file_a_row = False
    limits: ClassVar = SMALL
    format: ClassVar[Any]

    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        x, y = rng.random((7, 3, 2)), rng.integers(0, 99, (7, 5), np.int32)
        group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=self.format)
        group.create_array("x", data=x, chunks=(3, 2, 1))
        group.create_array("deep/er/y", data=y.astype(">i4"), chunks=(2, 5), compressors=None)
        group.create_array("b", data=x[:, 0, 0] > 0.5, chunks=(4,))
        text = group.create_array("text", shape=(7,), dtype=str, chunks=(2,))
        text[:] = np.array(WORDS, np.dtypes.StringDType())
        group.create_array("none", shape=(), dtype="f4")
        rows = [{"b": x[i, 0, 0] > 0.5, "deep.er.y": y[i], "text": WORDS[i], "x": x[i]} for i in range(7)]
        if self.format == 3:
            group.create_array("shards", data=x, chunks=(1, 3, 2), shards=(4, 3, 2))
            for i, row in enumerate(rows):
                rows[i] = {"b": row["b"], "deep.er.y": row["deep.er.y"], "shards": x[i], "text": WORDS[i], "x": x[i]}
        return [folder / "a.zarr"], {}, rows


class TestZarr2(Zarrs):
    format = 2


class TestZarr3(Zarrs):
    format = 3


class TestZarrArray(SourceSuite):
    """A store that is one array goes by its own name."""

    source = "zarr"
    file_a_row = False
    limits: ClassVar = SMALL

    def make(self, folder: Path) -> Made:
        x = np.arange(40.0).reshape(5, 8)
        zarr.create_array(folder / "waves.zarr", data=x, chunks=(5, 3))
        return [folder / "waves.zarr"], {"axis": -1}, [{"waves": x[:, i]} for i in range(8)]


# -- what is recognised ------------------------------------------------------------------------------------------------


def test_own_stores_stay_stores(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    for suffix in STORES:
        bigconv.convert(tmp_path / "x.npy", tmp_path / f"o{suffix}", workers=0)
        assert find_source([tmp_path / f"o{suffix}"], None, {}).name == "store"
    for name in ("hdf5", "zarr"):
        own = tmp_path / ("o.h5" if name == "hdf5" else "o.zarr")
        with pytest.raises(InputError, match="a bigconv store"):
            find_source([own], name, {})
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(4)
    assert find_source([tmp_path / "other.h5"], None, {}).name == "hdf5"
    with pytest.raises(InputError, match=r"other.h5: not a bigconv store"):
        find_source([tmp_path / "o.h5", tmp_path / "other.h5"], None, {})


@pytest.mark.parametrize("suffix", STORES)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    """Out of each library, through each store, and back, exact."""
    rng = np.random.default_rng(0)
    x = rng.random((50, 3, 2), np.float32)
    lists = [rng.integers(0, 9, n) for n in rng.integers(0, 5, 50)]
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(7, 3, 2), compression="gzip")
        file["text"] = [f"é{i}" * (i % 3) for i in range(50)]
        ragged = file.create_dataset("g/lists", (50,), h5py.vlen_dtype(np.int64))
        for i in range(50):
            ragged[i] = lists[i]
    group = zarr.open_group(tmp_path / "in.zarr", mode="w", zarr_format=3)
    group.create_array("x", data=x, chunks=(7, 3, 2))
    for name in ("in.h5", "in.zarr"):
        dest = tmp_path / f"{name}{suffix}"
        bigconv.convert(tmp_path / name, dest, workers=2 if suffix == ".h5" else 0)
        view = bigconv.open(dest)
        np.testing.assert_array_equal(view[:]["x"], x)
        if name == "in.h5":
            assert [view[i]["text"] for i in range(50)] == [f"é{i}" * (i % 3) for i in range(50)]
            for i in range(50):
                np.testing.assert_array_equal(view[i]["g.lists"], lists[i])


def test_a_changed_chunk_is_another_source(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", data=np.arange(10), chunks=(5,))
    bigconv.convert(tmp_path / "a.zarr", tmp_path / "o.h5", workers=0)
    os.utime(tmp_path / "a.zarr" / "x" / "c" / "1", ns=(1, 2 * 10**18))
    with pytest.raises(bigconv.errors.OutputError, match="1 file changed"):
        bigconv.convert(tmp_path / "a.zarr", tmp_path / "o.h5", workers=0)


# -- choosing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def split(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "split.h5", "w") as file:
        for part, rows in (("train", 6), ("test", 2)):
            file[f"{part}/x"], file[f"{part}/y"] = np.zeros((rows, 4)), np.arange(rows)
        file["classes"] = np.arange(3)
    return tmp_path / "split.h5"


def test_rows_that_differ_are_told_with_the_way_out(split: Path) -> None:
    with pytest.raises(InputError) as error:
        ForeignHdf5.find([split])
    told = str(error.value)
    assert "6 in train.x, train.y; 3 in classes; 2 in test.x, test.y" in told
    columns = told.split("--columns ")[1].split(",")
    assert columns == ["train.x", "train.y"]
    assert ForeignHdf5.find([split], columns=columns).inputs == 6


def test_groups_and_datasets_by_either_name(split: Path) -> None:
    assert ForeignHdf5.find([split], columns=["test"]).schema.names == ("test.x", "test.y")
    assert ForeignHdf5.find([split], columns=["/test/y", "test.x"]).schema.names == ("test.y", "test.x")
    for typed, meant in (("trian", "train"), ("tset.x", "test.x")):
        with pytest.raises(UsageError, match=f"unknown dataset '{typed}'. Did you mean '{meant}'"):
            ForeignHdf5.find([split], columns=[typed])


def test_files_with_other_datasets(tmp_path: Path) -> None:
    for name, dtype in (("a.h5", "f4"), ("b.h5", "f8")):
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = np.zeros(3, dtype)
    with pytest.raises(
        InputError, match=r"b.h5: other datasets than .*x is float64 \[\] here, x is float32 \[\] there"
    ):
        ForeignHdf5.find([tmp_path])


def test_names_that_fields_can_not_have(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x.y"], file["x/y"] = np.zeros(2), np.zeros(2)
    with pytest.raises(InputError, match=r"x.y and x/y would both be field x.y|x/y and x.y would both"):
        ForeignHdf5.find([tmp_path / "a.h5"])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["_x"] = np.zeros(2)
    with pytest.raises(InputError, match="can't be a field name"):
        ForeignHdf5.find([tmp_path / "b.h5"])


def test_axis_and_shape(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = np.zeros((2, 3)), np.zeros(3)
        file["words"] = np.array([["a", "b"]], h5py.string_dtype())
    with pytest.raises(InputError, match=r"\[y\]: no axis 1 in an array of shape \(3,\)"):
        ForeignHdf5.find([tmp_path / "a.h5"], axis=1, columns=["x", "y"])
    with pytest.raises(InputError, match="strings in more than one dimension"):
        ForeignHdf5.find([tmp_path / "a.h5"], columns=["words"])


def test_loops_and_second_names_are_read_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/x"] = np.arange(3)
        file["g/again"] = file["g"]
        file["g/twice"] = file["g/x"]
        file["soft"] = h5py.SoftLink("/g/x")
        file["type"] = np.dtype("f4")
    assert len(ForeignHdf5.find([tmp_path / "a.h5"]).schema) == 1


# -- pieces ------------------------------------------------------------------------------------------------------------


def test_spans_are_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is decompressed once; chunks that are too large are read in pieces."""
    monkeypatch.setattr("bigconv.sources.foreign.SPAN_BYTES", 800)
    monkeypatch.setattr("bigconv.sources.foreign.ALIGN_BYTES", 4000)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.zeros((100, 10)), chunks=(12, 5), compression="gzip")
        file.create_dataset("y", data=np.zeros(100), chunks=(100,), compression="gzip")
    source = ForeignHdf5.find([tmp_path / "a.h5"])
    assert {len(span) % 12 for span in source.plan()[:-1]} == {0}
    monkeypatch.setattr("bigconv.sources.foreign.ALIGN_BYTES", 10)
    assert {len(span) for span in ForeignHdf5.find([tmp_path / "a.h5"]).plan()[:-1]} == {800 // 88}


def test_one_damaged_chunk_costs_its_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("x", data=rng.random((12, 8)), chunks=(4, 8), compression="gzip")
        info = data.id.get_chunk_info(1)
    with open(tmp_path / "a.h5", "r+b") as file:
        file.seek(info.byte_offset + 20)
        file.write(b"\xff" * 40)
    block, rejects = read(ForeignHdf5.find([tmp_path / "a.h5"]))
    assert [(r.path, r.row) for r in rejects] == [("a.h5", row) for row in range(4, 8)]
    assert "damaged" in rejects[0].error
    assert block is not None
    assert block.origin is not None
    assert block.origin[:, 1].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", data=rng.random((12, 8)), chunks=(4, 8))
    (tmp_path / "a.zarr" / "x" / "c" / "1" / "0").write_bytes(b"\x28\xb5\x2f\xfdjunk")
    _, rejects = read(ForeignZarr.find([tmp_path / "a.zarr"]))
    assert [(r.path, r.row) for r in rejects] == [("a.zarr", row) for row in range(4, 8)]


def test_text_that_is_not_utf8_is_a_reject(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t"] = np.array([b"good", b"\xff\xfe", b"fine"])
    block, rejects = read(ForeignHdf5.find([tmp_path / "a.h5"]))
    assert [(r.row, r.error) for r in rejects] == [(1, "field t: not UTF-8: byte 0xff at 0")]
    assert block is not None
    assert [row["t"] for row in block] == ["good", "fine"]


def test_lists_of_bytes_that_stop_being_images_are_rejects(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("photos", (20,), h5py.vlen_dtype("u1"))
        for i in range(20):
            images[i] = np.frombuffer(png(0) if i < 18 else b"no image", np.uint8)
    source = ForeignHdf5.find([tmp_path / "a.h5"])
    assert source.schema["photos"].kind == "encoded"
    assert [r.row for r in read(source)[1]] == [18, 19]


def test_small_when_it_travels(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros((100_000, 4))
    source = ForeignHdf5.find([tmp_path / "a.h5"])
    assert len(pickle.dumps(source)) < 2000


@pytest.mark.parametrize("filter_", ["Zstd", "LZ4", "Bitshuffle", "Blosc", "Blosc2"])
def test_plugins_in_common_use(tmp_path: Path, filter_: str) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    x = np.random.default_rng(0).integers(0, 9, (40, 8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(16, 8), **getattr(hdf5plugin, filter_)())
    bigconv.convert(tmp_path / "a.h5", tmp_path / "o.mmap", workers=0)
    np.testing.assert_array_equal(np.load(tmp_path / "o.mmap" / "x.npy"), x)


def test_a_plugin_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((2,))
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((4,)), made)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"compressed by zstd needs .*\n.*'bigconv\[hdf5\]'"):
        ForeignHdf5.find([tmp_path / "a.h5"])


# -- zarr's own --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["zstd", "lz4", "gzip"])
def test_codecs_of_format_2(tmp_path: Path, codec: str) -> None:
    import numcodecs

    x = np.random.default_rng(0).integers(0, 9, (10, 3))
    compressor = {"zstd": numcodecs.Zstd(), "lz4": numcodecs.LZ4(), "gzip": numcodecs.GZip()}[codec]
    zarr.create_array(tmp_path / "a", data=x, chunks=(4, 3), zarr_format=2, compressors=compressor, order="F")
    np.testing.assert_array_equal(values(ForeignZarr.find([tmp_path / "a"]))["a"], x)


def test_bytes_of_any_length(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    with pytest.warns(Warning):  # zarr says that other libraries may not know the type
        array = group.create_array("raw", shape=(3,), dtype="variable_length_bytes", chunks=(2,))
    array[:] = np.array([b"\xff\x00", b"", b"abc"], object)
    source = ForeignZarr.find([tmp_path / "a.zarr"])
    assert [bytes(row) for row in values(source)["raw"]] == [b"\xff\x00", b"", b"abc"]


def test_metadata_that_makes_no_sense(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=np.arange(4), zarr_format=3)
    good = json.loads((tmp_path / "a" / "zarr.json").read_text())
    bad: list[tuple[str, Any]] = [
        ("shape", [-4]),
        ("shape", [4.0]),
        ("shape", "4"),
        ("shape", [2**70]),
        ("codecs", [{}]),
        ("codecs", 5),
        ("data_type", {"name": "numpy.datetime64"}),
        ("data_type", "r16"),
        ("zarr_format", 4),
        ("chunk_grid", {"name": "rectilinear", "configuration": {}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0]}}),
        ("storage_transformers", [{"name": "x"}]),
    ]
    for key, value in bad:
        (tmp_path / "a" / "zarr.json").write_text(json.dumps({**good, key: value}))
        with pytest.raises(InputError, match=r"\[a\]: "):
            ForeignZarr.find([tmp_path / "a"])


def test_parts_of_a_sparse_matrix_are_no_rows(tmp_path: Path) -> None:
    """As AnnData keeps one: its entries would be taken for rows."""
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file["X/data"], file["X/indices"], file["X/indptr"] = np.ones(30), np.arange(30), np.arange(0, 31, 3)
        file["obs/age"] = np.arange(10)
    with pytest.raises(InputError, match=r"X/data\]: part of a sparse .*save_npz\.\n.*: --columns obs\.age"):
        find_source([path], None, {})
    assert find_source([path], None, {"columns": ["obs"]}).inputs == 10
    assert find_source([path], None, {"columns": ["X.data"]}).inputs == 30  # who asks for it gets it
