"""Zarr stores, format 2 and 3, that bigconv didn't write: their arrays as fields (see `foreign`).

zarr-python reads what has been found harmless: all metadata is held against this module first. Codecs are those in
`CODECS`, since others may unpickle or run code; objects are strings, bytes, or nothing. A store is the folder it is
in: links that lead out of it are refused, as is anything but files and folders.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import words
from bigconv.errors import InputError
from bigconv.manifest import unique
from bigconv.schema import DTYPES
from bigconv.sniff import not_json
from bigconv.sources.filelist import FileList
from bigconv.sources.foreign import MAX_DATASETS, Dataset, ForeignArrays

MAX_DOCUMENT = 64 << 20  # 64 MiB: consolidated metadata of MAX_DATASETS arrays
MAX_EXTENT = 1 << 62  # of an array's axis
CODECS = frozenset(
    (
        *("bytes", "transpose", "sharding_indexed", "vlen-utf8", "vlen-bytes"),
        *("gzip", "zstd", "blosc", "zlib", "bz2", "lzma", "lz4", "shuffle", "delta", "packbits"),
        *("fixedscaleoffset", "bitround", "quantize"),
        *("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"),
    )
)
_METADATA = frozenset(("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"))
_STRINGS = ("string", "fixed_length_utf32", "null_terminated_bytes")  # as zarr-python calls data types
_BYTES = ("bytes", "variable_length_bytes")


@dataclass(frozen=True, eq=False)
class ForeignZarr(ForeignArrays):
    """Arrays of one or many Zarr stores, each a group or an array."""

    name: ClassVar[str] = "zarr"

    @classmethod
    def listed(cls, paths: Sequence[Path]) -> tuple[tuple[str, ...], FileList]:
        odd = next((p for p in paths if not p.is_dir() or _document(p) is None), None)
        if odd is not None:
            raise InputError(f"{odd}: not a Zarr store: a folder with zarr.json, .zgroup or .zarray in it")
        sizes, mtimes = zip(*(_measured(path) for path in paths), strict=True)
        named = FileList.named(paths)
        whole = FileList("", named.names, named.ends, np.array(sizes, np.int64), np.array(mtimes, np.int64))
        return tuple(os.fspath(path) for path in paths), whole

    @classmethod
    def look(cls, path: str) -> tuple[list[Dataset], list[str]]:
        root = Path(path)
        found: list[Dataset] = []
        todo = [root]
        while todo:
            folder = todo.pop()
            document = _document(folder)
            if document is None:
                continue
            if "bigconv" in (document.get("attributes") or ()) and folder == root:
                raise InputError(f"{path}: a bigconv store: give its own path, not that of its folder, and no --from")
            if document["node_type"] == "array":
                below = root.stem if folder == root else folder.relative_to(root).as_posix()
                found.append(_described(below, document))
            else:
                todo += [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
            if len(found) > MAX_DATASETS:
                raise InputError(f"{path}: more than {MAX_DATASETS} arrays")
        found.sort(key=lambda d: os.fsencode(d.path))
        rows = [d for d in found if d.shape or d.problem]
        return rows, [d.path for d in found if d not in rows]

    def reader(self, number: int) -> _Reader:
        return _Reader(self.paths[number], self.files.name(number))

    def describe(self) -> dict[str, Any]:
        """`chunks_missing`: how many aren't there, so that their rows are the fill value, as the format has it."""
        missing = self._chunks_missing
        return super().describe() | ({"chunks_missing": missing} if missing else {})

    @cached_property
    def _chunks_missing(self) -> int:
        return sum(_missing(Path(path), dataset) for path in self.paths for dataset in self.datasets)


