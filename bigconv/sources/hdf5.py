"""HDF5 files that bigconv didn't write: their datasets as fields (see `foreign`).

An HDF5 file can name other files in three ways: external links, external storage and virtual datasets. None is
followed, as a file from somebody else could then read any file of this machine. Each step of a path is looked at:
hard links alone lead on, and soft links are passed over, since what they name has a name of its own. Filters are
those of the HDF5 library and of h5py, and, if the package hdf5plugin is installed, the five of it that are in common
use.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from bigconv import registry, words
from bigconv.errors import BigconvError, InputError
from bigconv.sources.filelist import FileList
from bigconv.sources.foreign import ALIGN_BYTES, MAX_DATASETS, Dataset, ForeignArrays
from bigconv.sources.named import NamedFiles
from bigconv.stores.hdf5_file import in_words

# Filters by their registered number: https://github.com/HDFGroup/hdf5_plugins
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
PLUGINS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"}
MAX_DEPTH = 32  # groups in groups


@dataclass(frozen=True, eq=False)
class ForeignHdf5(ForeignArrays):
    """Datasets of one or many HDF5 files."""

    name: ClassVar[str] = "hdf5"

    @classmethod
    def listed(cls, paths: Sequence[Path]) -> tuple[tuple[str, ...], FileList]:
        found = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "HDF5 files")
        return found.paths, found.files

    @classmethod
    def look(cls, path: str) -> tuple[list[Dataset], list[str]]:
        with _damage(path, path), _opened(path) as file:
            if "_bigconv" in file:
                raise InputError(f"{path}: a bigconv store: give its own path, not that of its folder, and no --from")
            return _walk(file, path)

    def reader(self, number: int) -> _Reader:
        return _Reader(self.paths[number], self.files.name(number), int(self.files.sizes[number]))


class _Reader:
    def __init__(self, path: str, name: str, size: int) -> None:
        self._name, self._path = name, path
        with _damage(name, path):
            if os.stat(path).st_size != size:
                raise InputError(f"{name}: changed since it was listed with {size} bytes")
            self._file = _opened(path)
        self._datasets: dict[tuple[str, str | None], Any] = {}

    def rows(self, dataset: Dataset, axis: int, start: int, stop: int) -> Any:
        with _damage(f"{self._name}: {dataset.path}, {words.rows(start, stop)}", self._path):
            key = dataset.path, dataset.member
            if key not in self._datasets:
                self._datasets[key] = _descend(self._file, dataset)
            at = axis % len(dataset.shape)
            values = self._datasets[key][(*(slice(None),) * at, slice(start, stop))]
            if dataset.kind == "array":
                return np.moveaxis(values, at, 0)
            return values.tolist() if dataset.kind == "text" else values

    def close(self) -> None:
        self._file.close()


@contextmanager
def _damage(where: str, path: str) -> Iterator[None]:
    """What h5py raises for damaged files, by no fixed type, as `InputError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, MemoryError) as error:
        if isinstance(error, BigconvError):
            raise
        raise InputError(f"{where}: {in_words(error, path)}") from error


def _opened(path: str) -> Any:
    """A chunk larger than what is read at once stays at hand."""
    _check_end(path)
    for locking in (None, False):  # a file system may have no locks, and a writer may hold one
        try:
            return h5py.File(path, "r", locking=locking, rdcc_nbytes=ALIGN_BYTES)
        except OSError as error:
            if "lock" not in str(error):
                raise
    return h5py.File(path, "r", locking="best-effort", rdcc_nbytes=ALIGN_BYTES)


def _check_end(path: str) -> None:
    """All bytes that the superblock names (HDF5 format, II.A) are there, as the library may find out late."""
    with open(path, "rb") as file:
        head = file.read(52)
        size = os.fstat(file.fileno()).st_size
    version = head[8] if len(head) == 52 and head.startswith(b"\x89HDF") else -1
    at = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    eight_bytes = version >= 0 and head[13 if version < 2 else 9] == 8
    if at is not None and eight_bytes and size < (end := int.from_bytes(head[at : at + 8], "little")):
        raise InputError(f"{path}: has {size} bytes instead of {end}: cut short")


def _walk(file: Any, where: str) -> tuple[list[Dataset], list[str]]:
    """All datasets below hard links, in bytewise order of their paths, and those that have no rows."""
    found: list[Dataset] = []
    empty: list[str] = []
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", file)]
    while todo:
        prefix, group = todo.pop()
        for name in group:
            path = prefix + name
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                continue
            if not isinstance(link, h5py.HardLink):
                found.append(Dataset(path, "array", "", (), problem=_outside(link)))
                continue
            node = group[name]
            address = h5py.h5o.get_info(node.id).addr
            if address in seen:  # a second name for the same, or a loop
                continue
            seen.add(address)
            if len(seen) > MAX_DATASETS or path.count("/") >= MAX_DEPTH:
                raise InputError(f"{where}: more than {MAX_DATASETS} datasets, or {MAX_DEPTH} groups in one another")
            if isinstance(node, h5py.Group):
                todo.append((f"{path}/", node))
            elif isinstance(node, h5py.Dataset) and node.shape:
                found += _described(path, node)
            elif isinstance(node, h5py.Dataset):
                empty.append(path)
    return sorted(found, key=lambda d: d.path.encode("utf-8", "surrogateescape")), sorted(empty)


def _outside(link: Any) -> str:
    if isinstance(link, h5py.ExternalLink):
        return f"a link to another file, {link.filename!r:.100}, which is never followed"
    return "a link of an unknown kind, which is never followed"


def _described(path: str, node: Any) -> list[Dataset]:
    """A dataset, or the columns of one of a compound type."""
    problem = _unsafe(node)
    try:
        dtype, chunk = node.dtype, node.chunks
    except (TypeError, ValueError) as error:
        return [Dataset(path, "array", "", node.shape, problem=f"its type can't be read: {error}")]
    if problem is not None:
        return [Dataset(path, "array", "", node.shape, chunk, problem=problem)]
    if dtype.names is None:
        return [_typed(path, dtype, node.shape, chunk, None)]
    return [_typed(path, *_flat(dtype[name], node.shape, chunk), name) for name in dtype.names]


def _flat(dtype: np.dtype[Any], shape: tuple[int, ...], chunk: Any) -> tuple[np.dtype[Any], tuple[int, ...], Any]:
    """A member that is an array itself has more axes."""
    base, more = dtype.subdtype or (dtype, ())
    return base, (*shape, *more), None if chunk is None else (*chunk, *more)


def _typed(path: str, dtype: np.dtype[Any], shape: tuple[int, ...], chunk: Any, member: str | None) -> Dataset:
    if h5py.check_string_dtype(dtype) is not None:
        return Dataset(path, "text", dtype.str if dtype.kind == "S" else "", shape, chunk, member)
    base = h5py.check_vlen_dtype(dtype)
    if base is not None and np.dtype(base).kind in "biufc":
        return Dataset(path, "ragged", np.dtype(base).str, shape, chunk, member)
    if dtype.kind not in "biufc":
        what = "references to other objects" if dtype.kind == "O" and base is None else f"values of type {dtype}"
        return Dataset(path, "array", "", shape, chunk, member, problem=f"holds {what}, which no field can")
    return Dataset(path, "array", dtype.str, shape, chunk, member)


def _unsafe(node: Any) -> str | None:
    """Why a dataset may not be read, from its creation properties."""
    if node.external:
        return f"its data lies in another file, {node.external[0][0]!r:.100}, which is never read"
    if node.is_virtual:
        return "a virtual dataset: made of other files, which are never read. Copy it: dst['x'] = src['x'][:]"
    made = node.id.get_create_plist()
    for i in range(made.get_nfilters()):
        number, _, _, label = made.get_filter(i)
        if number in FILTERS:
            continue
        if number not in PLUGINS:
            told = label.decode("ascii", "replace")[:40]
            return f"compressed by filter {number} ({told!r}), which is none of {', '.join(FILTERS.values())}"
        if importlib.util.find_spec("hdf5plugin") is None:
            raise registry.missing("hdf5plugin", "hdf5", f"an HDF5 file compressed by {PLUGINS[number]}")
        importlib.import_module("hdf5plugin")  # registers its filters
    return None


def _descend(file: Any, dataset: Dataset) -> Any:
    """The dataset, each step on the way to it being a hard link, as it was when the file was listed."""
    node = file
    for name in dataset.path.split("/"):
        if not isinstance(node, h5py.Group) or not isinstance(node.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{dataset.path} is no longer there: the file has changed")
        node = node[name]
    if not isinstance(node, h5py.Dataset) or _unsafe(node) is not None or node.ndim > len(dataset.shape):
        raise InputError(f"{dataset.path} is another dataset: the file has changed")
    return node if dataset.member is None else node.fields(dataset.member)
