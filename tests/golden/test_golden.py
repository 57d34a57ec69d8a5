"""Stores that earlier versions wrote are read for ever, and held against values written down here, not computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigconv
from bigconv.errors import StoreError
from bigconv.sources.store import StoreSource
from bigconv.view.opening import open_store
from bigconv.view.report import verify, whence

HERE = Path(__file__).parent
GOLDEN = sorted(HERE.glob("v*/mixed.*"))
DIGEST = "cfb1516dd9f3bbb321fe39f6d5e25dc132941168aa02a741bb1451eacc34fc0d"
ROWS: list[dict[str, Any]] = [
    {
        "flag": True,
        "grid": [[76, 58, 194], [189, 200, 67]],
        "half": [-0.88720703125, -0.269287109375],
        "picture": [[37, 246]],
        "text": "",
        "tokens": [],
        "wave": [0.0014198608696460724 + 1.5213764905929565j, 0.13135546445846558 - 2.5936977863311768j],
    },
    {
        "flag": True,
        "grid": [[149, 98, 219], [40, 194, 78]],
        "half": [-0.2310791015625, -1.267578125],
        "picture": [[236, 174, 234], [11, 48, 233]],
        "text": "plain",
        "tokens": [3468],
        "wave": [0.5673215985298157 - 0.6853780150413513j, -1.0885498523712158 + 0.07761047780513763j],
    },
    {
        "flag": False,
        "grid": [[20, 37, 191], [17, 193, 231]],
        "half": [-1.4130859375, 0.5546875],
        "picture": [[111, 24, 63, 221]],
        "text": "naïve ☃",
        "tokens": [12889, 45950],
        "wave": [2.167769432067871 + 0.511040985584259j, -1.819226861000061 + 1.1612813472747803j],
    },
    {
        "flag": False,
        "grid": [[19, 77, 157], [165, 80, 203]],
        "half": [-0.07666015625, 0.049407958984375],
        "picture": [[86, 12], [124, 244]],
        "text": "two\nlines",
        "tokens": [13405, 17758, 33009],
        "wave": [0.13742601871490479 - 0.6433790922164917j, 0.2085743248462677 + 0.012221354991197586j],
    },
    {
        "flag": True,
        "grid": [[53, 187, 122], [66, 199, 55]],
        "half": [-0.375244140625, -0.420166015625],
        "picture": [[0, 32, 198]],
        "text": "x" * 40,
        "tokens": [2929, 15354, 30541, 26801],
        "wave": [0.3549697995185852 - 0.6234170198440552j, 2.288459300994873 + 0.3890979588031769j],
    },
]
DTYPES = {
    "flag": "bool",
    "grid": "uint8",
    "half": "float16",
    "picture": "uint8",
    "text": "uint8",
    "tokens": "uint16",
    "wave": "complex64",
}


def test_all_four_are_here() -> None:
    assert [path.name for path in GOLDEN if path.parent.name == "v1"] == [
        "mixed.h5",
        "mixed.lmdb",
        "mixed.mmap",
        "mixed.zarr",
    ]


def wrong_rows(rows: Any) -> list[tuple[int, str]]:
    """Row and field of every value that is not as it is written down above."""
    wrong = []
    for i, (row, expected) in enumerate(zip(rows, ROWS, strict=True)):
        assert list(row) == list(expected)
        for name, value in expected.items():
            array = np.asarray(row[name])
            fits = row[name] == value if isinstance(value, str) else array.tolist() == value
            if not fits or (not isinstance(value, str) and array.dtype != DTYPES[name]):
                wrong.append((i, name))
    return wrong


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: f"{p.parent.name}{p.suffix}")
def test_golden(path: Path) -> None:
    """Whole, with the values and the digest it had, by the view and by the store's own library."""
    opened = open_store(path)
    assert verify(opened) == []
    assert opened.manifest.content_digest == DIGEST
    assert {f.name: f.dtype for f in opened.manifest.schema} == DTYPES
    view = bigconv.open(path)
    assert wrong_rows(view[i] for i in range(5)) == []
    assert wrong_rows(reversed(list(view.take([4, 3, 2, 1, 0])))) == []
    assert wrong_rows(view) == []
    reader = opened.store.open(path, opened.manifest.schema, 5)
    assert wrong_rows(reader.take(np.arange(5), opened.manifest.schema.names)) == []
    reader.close()
    assert whence(opened, 3) == {"file": "3.npz", "row": 0, "bytes": 1785, "mtime_ns": 10**18}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: f"{p.parent.name}{p.suffix}")
def test_golden_as_a_source(path: Path, tmp_path: Path) -> None:
    """Rows of an old store make a new one with the same digest."""
    assert StoreSource.find([path]).inputs == 5
    assert bigconv.convert(path, tmp_path / "new.mmap", workers=0).content_digest == DIGEST


def test_values_are_looked_at(tmp_path: Path) -> None:
    """The test above can fail: one changed byte of the golden memmap is seen, and refused by `verify`."""
    path = tmp_path / "mixed.mmap"
    shutil.copytree(HERE / "v1" / "mixed.mmap", path)
    file = path / "tokens.values.npy"
    changed = bytearray(file.read_bytes())
    changed[4096 + 2] ^= 1
    file.write_bytes(changed)
    assert [f.field for f in verify(open_store(path))] == ["tokens"]
    assert wrong_rows(bigconv.open(path)) == [(2, "tokens")]
    file.write_bytes(changed[:-1])
    with pytest.raises(StoreError):
        open_store(path)
