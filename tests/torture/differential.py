"""View and runtime against numpy, h5py, zarr and lmdb, which read the same store by themselves, for random rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import torch
import zarr

from bigconv import fsio, registry
from bigconv.block import Array
from bigconv.errors import SchemaError
from bigconv.runtime import StoreDataset, StreamDataset
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.table import StoreView
from tests.torture import Case
from tests.torture._runs import SUFFIXES, workspace

SETS = 60  # of rows, of each store and schema, at scale 1
ROWS = 53
QUICK = 0.05  # below this scale each schema is tried with one store

Read = Callable[[Field, int], Array]  # one row of a field as the library gives it


def run(scale: float) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    with workspace() as root:
        for number, (name, schema) in enumerate(cases.schemas()):
            for suffix in SUFFIXES if scale >= QUICK else SUFFIXES[number % 4 :: 4]:
                path = root / f"{name}{suffix}"
                store = registry.load("store", registry.store_for(path))()
                try:
                    write(path, store, cases.block(schema, ROWS, seed=3), 7)
                except SchemaError:  # LMDB has no place for rows of nothing
                    continue
                read, close = LIBRARIES[suffix](path, schema)
                view = StoreView([path])
                dataset = StoreDataset(path, decode=False)
                for which in range(max(1, round(SETS * scale))):
                    rows = rng.integers(-ROWS, ROWS, int(rng.integers(0, 40)))
                    wrong = _differs(view, dataset, read, rows)
                    yield Case(f"{name}{suffix} set {which}", wrong)
                yield Case(f"{name}{suffix} streamed", _stream_differs(dataset, read, schema))
                view.close()
                close()
                fsio.remove(path)


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


Opened = tuple[Read, Callable[[], object]]


def _numpy(path: Path, schema: Schema) -> Opened:
    return _columns(lambda name: np.load(path / (name.replace("/", ".") + ".npy"))), lambda: None


def _h5py(path: Path, schema: Schema) -> Opened:
    file = h5py.File(path, "r")
    return _columns(file.__getitem__), file.close


def _zarr(path: Path, schema: Schema) -> Opened:
    group = zarr.open_group(path, mode="r")
    read = {part.name: np.asarray(group[part.name][:]) for part in schema.parts()}
    return _columns(read.__getitem__), lambda: None


def _lmdb(path: Path, schema: Schema) -> Opened:
    """As docs/format.md lays a value down: a head with rows, lengths and shapes, then the bytes of ragged fields."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        values = [txn.get(i.to_bytes(8, "big")) for i in range(env.stat()["entries"])]

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

    return read, lambda: None


LIBRARIES = {".mmap": _numpy, ".h5": _h5py, ".zarr": _zarr, ".lmdb": _lmdb}
