"""Stores as a source: merges across formats, order kept, origins that say from which store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bigconv.block import Block
from bigconv.errors import NotAStore, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources import store as module
from bigconv.sources.store import StoreSource
from bigconv.testing import cases

SCHEMA = Schema(
    (Field("x", "float32", (3,)), Field("img", "uint8", (None, None, 3)), Field("t", "uint8", (None,), "text"))
)


def read(source: StoreSource) -> list[Block]:
    found = [item for span in source.plan() for item in source.read(span)]
    assert all(isinstance(item, Block) for item in found)
    return found


@pytest.mark.parametrize("span", [1, 300, 8 << 20])
def test_several_formats_as_one(make_store, monkeypatch: pytest.MonkeyPatch, span: int) -> None:
    """An empty store in the middle changes nothing; spans run across the borders."""
    monkeypatch.setattr(module, "SPAN_BYTES", span)
    block = cases.block(SCHEMA, 20)
    cuts = [(0, 7, ".h5"), (7, 7, ".mmap"), (7, 8, ".zarr"), (8, 20, ".lmdb")]
    paths = [make_store(block.slice(a, b), suffix, f"part{i}") for i, (a, b, suffix) in enumerate(cuts)]
    source = StoreSource.find(paths)
    assert source.schema == SCHEMA
    assert source.inputs == 20
    assert [s.start for s in source.plan()] == [0, *[s.stop for s in source.plan()]][:-1]
    blocks = read(source)
    whole = Block.concat(blocks)
    assert cases.same_block(whole, block)
    expected = [[i, row] for i, (a, b, _) in enumerate(cuts) for row in range(b - a)]
    assert whole.origin.tolist() == expected
    assert [source.files.name(i) for i in range(4)] == ["part0.h5", "part1.mmap", "part2.zarr", "part3.lmdb"]


def test_order_is_that_of_the_command_line(make_store) -> None:
    block = cases.block(SCHEMA, 6)
    paths = [make_store(block.slice(0, 3), ".h5", "a"), make_store(block.slice(3, 6), ".h5", "b")]
    whole = Block.concat(read(StoreSource.find(paths[::-1])))
    assert cases.same_block(whole, block.take(np.array([3, 4, 5, 0, 1, 2])))
    twice = Block.concat(read(StoreSource.find([paths[0], paths[0]])))
    assert cases.same_block(twice, block.take(np.array([0, 1, 2, 0, 1, 2])))


def test_description_proves_what_was_read(make_store) -> None:
    block = cases.block(SCHEMA, 6)
    source = StoreSource.find([make_store(block, ".zarr", "a"), make_store(block, ".lmdb", "b")])
    told = source.describe()
    assert [s["path"] for s in told["stores"]] == ["a.zarr", "b.lmdb"]
    assert [s["rows"] for s in told["stores"]] == [6, 6]
    assert told["stores"][0]["content_digest"] == told["stores"][1]["content_digest"]


def test_a_name_that_is_no_text(make_store, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mmap")
    make_store(cases.block(SCHEMA, 2), ".mmap").rename(path)
    assert StoreSource.find([path]).describe()["stores"][0]["path"] == "caf\\xe9.mmap"


def test_stores_that_do_not_go_together(make_store) -> None:
    a = make_store(cases.block(SCHEMA, 2), ".h5", "a")
    others = {
        "nothing instead of ": Schema(SCHEMA.fields[:2]),
        "the same in another order instead of the same": Schema(SCHEMA.fields[::-1]),
        "x float64 3 array instead of x float32 3 array": SCHEMA.replace(Field("x", "float64", (3,))),
        "x float32 4 array instead of x float32 3 array": SCHEMA.replace(Field("x", "float32", (4,))),
    }
    for i, (told, schema) in enumerate(others.items()):
        b = make_store(cases.block(schema, 2), ".mmap", f"b{i}")
        with pytest.raises(SchemaError, match=f"b{i}.mmap has other fields than .*a.h5:\n{told}"):
            StoreSource.find([a, b])


def test_no_stores(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        StoreSource.find([])
    with pytest.raises(NotAStore, match="missing"):
        StoreSource.find([tmp_path / "missing"])


def test_an_empty_store(make_store) -> None:
    source = StoreSource.find([make_store(cases.block(SCHEMA, 0), ".h5")])
    assert source.inputs == 0
    assert list(source.plan()) == []
