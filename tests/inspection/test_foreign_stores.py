"""Foreign files, written by their own libraries: what lies in them, and what is said about it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
import zarr

from bigconv.block import Block
from bigconv.inspection.datasets import Dataset, datasets
from bigconv.inspection.subject import subject
from bigconv.inspection.warnings import fits_float32
from bigconv.schema import Field, Schema

RNG = np.random.default_rng(0)


def named(path: Path) -> dict[str, Dataset]:
    return {d.name: d for d in datasets(path)}


def topics(path: Path) -> dict[str, str]:
    """Topic of each warning, and what mends it."""
    return {w.topic: w.fix for w in subject([path]).warnings()}


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("train")
        images = RNG.integers(0, 9, (240, 3, 32, 32), np.uint8)
        group.create_dataset("images", data=images, chunks=(24, 3, 32, 32), compression="gzip", shuffle=True)
        group.create_dataset("x", data=RNG.normal(size=(240, 20)), chunks=(1, 20))
        group.create_dataset("caption", data=["a cat"] * 240, dtype=h5py.string_dtype())
        file["round"] = group
        group["up"] = file["/"]
    return path


def test_hdf5_tree(hdf5: Path) -> None:
    with h5py.File(hdf5) as file:
        stored = file["train/images"].id.get_storage_size()
    found = named(hdf5)
    images = found["round/images"]
    assert (images.dtype, images.shape, images.chunks) == ("uint8", (240, 3, 32, 32), (24, 3, 32, 32))
    assert images.filters == ("shuffle", "gzip:4")
    assert (images.bytes, images.stored, images.chunk_count) == (240 * 3072, stored, 10)
    assert found["round/caption"].notes == ("vlen",)
    assert len(found) == 3  # a group that holds itself is listed once


def test_links_are_told_of_and_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.arange(5)
    path = tmp_path / "a.h5"
    layout = h5py.VirtualLayout((5,), "i8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (5,))
    with h5py.File(path, "w") as file:
        file["out"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
        file["soft"] = h5py.SoftLink("/nowhere")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("beside", (4,), "u1", external=[(str(tmp_path / "raw"), 0, 4)])
    found = named(path)
    assert found["out"].notes[0].startswith("link to")
    assert found["soft"].notes == ("link to /nowhere",)
    assert found["virtual"].notes == ("virtual",)
    assert found["beside"].notes == ("external",)


def test_hdf5_warnings(hdf5: Path) -> None:
    found = {w.topic: w for w in subject([hdf5]).warnings()}
    assert "24 samples" in found["wide-chunks"].problem
    assert "24× too much" in found["wide-chunks"].problem
    assert found["tiny-chunks"].fields == ("round/x",)
    assert {"slow-codec", "vlen", "no-manifest", "float64"} <= set(found)
    assert found["wide-chunks"].fix == f"bigconv convert {hdf5} new.h5"


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_tree(tmp_path: Path, version: int) -> None:
    path = tmp_path / "x.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    array = group.create_array("deep/x", data=RNG.integers(0, 9, (240, 3072), np.uint8), chunks=(24, 3072))
    found = named(path)["deep/x"]
    assert (found.dtype, found.shape, found.chunks) == ("uint8", (240, 3072), (24, 3072))
    assert found.stored == array.nbytes_stored() - sum(
        (path / "deep/x" / name).stat().st_size
        for name in ("zarr.json", ".zarray", ".zattrs")
        if (path / "deep/x" / name).exists()
    )
    assert len(found.filters) == 1
    assert "wide-chunks" in topics(path)


def test_zarr_documents_that_cannot_be_read(tmp_path: Path) -> None:
    from bigconv.errors import IncompleteStore

    for text in ("[1", '{"node_type":"array"}', "[]", '{"node_type":"array","shape":["x"]}'):
        path = tmp_path / "x.zarr"
        path.mkdir(exist_ok=True)
        (path / "zarr.json").write_text(text)
        with pytest.raises(IncompleteStore):
            datasets(path)


def test_lmdb_pages(tmp_path: Path) -> None:
    path = tmp_path / "x.lmdb"
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        for i in range(500):
            transaction.put(b"%08d" % i, RNG.bytes(4200))
    (found,) = datasets(path)
    assert (found.shape, found.bytes) == ((500,), 500 * 4200)
    assert found.stored == (path / "data.mdb").stat().st_size
    assert "page-waste" in topics(path)


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(np.arange(24, dtype="i4").reshape(4, 6)))
    assert datasets(tmp_path / "x.npy")[0].notes == ("fortran",)
    assert topics(tmp_path / "x.npy").keys() == {"fortran-order"}
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(3, "i4"), y=np.arange(3))
    assert [d.name for d in datasets(tmp_path / "a.npz")] == ["x", "y"]


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([0.1, 0.2, 1 / 3], True),
        ([1.0, 2.0, 1e6], True),
        ([2**24 + 1.0, 2**24 + 2.0], False),  # whole numbers that float32 has no room for
        ([1.7e9 + i / 1000 for i in range(99)], False),  # times in seconds
        ([1e300, 1.0], False),
        ([1e-60, 1.0], False),
        ([float("nan")], False),
    ],
)
def test_where_float32_would_do(values: list[float], fits: bool) -> None:
    assert fits_float32(np.array(values)) is fits


def test_own_stores(make_store: Callable[..., Path], suffix: str) -> None:
    schema = Schema((Field("x", "float32", (4,)), Field("label", "int64", (), "label", classes=("a", "b"))))
    labels = np.array([0] * 100 + [1] * 4)
    path = make_store(Block(schema, {"x": np.zeros((104, 4), np.float32), "label": labels}), suffix)
    path.with_name(path.name + ".rejects.jsonl").write_text("{}\n{}\n")
    assert topics(path).keys() == {"rejects", "imbalance"}
    warned = {w.topic: w for w in subject([path]).warnings()}
    assert "2 inputs" in warned["rejects"].problem
    assert "class a has 25× the rows of b" in warned["imbalance"].problem


def test_a_fix_mends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands as they are printed leave nothing to warn of."""
    import subprocess
    import sys

    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=RNG.normal(size=(9, 3)), y=np.arange(9))
    (tmp_path / "bigconv").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from bigconv.cli.app import main; main()" "$@"\n'
    )
    (tmp_path / "bigconv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    fixes = topics(Path("a.npz"))
    assert fixes.keys() == {"float64"}
    subprocess.run(["sh", "-e", "-c", fixes["float64"]], check=True, capture_output=True)
    known = subject([Path("new.h5")])
    assert known.warnings() == []
    assert known.rows is not None
    assert [f.dtype for f in known.rows.schema] == ["float32", "int64"]


def test_a_fix_takes_what_goes_together(tmp_path: Path) -> None:
    """A file with a vector of means beside its rows; and one for which there is nothing to type."""
    path, pickles = tmp_path / "mean.h5", tmp_path / "pickles.lmdb"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=RNG.normal(size=(200, 2000)), chunks=(100, 2000), compression="gzip")
        file["y"], file["mean"] = np.arange(200), np.zeros(3)
    known = subject([path])
    assert known.raw is not None
    assert known.rows is not None
    assert known.rows.count == 200
    (reading,) = known.raw.readings
    assert reading.command.endswith(" --columns x,y")
    assert "3 in mean" in reading.problem
    found = topics(path)
    assert found["slow-codec"] == f"bigconv convert {path} new.h5 --columns x,y"
    assert found["float64"].endswith(f"bigconv convert {path} new.h5 --columns x,y --map narrow.py:narrow")
    with lmdb.open(str(pickles), map_size=1 << 20) as env, env.begin(write=True) as txn:
        txn.put(b"0", pickle.dumps((1, 2)))
    assert topics(pickles) == {"no-manifest": ""}


def test_the_fix_for_a_tables_floats(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("price,volume\n1.25,7\n2.5,8\n")
    assert topics(tmp_path / "t.csv")["float64"].endswith("t.csv new.h5 --dtypes price=float32")


def test_columns_that_can_be_fields(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1, "tags": ["x"], "b": 0.5}\n')
    raw = subject([tmp_path / "t.jsonl"]).raw
    assert raw is not None
    assert raw.readings[0].command.endswith(" --columns a,b")
    assert "'tags'" in raw.readings[0].problem
