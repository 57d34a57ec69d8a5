"""What a Zarr group or array holds, format 2 or 3, from its JSON documents alone: zarr itself is not needed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import fsio
from bigconv.errors import IncompleteStore
from bigconv.inspection.datasets import MOST, Dataset
from bigconv.sniff import not_json

DOCUMENT_BYTES = 64 << 20  # 64 MiB: a bigconv manifest may be in the root's; that of an array has under 10 KiB
ARRAYS = {"zarr.json": 3, ".zarray": 2}


def tree(path: Path, listed: Mapping[str, int] | None = None) -> list[Dataset]:
    """Every array, in order of its name. Raises `IncompleteStore` for documents that can't be read.

    `listed`: bytes of each file, where only some are here; arrays whose document isn't are left out.
    """
    files = fsio.files_below(path) if listed is None else listed
    found: list[Dataset] = []
    stored = _stored(files)
    for file in sorted(files):
        folder, _, name = file.rpartition("/")
        if name not in ARRAYS or len(found) >= MOST or (listed is not None and not (path / file).exists()):
            continue
        document = _document(path / file, files[file])
        if name == "zarr.json" and document.get("node_type") != "array":
            continue
        try:
            make = _version_2 if name == ".zarray" else _version_3
            found.append(make(folder, document, stored.get(folder, 0)))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise IncompleteStore(f"{path / file}: not the metadata of a Zarr array: {error!r:.200}") from error
    return found


def _stored(files: Mapping[str, int]) -> dict[str, int]:
    """Folder of each array -> bytes of its chunks."""
    roots = {file.rpartition("/")[0] for file in files if file.rpartition("/")[2] in ARRAYS}
    total: dict[str, int] = dict.fromkeys(roots, 0)
    for file, size in files.items():
        folder, _, name = file.rpartition("/")
        if name.startswith(".z") or name == "zarr.json":
            continue
        while folder and folder not in roots:
            folder = folder.rpartition("/")[0]
        if folder in total:
            total[folder] += size
    return total


def _document(file: Path, size: int) -> dict[str, Any]:
    raw = b""
    try:
        if size > DOCUMENT_BYTES:
            raise ValueError(f"{size} bytes are more than metadata has")
        raw = file.read_bytes()
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        return document
    except OSError as error:
        raise IncompleteStore(f"{file}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise IncompleteStore(f"{file}: can't be read: {not_json(raw, error)}") from error


def _version_2(name: str, document: dict[str, Any], stored: int) -> Dataset:
    shape = tuple(int(n) for n in document["shape"])
    dtype = document["dtype"]
    filters = [codec["id"] for codec in [*(document.get("filters") or []), document.get("compressor")] if codec]
    vlen = any(str(codec).startswith("vlen") for codec in filters)
    if isinstance(dtype, list):  # a record
        words, itemsize = "record", None
    else:
        kind = np.dtype(dtype)
        words, itemsize = ("object", None) if kind.hasobject else (str(kind), kind.itemsize)
    nbytes = None if itemsize is None else math.prod(shape) * itemsize
    chunks = tuple(int(n) for n in document["chunks"])
    return Dataset(name, words, shape, chunks, tuple(map(_named, filters)), nbytes, stored, ("vlen",) if vlen else ())


def _version_3(name: str, document: dict[str, Any], stored: int) -> Dataset:
    shape = tuple(int(n) for n in document["shape"])
    dtype = document["data_type"]
    words = dtype if isinstance(dtype, str) else str(dtype.get("name", "?"))
    chunks = tuple(int(n) for n in document["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = document["codecs"]
    notes: list[str] = []
    if codecs and codecs[0].get("name") == "sharding_indexed":
        inner = codecs[0]["configuration"]
        notes.append("sharded")
        chunks, codecs = tuple(int(n) for n in inner["chunk_shape"]), inner["codecs"]
    names = [_codec(codec) for codec in codecs]
    if words in ("string", "bytes", "variable_length_bytes", "variable_length_utf8"):
        notes.append("vlen")
        words = "text" if words in ("string", "variable_length_utf8") else "bytes"
    try:
        nbytes = None if "vlen" in notes else math.prod(shape) * np.dtype(words).itemsize
    except TypeError:
        nbytes = None
    filters = tuple(codec for codec in names if codec not in ("bytes", "crc32c", "vlen-utf8", "vlen-bytes"))
    return Dataset(name, words, shape, chunks, filters, nbytes, stored, tuple(notes))


def _codec(codec: dict[str, Any]) -> str:
    name = str(codec["name"])
    inner = codec.get("configuration") or {}
    return f"blosc {inner['cname']}" if name == "blosc" and "cname" in inner else _named(name)


def _named(name: str) -> str:
    return {"zlib": "gzip"}.get(name, name)