class _Reader:
    def __init__(self, path: str, name: str) -> None:
        self._root, self._name = Path(path), name
        self._arrays: dict[str, Any] = {}

    def rows(self, dataset: Dataset, axis: int, start: int, stop: int) -> Any:
        at = axis % len(dataset.shape)
        try:
            if dataset.path not in self._arrays:
                self._arrays[dataset.path] = self._opened(dataset)
            values = np.asarray(self._arrays[dataset.path][(*(slice(None),) * at, slice(start, stop))])
        except InputError:
            raise
        except Exception as error:  # zarr and its codecs raise whatever the damage leads to
            more = " in the memory there is" if isinstance(error, MemoryError) else ""
            what = f"damaged: a chunk can't be unpacked{more}"
            raise InputError(f"{self._name}: {dataset.path}, {words.rows(start, stop)}: {what}") from error
        return np.moveaxis(values, at, 0) if dataset.kind == "array" else values.tolist()

    def _opened(self, dataset: Dataset) -> Any:
        """The array, as it was when the store was looked at."""
        import zarr

        folder = _folder(self._root, dataset)
        document = _document(folder)
        if document is None or _described(dataset.path, document) != replace(dataset, kind=_kind(document)):
            raise InputError(f"{self._name}: {dataset.path} is another array: the store has changed")
        return zarr.open_array(store=str(folder), mode="r", zarr_format=document["zarr_format"])

    def close(self) -> None:
        """Nothing stays open between reads."""


def _folder(root: Path, dataset: Dataset) -> Path:
    """Where an array lies: a store may be one array, without a group."""
    document = _document(root)
    return root if document is not None and document["node_type"] == "array" else root / dataset.path


