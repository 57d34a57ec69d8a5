"""View and runtime against numpy, h5py, zarr and lmdb, which read the same store by themselves, for random rows.

Compressed stores are read by the libraries' own codecs (hdf5plugin, numcodecs), sharded directories part by part in
the order of their manifest, which is plain JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  importing it is what gives h5py the filter
import lmdb
import numcodecs.blosc
import numpy as np
import torch
import zarr

from bigconv import fsio
from bigconv.block import Array, Block
from bigconv.conversion.shard import shard
from bigconv.errors import SchemaError
from bigconv.runtime import StoreDataset, StreamDataset
from bigconv.schema import Field, Schema
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.memmap import Memmap
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.table import StoreView
from tests.torture import Case
from tests.torture._runs import workspace

SETS = 60  # of rows, of each store and schema, at scale 1
ROWS = 53
PARTS = 3
QUICK = 0.05  # below this scale each schema is tried with one store
STORES: dict[str, Any] = {
    "a.mmap": Memmap(),
    "a.h5": Hdf5(),
    "a.zarr": Zarr(),
    "a.lmdb": Lmdb(),
    "zstd.h5": Hdf5(compress="zstd", chunk=5),
    "lz4.h5": Hdf5(compress="lz4", chunk=5),
    "zstd.zarr": Zarr(compress="zstd", chunk=5),
    "lz4.zarr": Zarr(compress="lz4", chunk=5),
    "zstd.lmdb": Lmdb(compress="zstd"),
    "lz4.lmdb": Lmdb(compress="lz4"),
}
SHARDED = ("memmap", "hdf5", "zarr", "lmdb")

Read = Callable[[Field, int], Array]  # one row of a field as the library gives it


def run(scale: float) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    kinds = [*STORES, *SHARDED]
    with workspace() as root:
        for number, (name, schema) in enumerate(cases.schemas()):
            for kind in kinds if scale >= QUICK else kinds[number :: len(kinds)]:
                path = root / f"{name} {kind}"
                try:
                    _written(path, kind, cases.block(schema, ROWS, seed=3))
                except SchemaError:  # LMDB has no place for rows of nothing
                    continue
                with ExitStack() as held:
                    read = _opened(path, schema, held)
                    view = held.enter_context(StoreView([path]))
                    dataset = StoreDataset(path, decode=False)
                    for which in range(max(1, round(SETS * scale))):
                        rows = rng.integers(-ROWS, ROWS, int(rng.integers(0, 40)))
                        yield Case(f"{name} {kind} set {which}", _differs(view, dataset, read, rows))
                    yield Case(f"{name} {kind} streamed", _stream_differs(dataset, read, schema))
                fsio.remove(path)


def _written(path: Path, kind: str, block: Block) -> None:
    if kind in STORES:
        write(path, STORES[kind], block, 7)
        return
    whole = path.with_suffix(".whole.mmap")
    write(whole, Memmap(), block, 7)
    try:
        shard(whole, path, shards=PARTS, to=kind, workers=0)
    finally:
        fsio.remove(whole)


def _differs(view: StoreView, dataset: StoreDataset, read: Read, rows: Array) -> str:
    """What is wrong with a batch; empty when every way of reading gives the same bits."""
    taken = view.take(rows)
    batch = dataset.__getitems__(rows.tolist())
    run = slice(int(rows.min()) % ROWS, int(rows.max()) % ROWS) if len(rows) else slice(0, 0)
    for f in view.schema:
        for i, row in enumerate(rows.tolist()):
            expected = read(f, row % ROWS)
            got = {"view": taken[f.name][i], "view[i]": view[row][f.name], "dataset": batch[i][f.name]}
            for way, value in got.items():
                if not _same(f, value, expected):
                    return f"{way}: field {f.name}, row {row}: {value!r:.100} instead of {expected!r:.100}"
        for i, value in enumerate(view[run][f.name]):
            if not _same(f, value, read(f, run.start + i)):
                return f"slice: field {f.name}, row {run.start + i}"
    return ""


def _same(f: Field, value: Any, expected: Array) -> bool:
    if isinstance(value, str):
        return value.encode() == expected.tobytes()
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, (bool, int, float, complex)):
        value = np.array(value, f.dtype)
        if np.isnan(expected).any():  # a Python number keeps no payload
            return bool(np.isnan(value).any())
    array = np.asarray(value)
    return array.shape == expected.shape and array.dtype == expected.dtype and array.tobytes() == expected.tobytes()


def _stream_differs(dataset: StoreDataset, read: Read, schema: Schema) -> str:
    f = schema.fields[0]
    seen = 0
    for i, row in enumerate(StreamDataset(dataset)):
        seen += 1
        if not _same(f, row[f.name], read(f, i)):
            return f"stream: field {f.name}, row {i}"
    return "" if seen == ROWS else f"stream: {seen} of {ROWS} rows"


def _columns(get: Callable[[str], Any]) -> Read:
    def read(f: Field, row: int) -> Array:
        if not f.ragged:
            return np.asarray(get(f.name)[row], f.dtype)
        a, b = (int(n) for n in get(f"{f.name}/offsets")[row : row + 2])
        values = np.asarray(get(f"{f.name}/values")[a:b], f.dtype)
        return values.reshape(get(f"{f.name}/shapes")[row]) if f.has_shapes else values

    return read


def _opened(path: Path, schema: Schema, held: ExitStack) -> Read:
    """Rows as the library of the store reads them; `held` closes what is opened."""
    if path.suffix in LIBRARIES:
        return LIBRARIES[path.suffix](path, schema, held)
    parts = json.loads((path / "manifest.json").read_bytes())["parts"]
    readers = [LIBRARIES[Path(part["name"]).suffix](path / part["name"], schema, held) for part in parts]
    places = [(reader, row) for reader, part in zip(readers, parts, strict=True) for row in range(part["rows"])]

    def read(field: Field, row: int) -> Array:
        reader, inside = places[row]
        return reader(field, inside)

    return read


def _numpy(path: Path, schema: Schema, held: ExitStack) -> Read:
    return _columns(lambda name: np.load(path / (name.replace("/", ".") + ".npy")))


def _h5py(path: Path, schema: Schema, held: ExitStack) -> Read:
    return _columns(held.enter_context(h5py.File(path, "r")).__getitem__)


def _zarr(path: Path, schema: Schema, held: ExitStack) -> Read:
    group = zarr.open_group(path, mode="r")
    read = {part.name: np.asarray(group[part.name][:]) for part in schema.parts()}
    return _columns(read.__getitem__)


def _lmdb(path: Path, schema: Schema, held: ExitStack) -> Read:
    """As docs/format.md lays a value down: a head with rows, lengths and shapes, then the bytes of ragged fields."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        values = [txn.get(i.to_bytes(8, "big")) for i in range(env.stat()["entries"])]
    if (path / "frames.npy").exists():
        values = [numcodecs.blosc.decompress(value) for value in values]

    def read(wanted: Field, row: int) -> Array:
        value, at, found, ragged = values[row], 0, None, []
        for f in schema:
            if not f.ragged:
                if f == wanted:
                    found = np.frombuffer(value[at : at + f.row_bytes], f.dtype).reshape(f.item_shape)
                at += f.row_bytes
                continue
            length = int.from_bytes(value[at : at + 8], "little")
            shape = np.frombuffer(value, "<i8", len(f.shape), at + 8) if f.has_shapes else (-1, *f.item_shape)
            at += 8 + (8 * len(f.shape) if f.has_shapes else 0)
            ragged.append((f, length, shape))
        for f, length, shape in ragged:
            if f == wanted:
                found = np.frombuffer(value[at : at + length], f.dtype).reshape(shape)
            at += length
        assert at == len(value)
        assert found is not None
        return found

    return read


LIBRARIES = {".mmap": _numpy, ".h5": _h5py, ".zarr": _zarr, ".lmdb": _lmdb}
