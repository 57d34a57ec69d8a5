"""Every registered store passes the shipped suite."""

from pathlib import Path

import pytest

from bigconv import registry
from bigconv.errors import UsageError
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.memmap import Memmap
from bigconv.stores.memory import Memory
from bigconv.stores.zarr import Zarr
from bigconv.testing.store_suite import StoreSuite


class TestMemmap(StoreSuite):
    store = Memmap()
    suffix = ".mmap"


class TestHdf5(StoreSuite):
    store = Hdf5()
    suffix = ".h5"


class TestLmdb(StoreSuite):
    store = Lmdb()
    suffix = ".lmdb"


class TestZarr(StoreSuite):
    store = Zarr()
    suffix = ".zarr"


class TestHdf5Lz4(StoreSuite):
    store = Hdf5(compress="lz4", chunk=3)
    suffix = ".h5"


class TestHdf5Zstd(StoreSuite):
    store = Hdf5(compress="zstd:3")
    suffix = ".h5"


class TestZarrLz4(StoreSuite):
    store = Zarr(compress="lz4", chunk=3, shard_bytes=2000)
    suffix = ".zarr"


class TestZarrZstd(StoreSuite):
    store = Zarr(compress="zstd")
    suffix = ".zarr"


class TestLmdbLz4(StoreSuite):
    store = Lmdb(compress="lz4")
    suffix = ".lmdb"


class TestLmdbZstd(StoreSuite):
    store = Lmdb(compress="zstd")
    suffix = ".lmdb"


class TestMemory(StoreSuite):
    store = Memory()
    suffix = ""
    on_disk = False


def test_every_registered_store_has_a_suite() -> None:
    suites = {cls.store.name for cls in StoreSuite.__subclasses__()}
    assert suites == {*registry.STORES, Memory.name}  # which nobody can name, as nothing of it stays
    with pytest.raises(UsageError, match="unknown store format 'memory'"):
        registry.store_for(Path("out"), Memory.name)
