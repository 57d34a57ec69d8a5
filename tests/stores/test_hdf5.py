"""What is HDF5's own."""

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

import bigconv
from bigconv.errors import IncompleteStore, OutputError, StoreError
from bigconv.schema import Field, Schema
from bigconv.stores.hdf5 import Hdf5
from bigconv.testing import cases
from bigconv.testing.store_suite import SCHEMAS, write
from bigconv.view.opening import open_store
from bigconv.view.report import verify


@pytest.mark.parametrize("locking", [None, True, False])
def test_opens_while_the_user_has_it_open(tmp_path: Path, locking: bool | None) -> None:
    """HDF5 refuses a second handle with other locking flags; bigconv takes those that are there."""
    block = cases.block(SCHEMAS["image and label"], 5)
    write(tmp_path / "a.h5", Hdf5(), block, 5)
    with h5py.File(tmp_path / "a.h5", "r", locking=locking) as file:
        view = bigconv.open(tmp_path / "a.h5")
        assert np.array_equal(file["image"][:], view[:]["image"])


def test_datasets_are_contiguous_and_aligned(tmp_path: Path) -> None:
    block = cases.block(SCHEMAS["rows of pages"], 5)
    write(tmp_path / "a.h5", Hdf5(), block, 5)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["x"].chunks is None
        assert file["x"].id.get_offset() % 4096 == 0


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="fails os.pwrite")
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_full_disk_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str) -> None:
    """The HDF5 library, told that a write failed, ended the process with a segmentation fault later on."""
    schema = Schema((Field("x", "uint8", (900,)), Field("t", "uint16", (None,))))
    original, writes = os.pwrite, [0]

    def failing(fd: int, data: bytes, offset: int) -> int:
        writes[0] += 1
        if writes[0] >= last:  # once full, a disk stays so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    for last in (1, 2, 5, 9, 14, 20, 1000):
        writes[0] = 0
        path = tmp_path / f"{last}.h5"
        try:
            write(path, Hdf5(compress=compress), cases.block(schema, 40), 16)
        except OutputError as error:
            assert "no space left on the device" in str(error)
            assert writes[0] == last  # and no more is tried
            with pytest.raises(StoreError):
                open_store(path)
        else:
            assert last > writes[0] > 9
            assert verify(open_store(path)) == []


def _other(tmp_path: Path) -> str:
    """A file that a store has no business with, with everything where the store would have it."""
    other = tmp_path / "secret" / "other.h5"
    other.parent.mkdir()
    write(other, Hdf5(), cases.block(SCHEMAS["ragged"], 5, seed=9), 5)
    return str(other)


@pytest.mark.parametrize("name", ["label", "tokens", "tokens/values", "_bigconv", "_bigconv/manifest"])
@pytest.mark.parametrize("way", ["external link", "soft link", "virtual"])
def test_another_file_is_never_read(tmp_path: Path, name: str, way: str) -> None:
    """Whatever step on the way to a dataset leads there; links within the file are none of ours either."""
    write(tmp_path / "a.h5", Hdf5(), cases.block(SCHEMAS["ragged"], 5), 5)
    schema, other = open_store(tmp_path / "a.h5").manifest.schema, _other(tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+", libver=("v110", "v110")) as file:
        file.move(name, "elsewhere")
        if way == "virtual" and isinstance(file["elsewhere"], h5py.Dataset):
            layout = h5py.VirtualLayout(file["elsewhere"].shape, file["elsewhere"].dtype)
            layout[:] = h5py.VirtualSource(other, name, file["elsewhere"].shape)
            file.create_virtual_dataset(name, layout)
        else:
            file[name] = h5py.SoftLink("/elsewhere") if way == "soft link" else h5py.ExternalLink(other, name)
    where = "another file|elsewhere|out of the file|is not a list"
    if name.startswith("_bigconv"):
        with pytest.raises(IncompleteStore, match=where):
            Hdf5().manifest(tmp_path / "a.h5")
        if name == "_bigconv":
            with pytest.raises(IncompleteStore, match=where):
                Hdf5().attachment(tmp_path / "a.h5", "provenance")
    else:
        with pytest.raises(IncompleteStore, match=where):
            Hdf5().open(tmp_path / "a.h5", schema, 5)


def test_a_filter_of_a_plug_in_is_not_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", Hdf5(), cases.block(SCHEMAS["scalars"], 5), 5)
    schema = open_store(tmp_path / "a.h5").manifest.schema
    with h5py.File(tmp_path / "a.h5", "r+", libver=("v110", "v110")) as file:
        values = file["x"][:]
        del file["x"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((5,))
        plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple(values.shape)
        h5py.h5d.create(file.id, b"x", h5py.h5t.py_create(values.dtype), space, plan)
    with pytest.raises(IncompleteStore, match="filter 32015"):
        Hdf5().open(tmp_path / "a.h5", schema, 5)
