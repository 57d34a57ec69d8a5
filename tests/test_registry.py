"""Names, extensions and contents → the class that knows them."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from bigconv import registry
from bigconv.errors import MissingPackage, UsageError
from bigconv.registry import Entry
from bigconv.schema import Field, Schema
from bigconv.testing import cases

TABLES = {"store": registry.STORES, "source": registry.SOURCES, "transform": registry.TRANSFORMS}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table])
def test_every_row_leads_to_a_class_of_that_name(kind: str, name: str) -> None:
    cls = registry.load(kind, name)
    assert isinstance(cls, type)
    assert cls.name == name
    assert name in registry.names(kind)


def test_extensions_are_lower_case_and_of_one_store() -> None:
    seen = [e for entry in registry.STORES.values() for e in entry.extensions]
    assert len(set(seen)) == len(seen)
    every = [e for table in TABLES.values() for entry in table.values() for e in entry.extensions]
    assert all(e.startswith(".") and e == e.lower() for e in every)


@pytest.mark.parametrize(
    ("path", "name", "store"),
    [
        ("a.h5", None, "hdf5"),
        ("a.HDF5", None, "hdf5"),
        ("b.c/a.x.zarr", None, "zarr"),
        ("a.lmdb", None, "lmdb"),
        ("a.mmap", None, "memmap"),
        ("a.h5", "zarr", "zarr"),
        ("a", "h5", "hdf5"),
        ("a", "mmap", "memmap"),
    ],
)
def test_store_for(path: str, name: str | None, store: str) -> None:
    assert registry.store_for(Path(path), name) == store


def test_store_for_nothing_known() -> None:
    with pytest.raises(UsageError) as error:
        registry.store_for(Path("out.hd5"))
    for word in ("out.hd5", "Did you mean .h", ".mmap", ".zarr", ".lmdb", "--to memmap|hdf5|lmdb|zarr"):
        assert word in str(error.value)
    with pytest.raises(UsageError, match="extension \\(none\\)"):
        registry.store_for(Path("out"))
    with pytest.raises(UsageError, match="Did you mean 'zarr'"):
        registry.store_for(Path("out.h5"), "zar")


@pytest.mark.parametrize("kind", TABLES)
def test_unknown_names_list_the_known(kind: str) -> None:
    with pytest.raises(UsageError, match=f"unknown {kind}") as error:
        registry.load(kind, "nonsense")
    for name in TABLES[kind]:
        assert name in str(error.value)


def test_a_missing_package_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_it.py").write_text("import a_package_that_nobody_has.deep\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.SOURCES, "odd", Entry("needs_it:Source", extra="odd"))
    with pytest.raises(MissingPackage, match=r"a_package_that_nobody_has.*\nInstall it: pip install 'bigconv\[odd\]'"):
        registry.load("source", "odd")
    monkeypatch.setitem(registry.SOURCES, "odd", Entry("needs_it:Source"))
    with pytest.raises(MissingPackage, match="pip install a_package_that_nobody_has") as error:
        registry.load("source", "odd")
    assert error.value.exit_code == 3
    assert isinstance(error.value, ImportError)


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no package that the user could install."""
    monkeypatch.setitem(registry.SOURCES, "odd", Entry("bigconv.sources.nothing:Nothing"))
    with pytest.raises(ModuleNotFoundError) as error:
        registry.load("source", "odd")
    assert not isinstance(error.value, MissingPackage)


def test_plugins_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that is installed beside bigconv adds names; it can't take ours."""
    (tmp_path / "a_plugin.py").write_text("class Mine:\n    name = 'mine'\n")
    info = tmp_path / "a_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bigconv.sources]\nmine = a_plugin:Mine\nimages = a_plugin:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert registry.names("source") == (*registry.SOURCES, "mine")
    assert registry.names("store") == tuple(registry.STORES)
    assert registry.load("source", "mine").__module__ == "a_plugin"
    assert registry.load("source", "images").__module__ == "bigconv.sources.images"
    with pytest.raises(UsageError, match="Did you mean 'mine'"):
        registry.load("source", "min")


def test_stores_are_recognised_by_content_alone(make_store, tmp_path: Path) -> None:
    block = cases.block(Schema((Field("x", "uint8"),)), 3)
    for suffix, name in ((".h5", "hdf5"), (".zarr", "zarr"), (".lmdb", "lmdb"), (".mmap", "memmap")):
        path = make_store(block, suffix)
        assert registry.recognise(path) == name
        path.rename(tmp_path / f"no extension {name}")
        assert registry.recognise(tmp_path / f"no extension {name}") == name
        lying = tmp_path / "lying.npy"
        (tmp_path / f"no extension {name}").rename(lying)
        assert registry.recognise(lying) == name
        lying.rename(tmp_path / f"done {name}")


def test_foreign_files_of_the_same_formats(tmp_path: Path) -> None:
    """What the plain libraries write is seen as what it is, manifest or not."""
    import h5py
    import lmdb
    import zarr

    with h5py.File(tmp_path / "a", "w", userblock_size=1024) as file:
        file["x"] = np.zeros(3)
    assert registry.recognise(tmp_path / "a") == "hdf5"
    zarr.create_group(tmp_path / "z3")
    zarr.create_group(tmp_path / "z2", zarr_format=2)
    zarr.create_array(tmp_path / "z2a", shape=(3,), dtype="u1", zarr_format=2)
    assert [registry.recognise(tmp_path / name) for name in ("z3", "z2", "z2a")] == ["zarr"] * 3
    lmdb.open(str(tmp_path / "folder")).close()
    lmdb.open(str(tmp_path / "single"), subdir=False).close()
    assert registry.recognise(tmp_path / "folder") == "lmdb"
    assert registry.recognise(tmp_path / "single") == "lmdb"


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"\x89HDF\r\n\x1a", b"x" * 5000, bytes(20)])
def test_files_that_are_no_store(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "data.mdb").write_bytes(content)
    for path in (tmp_path / "x.h5", tmp_path / "folder.zarr", tmp_path / "missing", Path("/dev/null")):
        assert registry.recognise(path) is None