def _missing(root: Path, dataset: Dataset) -> int:
    """How many chunks, or shards, of an array have no file."""
    folder = _folder(root, dataset)
    document = _document(folder) or {}
    chunk = document["chunks"] if "chunks" in document else document["chunk_grid"]["configuration"]["chunk_shape"]
    there = sum(name not in _METADATA for _, _, names in os.walk(folder) for name in names)
    chunks = math.prod(-(-n // int(c)) for n, c in zip(dataset.shape, chunk, strict=True))
    return max(0, chunks - there)


def _measured(root: Path) -> tuple[int, int]:
    """Bytes of a store and its latest change, ns. Raises `InputError` for links out of it and special files."""
    size, latest = 0, 0
    real = os.path.realpath(root)
    todo = [os.fspath(root)]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    outside = entry.is_symlink() and not os.path.realpath(entry.path).startswith(real + os.sep)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                        continue
                    info = entry.stat(follow_symlinks=not outside)
                    if outside or not stat.S_ISREG(info.st_mode):
                        what = "a link out of the store" if outside else "neither a file nor a folder of the store"
                        raise InputError(f"{entry.path}: {what}, which is never followed")
                    size, latest = size + info.st_size, max(latest, info.st_mtime_ns)
        except OSError as error:
            raise InputError(f"{folder}: can't be listed: {error.strerror}") from error
    return size, latest


def _document(folder: Path) -> dict[str, Any] | None:
    """Metadata of an array or group, with `node_type` as format 3 has it; None where there is none."""
    for name in ("zarr.json", ".zarray", ".zgroup"):
        file = folder / name
        if not file.is_file():
            continue
        raw = b""
        try:
            if file.stat().st_size > MAX_DOCUMENT:
                raise ValueError(f"more than {MAX_DOCUMENT} bytes")
            raw = file.read_bytes()
            document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
            if not isinstance(document, dict):
                raise TypeError("no object of JSON")
            if name == "zarr.json" and document.get("node_type") not in ("array", "group"):
                raise ValueError("neither an array nor a group")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{file}: damaged: {not_json(raw, error):.120}") from error
        if name == "zarr.json":
            return document
        return {**document, "node_type": "array" if name == ".zarray" else "group"}
    return None


def _described(path: str, document: Mapping[str, Any]) -> Dataset:
    """An array by its metadata, with what keeps it from being read."""
    try:
        shape = _extents(document["shape"])
        if document["zarr_format"] == 3:
            return _format3(path, document, shape)
        if document["zarr_format"] == 2:
            return _format2(path, document, shape)
        raise ValueError(f"zarr_format {document['zarr_format']}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        return Dataset(path, "array", "", (), problem=f"its metadata is damaged: {_odd(error)}")


def _odd(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:120] or type(error).__name__


def _kind(document: Mapping[str, Any]) -> str:
    return _described("", document).kind


def _format2(path: str, document: Mapping[str, Any], shape: tuple[int, ...]) -> Dataset:
    """Source: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html"""
    codecs = [codec["id"] for codec in (*(document.get("filters") or ()), document.get("compressor")) if codec]
    chunk, dtype = _extents(document["chunks"]), document["dtype"]
    _fits(chunk, shape)
    if bad := _refused(codecs):
        return Dataset(path, "array", "", shape, chunk, problem=bad)
    if dtype == "|O":
        return _objects(path, codecs, shape, chunk)
    if not isinstance(dtype, str):
        return Dataset(path, "array", "", shape, chunk, problem="a structured array, whose columns no field can hold")
    return _plain(path, np.dtype(dtype), shape, chunk)


def _format3(path: str, document: Mapping[str, Any], shape: tuple[int, ...]) -> Dataset:
    """Source: https://zarr-specs.readthedocs.io/en/latest/v3/core/"""
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        return Dataset(path, "array", "", shape, problem=f"a chunk grid that is {grid['name']!r:.40}, not regular")
    chunk = _extents(grid["configuration"]["chunk_shape"])
    _fits(chunk, shape)
    codecs, inner = _named(document["codecs"])
    if document.get("storage_transformers"):
        return Dataset(path, "array", "", shape, chunk, problem="transformed by a storage transformer")
    if bad := _refused(codecs):
        return Dataset(path, "array", "", shape, chunk, problem=bad)
    if inner is not None:  # a shard holds many chunks, each of which is read on its own
        _fits(inner, shape)
        chunk = inner
    told = document["data_type"]
    name = told if isinstance(told, str) else told["name"]
    if name in _STRINGS:
        length = 0 if isinstance(told, str) else int(told["configuration"]["length_bytes"])
        return Dataset(path, "text", f"|S{length}" if length else "", shape, chunk)
    if name in _BYTES:
        return Dataset(path, "ragged", "|u1", shape, chunk)
    if name not in DTYPES:
        return Dataset(
            path, "array", "", shape, chunk, problem=f"holds values of type {name!r:.40}, which no field can"
        )
    return _plain(path, np.dtype(name), shape, chunk)


def _plain(path: str, dtype: np.dtype[Any], shape: tuple[int, ...], chunk: tuple[int, ...]) -> Dataset:
    if dtype.kind in "US":
        return Dataset(path, "text", dtype.str, shape, chunk)
    if dtype.hasobject or dtype.kind not in "biufc":
        return Dataset(path, "array", "", shape, chunk, problem=f"holds values of type {dtype}, which no field can")
    return Dataset(path, "array", dtype.str, shape, chunk)


def _objects(path: str, codecs: Sequence[str], shape: tuple[int, ...], chunk: tuple[int, ...]) -> Dataset:
    if "vlen-utf8" in codecs:
        return Dataset(path, "text", "", shape, chunk)
    if "vlen-bytes" in codecs:
        return Dataset(path, "ragged", "|u1", shape, chunk)
    return Dataset(path, "array", "", shape, chunk, problem="an array of objects, which is never unpickled")


def _named(codecs: Sequence[Mapping[str, Any]]) -> tuple[list[str], tuple[int, ...] | None]:
    """Names of all codecs, those within shards too, and the shape of the innermost chunks of shards."""
    names: list[str] = []
    inner: tuple[int, ...] | None = None
    for codec in codecs:
        name = str(codec["name"])
        names.append(name.removeprefix("numcodecs."))
        if name == "sharding_indexed":
            inner = _extents(codec["configuration"]["chunk_shape"])
            for key in ("codecs", "index_codecs"):
                more, deeper = _named(codec["configuration"][key])
                names += more
                inner = deeper or inner
    return names, inner


def _refused(codecs: Sequence[str]) -> str | None:
    bad = next((name for name in codecs if name not in CODECS), None)
    if bad is None:
        return None
    why = ", which unpickles what it reads: never run" if bad == "pickle" else ", which bigconv does not trust"
    return f"stored with the codec {bad!r:.40}{why}"


def _extents(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < MAX_EXTENT for n in numbers):
        raise ValueError(f"extents {numbers!r:.80}")
    return tuple(numbers)


def _fits(chunk: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if len(chunk) != len(shape) or 0 in chunk:
        raise ValueError(f"chunks of {chunk} in an array of {shape}")
