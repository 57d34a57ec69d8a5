"""Differences, held against what was changed on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigconv.block import Block, Column, Ragged
from bigconv.inspection.diff import Diff, diff
from bigconv.inspection.subject import subject
from bigconv.schema import Field, Schema

Make = Callable[..., Path]
X, T = Field("x", "float32", (2, 3)), Field("t", "uint8", (None,), "text")
SCHEMA = Schema((X, T, Field("y", "int64")))


def rows(n: int = 2500) -> Block:
    """Three canonical blocks, as a field is ragged."""
    texts = [np.frombuffer(b"row %d" % i, np.uint8) for i in range(n)]
    x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return Block(SCHEMA, {"x": x, "t": Ragged.of(texts, T), "y": np.arange(n)})


def changed(block: Block, **columns: Column) -> Block:
    return Block(block.schema, {**block.columns, **columns})


def compared(a: Path, b: Path) -> Diff:
    return diff(subject([a]).side(), subject([b]).side())


def test_same_rows_in_another_store(make_store: Make, suffix: str) -> None:
    found = compared(make_store(rows(), ".mmap"), make_store(rows(), suffix, "other"))
    assert found.same
    assert found.fields == ()
    assert len(set(found.digests)) == 1
    assert any(line.startswith("store: memmap") for line in found.about) is (suffix != ".mmap")


def test_values_that_differ(make_store: Make, suffix: str) -> None:
    block = rows()
    x, y = np.array(block["x"]), np.array(block["y"])
    x[1500, 1, 2], x[2499, 0, 0], y[7] = -1, 5, 8
    texts = [b"row %d" % i for i in range(2500)]
    texts[2048] = b"row 2O48"
    t = Ragged.of([np.frombuffer(text, np.uint8) for text in texts], T)
    found = compared(make_store(block, suffix), make_store(changed(block, x=x, y=y, t=t), suffix, "other"))
    assert not found.same
    by_name = {one.field: one for one in found.fields}
    assert by_name["x"].ranges == ((1024, 2048), (2048, 2500))
    first = by_name["x"].first
    assert first is not None
    assert (first.row, first.index, first.ours, first.theirs) == (1500, (1, 2), "9005.0", "-1.0")
    assert by_name["y"].ranges == ((0, 1024),)
    first = by_name["t"].first
    assert first is not None
    assert (first.row, first.ours, first.theirs) == (2048, "'row 2048'", "'row 2O48'")


def test_bytes_decide(make_store: Make) -> None:
    x = np.zeros((4, 2, 3), np.float32)
    x[1, 0, 0] = np.nan
    block = changed(rows(4), x=x)
    assert compared(make_store(block, ".h5"), make_store(block, ".mmap", "other")).same
    negative = x.copy()
    negative[3, 1, 1] = -0.0
    (found,) = compared(make_store(block, ".zarr"), make_store(changed(block, x=negative), ".lmdb", "other")).fields
    assert found.first is not None
    assert (found.first.row, found.first.ours, found.first.theirs) == (3, "0.0", "-0.0")


@pytest.mark.parametrize("n", [2000, 2048, 1])
def test_fewer_rows(make_store: Make, n: int) -> None:
    """Those that both have are compared too."""
    found = compared(make_store(rows(), ".h5"), make_store(rows(n), ".h5", "other"))
    assert not found.same
    assert (found.rows, found.fields) == ((2500, n), ())
    y = np.arange(n)
    y[n - 1] = -5
    found = compared(make_store(rows(), ".mmap"), make_store(changed(rows(n), y=y), ".mmap", "another"))
    (one,) = found.fields
    assert one.first is not None
    assert (one.field, one.first.row, one.first.theirs) == ("y", n - 1, "-5")


def test_other_fields(make_store: Make) -> None:
    """What both have is compared, though blocks are cut elsewhere."""
    block, classes = rows(300), Field("y", "int64", (), "label", classes=("a",))
    y = np.arange(300)
    y[299] = 0
    schema = Schema((X, classes, Field("z", "bool")))
    other = Block(schema, {"x": block["x"], "y": y, "z": np.zeros(300, bool)})
    found = compared(make_store(block, ".h5"), make_store(other, ".h5", "other"))
    assert "t: only on the left" in found.schema
    assert "z: only on the right" in found.schema
    assert 'y: classes none → ["a"]' in found.schema
    assert [(one.field, one.first and one.first.row) for one in found.fields] == [("y", 299)]


def test_against_raw_input(make_store: Make, tmp_path: Path) -> None:
    import bigconv

    x = np.arange(600).reshape(100, 6)
    np.save(tmp_path / "x.npy", x)
    bigconv.convert(tmp_path / "x.npy", tmp_path / "out.h5", workers=0)
    assert compared(tmp_path / "out.h5", tmp_path / "x.npy").same
    x[42, 3] = -1
    np.save(tmp_path / "x.npy", x)
    for a, b in (("out.h5", "x.npy"), ("x.npy", "out.h5")):
        (one,) = compared(tmp_path / a, tmp_path / b).fields
        assert one.first is not None
        assert (one.first.row, one.first.index) == (42, (3,))
