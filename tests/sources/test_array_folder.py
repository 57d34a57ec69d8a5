"""A folder of arrays: one file a row, and files that don't fit."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigconv.block import Block, Ragged
from bigconv.errors import InputError
from bigconv.sources import array_folder
from bigconv.sources.array_folder import ArrayFolder
from bigconv.sources.base import SPAN_BYTES, Reject


def fill(folder: Path, arrays: dict[str, object]) -> Path:
    for name, array in arrays.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **array) if isinstance(array, dict) else np.save(path, array)
    return folder


def read(source: ArrayFolder) -> tuple[list[Block], list[Reject]]:
    items = [item for span in source.plan() for item in source.read(span)]
    blocks = [item for item in items if isinstance(item, Block)]
    for block in blocks:
        block.validate()
    return blocks, [item for item in items if isinstance(item, Reject)]


def rows(source: ArrayFolder) -> list[dict]:
    return [row for block in read(source)[0] for row in block]


@pytest.mark.parametrize(
    ("shapes", "shape"),
    [
        ([(), (), ()], ()),
        ([(3, 4), (3, 4)], (3, 4)),
        ([(3, 4), (2, 4)], (None, 4)),
        ([(3, 4), (3, 5)], (3, None)),
        ([(3, 4), (2, 5), (0, 0)], (None, None)),
        ([(1, 0), (1, 0)], (1, 0)),
        ([(0,), (5,), (0,)], (None,)),
    ],
    ids=str,
)
def test_shapes_that_vary(tmp_path: Path, shapes: list[tuple[int, ...]], shape: tuple) -> None:
    arrays = [np.random.default_rng(i).random(s) for i, s in enumerate(shapes)]
    source = ArrayFolder.find([fill(tmp_path, {f"{i}.npy": a for i, a in enumerate(arrays)})])
    (field,) = source.schema
    assert (field.name, field.shape, field.dtype) == ("array", shape, "float64")
    blocks, rejects = read(source)
    assert not rejects
    assert isinstance(blocks[0]["array"], Ragged) == field.ragged
    for row, array in zip(rows(source), arrays, strict=True):
        np.testing.assert_array_equal(row["array"], array)
        assert row["array"].shape == array.shape


def test_bytewise_order_through_subfolders(tmp_path: Path) -> None:
    names = ["a-b/0.npy", "a/9.npy", "a/é.npy", "a.npy", "B.NPY", "10.npy", "9.npy"]
    fill(tmp_path, {name.removesuffix(".NPY"): np.int16(i) for i, name in enumerate(names) if name != "B.NPY"})
    with open(tmp_path / "B.NPY", "wb") as file:
        np.save(file, np.int16(4))
    (tmp_path / "notes.txt").write_text("passed over")
    (tmp_path / ".hidden.npy").write_text("passed over")
    source = ArrayFolder.find([tmp_path])
    assert [source.files.name(i) for i in range(len(source.files))] == sorted(names, key=str.encode)
    assert [row["array"].item() for row in rows(source)] == [names.index(n) for n in sorted(names, key=str.encode)]


def test_both_byte_orders_are_one_dtype(tmp_path: Path) -> None:
    fill(tmp_path, {"0.npy": np.arange(3, dtype=">i4"), "1.npy": np.arange(3, dtype="<i4")})
    blocks, _ = read(ArrayFolder.find([tmp_path]))
    assert blocks[0]["array"].dtype == np.dtype("<i4")
    assert np.asarray(blocks[0]["array"]).tolist() == [[0, 1, 2], [0, 1, 2]]


def test_text(tmp_path: Path) -> None:
    """Strings of different lengths are one field; bytes are taken as they are, not as Python shows them."""
    fill(tmp_path, {"0.npy": np.array("naïve ☃"), "1.npy": np.array(b"bytes"), "2.npy": np.array("")})
    assert [row["array"] for row in rows(ArrayFolder.find([tmp_path]))] == ["naïve ☃", "bytes", ""]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (np.zeros(3, np.float64), r"mixed dtypes: .*b\.npy is float64, .*a\.npy is float32"),
        (np.zeros((3, 1), np.float32), r"mixed dimensions: .*b\.npy has shape \(3, 1\), .*a\.npy has \(3,\)"),
        (np.array("text"), "mixed dtypes"),
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, odd: np.ndarray, words: str) -> None:
    fill(tmp_path, {"a.npy": np.zeros(3, np.float32), "b.npy": odd})
    with pytest.raises(InputError, match=words):
        ArrayFolder.find([tmp_path])


def test_archives_with_other_members(tmp_path: Path) -> None:
    fill(tmp_path, {"a.npz": {"x": np.zeros(3), "y": np.zeros(3)}, "b.npz": {"x": np.zeros(3)}})
    with pytest.raises(InputError, match=r"b\.npz has the arrays x, but .*a\.npz has x, y"):
        ArrayFolder.find([tmp_path])


def test_changed_after_they_were_found(tmp_path: Path) -> None:
    """Each file that no longer fits is a reject by its relative name, wherever it lies in the span."""
    fill(tmp_path, {f"deep/{i}.npy": np.full(3, i, np.int32) for i in range(7)})
    source = ArrayFolder.find([tmp_path])
    np.save(tmp_path / "deep/0.npy", np.zeros(3, np.int64))
    np.save(tmp_path / "deep/3.npy", np.zeros(4, np.int32))
    np.save(tmp_path / "deep/4.npy", np.array("text"))
    (tmp_path / "deep/6.npy").unlink()
    blocks, rejects = read(source)
    assert [(r.path, r.row, r.stage) for r in rejects] == [(f"deep/{i}.npy", 0, "read") for i in (0, 3, 4, 6)]
    assert [r.error for r in rejects] == [
        "dtype int64 instead of int32",
        "shape (4,) instead of (3,)",
        f"dtype {np.array('text').dtype} instead of int32",
        "No such file or directory",
    ]
    assert [b.origin.tolist() for b in blocks] == [[[1, 0], [2, 0]], [[5, 0]]]
    assert [row["array"][0] for row in rows(source)] == [1, 2, 5]


def test_ragged_files_that_changed(tmp_path: Path) -> None:
    fill(tmp_path, {f"{i}.npz": {"t": np.array("x" * i), "v": np.zeros((i, 2))} for i in range(1, 5)})
    source = ArrayFolder.find([tmp_path])
    np.savez(tmp_path / "1.npz", t=np.array("x"), v=np.zeros((1, 3)))
    np.savez(tmp_path / "2.npz", t=np.array(7), v=np.zeros((1, 2)))
    np.savez(tmp_path / "3.npz", v=np.zeros((1, 2)))
    _, rejects = read(source)
    assert [r.path for r in rejects] == ["1.npz", "2.npz", "3.npz"]
    assert "expected shape (*, 2), got (1, 3)" in rejects[0].error
    assert rejects[1].error == "dtype int64 instead of text"
    assert rejects[2].error == "has the arrays v instead of t, v"


def test_the_first_files_may_be_the_broken_ones(tmp_path: Path) -> None:
    fill(tmp_path, {"b.npy": np.arange(3), "d.npy": np.arange(3)})
    for name in ("a", "c"):
        (tmp_path / f"{name}.npy").write_bytes(b"no array")
    source = ArrayFolder.find([tmp_path])
    _, rejects = read(source)
    assert [(r.path, r.error) for r in rejects] == [("a.npy", "not a .npy array"), ("c.npy", "not a .npy array")]
    assert len(rows(source)) == 2


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"a\.npy: not a \.npy array"):
        ArrayFolder.find([tmp_path])
    (tmp_path / "a.npy").unlink()
    with pytest.raises(InputError, match=r"no \.npy or \.npz files"):
        ArrayFolder.find([tmp_path])
    np.save(tmp_path / "x.npy", np.zeros(3))
    for paths in ([tmp_path / "x.npy"], [tmp_path, tmp_path], []):
        with pytest.raises(InputError, match="one folder"):
            ArrayFolder.find(paths)


def test_blocks_stay_small_whatever_the_files_pack(tmp_path: Path) -> None:
    """Forty files of a few KB that hold 2 MiB each: no block has all of them."""
    for i in range(12):
        np.savez_compressed(tmp_path / f"{i:02}.npz", x=np.full((2 << 20,), i, np.uint8))
    source = ArrayFolder.find([tmp_path])
    assert len(source.plan()) == 1
    blocks, _ = read(source)
    assert max(block.nbytes for block in blocks) <= SPAN_BYTES
    assert [int(x[0]) for block in blocks for x in np.asarray(block["x"])] == list(range(12))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts file descriptors by their limit")
def test_many_files_few_descriptors(tmp_path: Path) -> None:
    """A span of 256 files doesn't keep 256 of them open."""
    fill(tmp_path / "raw", {f"{i}.npz": {"a": np.arange(9), "b": np.arange(9)} for i in range(120)})
    program = (
        "import sys; from pathlib import Path; from bigconv.sources.array_folder import ArrayFolder\n"
        "source = ArrayFolder.find([Path(sys.argv[1])])\n"
        "print([len(item) for span in source.plan() for item in source.read(span)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "raw")],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert (result.stdout, result.stderr) == ("[120]\n", "")


def test_spans_by_files_and_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {f"{i:03}.npy": np.zeros(n, np.uint8) for i, n in enumerate([1000, 10, 10, 10, 10, 10])})
    source = ArrayFolder.find([tmp_path])
    monkeypatch.setattr(array_folder, "SPAN_FILES", 3)
    monkeypatch.setattr(array_folder, "SPAN_BYTES", 1000)
    assert [(s.start, s.stop) for s in source.plan()] == [(0, 1), (1, 4), (4, 6)]
