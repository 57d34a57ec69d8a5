"""A writer killed anywhere behind a checkpoint and taken up again leaves the same bytes as one that wasn't."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigconv import fsio
from bigconv.block import Block, Ragged
from bigconv.digest import Digester
from bigconv.errors import IncompleteStore
from bigconv.manifest import Manifest
from bigconv.schema import Field, Schema
from bigconv.stores import lmdb_load, lmdb_writer
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases

STORES = {
    "lmdb": Lmdb(),
    "zarr": Zarr(chunk_bytes=1000, shard_bytes=8000),
    "zarr, many rows a chunk": Zarr(9000, 30_000),
    "zarr, compressed": Zarr(1000, 8000, "lz4"),
    "zarr, compressed, many rows a chunk": Zarr(1000, 200_000, "zstd", 13),
    "lmdb, compressed": Lmdb("lz4"),
}
SCHEMAS = {
    "small rows": Schema((Field("x", "uint8", (151,)), Field("label", "int64"))),
    "the largest in a leaf": Schema((Field("x", "uint8", (2022,)),)),
    "the smallest on its own page": Schema((Field("x", "uint8", (2023,)),)),
    "pages": Schema((Field("x", "uint16", (2100,)), Field("y", "bool"))),
    "no bytes": Schema((Field("x", "float32", (0, 3)),)),
    "small and large": Schema((Field("x", "uint8", (None,)), Field("y", "int16", (3,)))),
    "several ragged": Schema((Field("a", "float32", (None, None)), Field("b", "uint8"), Field("c", "uint8", (None,)))),
}
ATTACHED = {"origin": bytes(range(256)) * 20, "none": b""}


def rows_of(schema: Schema, rows: int, seed: int) -> Block:
    """Random rows; of ragged ones some are a hundred times as long."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for f in schema:
        if f.ragged and not f.has_shapes:
            sizes = rng.integers(0, 30, rows) * np.where(rng.random(rows) < 0.3, 200, 1)
            columns[f.name] = Ragged.of([cases.values(f.dtype, (int(n),), rng) for n in sizes], f)
        else:
            columns[f.name] = cases.column(f, rows, rng)
    return Block(schema, columns)


def append(writer: Any, block: Block, start: int, stop: int, step: int) -> None:
    for a in range(start, stop, step):
        writer.append(block.slice(a, min(stop, a + step)))


def finish(writer: Any, store: Any, path: Path, block: Block) -> None:
    writer.close()
    for name, data in ATTACHED.items():
        writer.attach(name, data)
    digester = Digester(block.schema)
    digester.update(block)
    writer.seal(Manifest(block.schema, len(block), store.name, digester.finish(), {}, {}, "0", store.files(path)))


def cut_off(writer: Any, writes: int) -> None:
    """Kill `close` at a write to a file."""
    left = writes

    def counted(method: Any) -> Any:
        def write(*args: Any) -> None:
            nonlocal left
            if left == 0:
                raise InterruptedError
            left -= 1
            method(*args)

        return write

    with pytest.MonkeyPatch.context() as patch, suppress(InterruptedError):
        for name in ("write", "write_at"):
            patch.setattr(fsio.AppendFile, name, counted(getattr(fsio.AppendFile, name)))
        writer.close()


def tree(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


@pytest.fixture(scope="module")
def small_pieces() -> Iterator[None]:
    """Pieces of a few pages and branches of three children: everything happens within a hundred rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)  # no test here can tell, but for the time it takes
        patch.setattr(lmdb_writer, "PIECE_BYTES", 20_000)
        patch.setattr(lmdb_load, "ROOM_BYTES", 30_000)
        patch.setattr(lmdb_load, "FAN", 3)
        patch.setattr(lmdb_load, "FAN_PAGES", 2)
        yield


KILLS = st.tuples(st.integers(0, 50), st.integers(0, 40), st.sampled_from(["rows", "in close", "close", "seal"]))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("name", STORES)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.integers(1, 100), step=st.integers(1, 50), kills=st.lists(KILLS, min_size=1, max_size=3))
def test_a_killed_writer_goes_on_without_a_trace(
    tmp_path: Path, name: str, schema: str, rows: int, step: int, kills: list[tuple[int, int, str]]
) -> None:
    store, block = STORES[name], rows_of(SCHEMAS[schema], rows, 0)
    lost = rows_of(SCHEMAS[schema], 40, 1)  # what comes after a checkpoint need not come again
    for old in tmp_path.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    calm, path = tmp_path / "calm", tmp_path / "killed"
    writer = store.create(calm, block.schema, rows)
    append(writer, block, 0, rows, step)
    finish(writer, store, calm, block)

    writer, done = store.create(path, block.schema), 0
    for more, wasted, how in kills:
        stop = min(rows, done + more)
        append(writer, block, done, stop, step)
        done = stop
        raw = json.dumps(writer.checkpoint())
        assert len(raw) < 200
        append(writer, lost, 0, wasted, 7)
        if how == "in close":
            cut_off(writer, wasted % 6)
        elif how == "close":
            writer.close()
        elif how == "seal":
            finish(writer, store, path, block)
        writer.abort()  # as the system does with a dead process's files
        writer = store.resume(path, block.schema, rows, json.loads(raw))
    append(writer, block, done, rows, step)
    finish(writer, store, path, block)
    assert tree(path) == tree(calm)


@pytest.mark.parametrize("name", STORES)
def test_a_resumed_store_is_not_one_yet(tmp_path: Path, name: str) -> None:
    """What the killed writer had put in to make it whole is gone."""
    store, block = STORES[name], rows_of(SCHEMAS["small and large"], 50, 0)
    path = tmp_path / "out"
    writer = store.create(path, block.schema)
    writer.append(block)
    state = writer.checkpoint()
    finish(writer, store, path, block)
    store.resume(path, block.schema, None, state).abort()
    with pytest.raises(OSError, match="never finished"):
        store.manifest(path)
    assert store.attachment(path, "origin") is None


@pytest.mark.parametrize("name", STORES)
def test_attachments(tmp_path: Path, name: str) -> None:
    store, block = STORES[name], rows_of(SCHEMAS["pages"], 20, 0)
    path = tmp_path / "out"
    writer = store.create(path, block.schema)
    writer.append(block)
    finish(writer, store, path, block)
    for attached, data in ATTACHED.items():
        assert store.attachment(path, attached) == data
    assert store.attachment(path, "other") is None
    named = json.loads(store.manifest(path))["files"]
    assert any("origin" in file for file in named)
    for bad in ("", "../x", "A", "a1", "é", "zarr.json"):
        with pytest.raises(ValueError, match="lower-case"):
            store.attachment(path, bad)
        with pytest.raises(ValueError, match="lower-case"):
            writer.attach(bad, b"")


@pytest.mark.parametrize("damage", ["leaf", "leaves"])
def test_lmdb_refuses_to_go_on_from_a_damaged_leaf(tmp_path: Path, damage: str) -> None:
    block = rows_of(SCHEMAS["small rows"], 50, 0)
    path = tmp_path / "out"
    writer = Lmdb().create(path, block.schema)
    writer.append(block)
    state = writer.checkpoint()
    writer.abort()
    file = {"leaf": path / "data.mdb", "leaves": tmp_path / "out.leaves"}[damage]
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(IncompleteStore, match="damaged"):
        Lmdb().resume(path, block.schema, None, state)
