"""Rows of each class in the manifest: what reading the labels gives, whatever was done to the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigconv
from bigconv import class_counts, manifest
from bigconv.block import Block
from bigconv.class_counts import ClassCounts, named, summed
from bigconv.conversion.shard_fields import change_fields
from bigconv.schema import Field, Schema
from bigconv.view.opening import OpenedDataset, open_store

Make = Callable[..., Path]
LABEL = Field("label", "int64", (), "label", classes=("a", "b", "c"))
SCHEMA = Schema((Field("x", "float32", (3,)), LABEL, Field("sample_rate", "int64", (), "label")))
LABELS = np.repeat([0, 2, 1], [40, 5, 15])  # lies sorted by class, so that parts have other classes


def rows_of(labels: Any = LABELS) -> Block:
    values = np.arange(len(labels) * 3, dtype=np.float32).reshape(-1, 3)
    return Block(SCHEMA, {"x": values, "label": np.asarray(labels), "sample_rate": np.arange(len(labels))})


def images(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(folder / name / f"{i:03}.png")
    return folder


def counts_of(path: Path) -> dict[int, int]:
    """Of a store or dataset: those of the manifest, held against its labels, and so for every part."""
    opened = open_store(path)
    with bigconv.open(path) as view:
        values, found = np.unique(view[:]["label"], return_counts=True)
    pairs = tuple(zip(values.tolist(), found.tolist(), strict=True))
    assert opened.manifest.counts == {"label": pairs}
    if isinstance(opened, OpenedDataset):
        for number in range(len(opened.part_rows)):
            counts_of(opened.part_path(number))
    return dict(pairs)


def test_as_written(make_store: Make, suffix: str) -> None:
    path = make_store(rows_of(), suffix)
    assert counts_of(path) == {0: 40, 1: 15, 2: 5}  # and none of `sample_rate`, which names no class
    assert manifest.Manifest.from_bytes(open_store(path).manifest.to_bytes(), "").counts["label"] == (
        (0, 40),
        (1, 15),
        (2, 5),
    )


def test_labels_without_names_and_outside_of_them(make_store: Make) -> None:
    odd = rows_of([-1, 7, 7, 0])
    assert counts_of(make_store(odd, ".h5")) == {-1: 1, 0: 1, 7: 2}
    plain = Field("label", "uint8", (), "label")
    block = Block(Schema((plain,)), {"label": np.array([3, 3, 200], np.uint8)})
    assert counts_of(make_store(block, ".mmap")) == {3: 2, 200: 1}
    assert named(LABEL, ((-1, 1), (1, 4), (7, 2))) == [
        (-1, None, 1),
        (0, "a", 0),
        (1, "b", 4),
        (2, "c", 0),
        (7, None, 2),
    ]


def test_rejects_filters_and_new_files(tmp_path: Path) -> None:
    raw = images(tmp_path / "raw", {"cat": 5, "dog": 9})
    (raw / "dog" / "003.png").write_bytes(b"no picture")
    bigconv.convert(raw, tmp_path / "a.h5", workers=0, max_rejects=1)
    assert counts_of(tmp_path / "a.h5") == {0: 5, 1: 8}
    images(raw, {"ant": 2, "dog": 1}, first=100)  # a class that sorts before the others: their numbers stay
    (raw / "dog" / "003.png").unlink()
    bigconv.convert(raw, tmp_path / "a.h5", workers=0, max_rejects=1, append=True)
    assert counts_of(tmp_path / "a.h5") == {0: 5, 1: 9, 2: 2}
    keep = tmp_path / "keep.py"
    keep.write_text("def some(row): return row['image'][0, 0, 0] % 2 == 0\n")
    bigconv.convert(raw, tmp_path / "b.lmdb", workers=0, filter=f"{keep}:some")
    assert counts_of(tmp_path / "b.lmdb") == {0: 1, 1: 3, 2: 6}


def test_sharded(make_store: Make, tmp_path: Path) -> None:
    """Cut, merged, shuffled, split, made with parts from the start, added to and taken from."""
    store = make_store(rows_of(), ".mmap")
    whole = counts_of(store)
    bigconv.shard(store, tmp_path / "parts", rows=13, workers=0)
    assert counts_of(tmp_path / "parts") == whole
    bigconv.shard(tmp_path / "parts", tmp_path / "back.zarr", workers=0, shuffle=True)
    assert counts_of(tmp_path / "back.zarr") == whole
    bigconv.shard(store, tmp_path / "divided", split="train=0.8,val=0.2", stratify="label", workers=0)
    train, val = counts_of(tmp_path / "divided" / "train"), counts_of(tmp_path / "divided" / "val")
    assert {label: train[label] + val[label] for label in whole} == whole
    raw = images(tmp_path / "raw", {"cat": 3, "dog": 4})
    (raw / "dog" / "002.png").write_bytes(b"no picture")
    bigconv.convert(raw, tmp_path / "many", workers=0, shards=3, to="hdf5", max_rejects=1)
    assert counts_of(tmp_path / "many") == {0: 3, 1: 3}
    images(raw, {"ant": 2}, first=100)
    (raw / "dog" / "002.png").unlink()
    bigconv.convert(raw, tmp_path / "many", workers=0, to="hdf5", max_rejects=1, append=True)
    assert counts_of(tmp_path / "many") == {0: 3, 1: 3, 2: 2}
    bigconv.shard(tmp_path / "parts", drop=["1"])
    assert sum(counts_of(tmp_path / "parts").values()) == len(LABELS) - 13


@pytest.mark.parametrize("parts", [False, True])
def test_fields_that_come_and_go(make_store: Make, tmp_path: Path, parts: bool) -> None:
    path = make_store(rows_of(), ".mmap")
    if parts:
        bigconv.shard(path, tmp_path / "parts", rows=13, workers=0)
        path = tmp_path / "parts"
    change_fields(path, ["label"], [])
    assert open_store(path).manifest.counts == {}
    block = Block(Schema((LABEL,)), {"label": LABELS[::-1]})
    change_fields(path, ["x"], [make_store(block, ".mmap", "other")])
    assert counts_of(path) == {0: 40, 1: 15, 2: 5}


def test_a_store_without_counts_makes_a_dataset_without(make_store: Make, tmp_path: Path) -> None:
    """As an early version wrote them: nothing is made up of the rows that nobody counted."""
    bigconv.shard(make_store(rows_of(), ".mmap"), tmp_path / "parts", rows=13, workers=0)
    opened = open_store(tmp_path / "parts")
    old = opened.part_path(2) / "manifest.json"
    before = manifest.Manifest.from_bytes(old.read_bytes(), "")
    old.write_bytes(replace(before, counts={}).to_bytes())
    bigconv.shard(tmp_path / "parts", drop=["1"])
    assert open_store(tmp_path / "parts").manifest.counts == {}


def test_more_values_than_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number a row is no class: no counts; the same when only all parts together have too many."""
    monkeypatch.setattr(class_counts, "MOST_CLASSES", 50)
    monkeypatch.setattr(class_counts, "AT_ONCE", 7)

    def counted(labels: Any) -> class_counts.Counts:
        counts = ClassCounts(SCHEMA)
        for start in range(0, len(labels), 4):
            counts.update(rows_of(labels[start : start + 4]))
        return counts.finish()

    assert counted(np.arange(51)) == {}
    halves = [counted(np.arange(a, a + 26)) for a in (0, 25)]
    assert summed(halves) == {}
    assert len(summed([halves[0], halves[0]])["label"]) == 26
    assert summed([halves[0], {}]) == {}
    assert summed([]) == {}


@pytest.mark.parametrize(
    "counts",
    [
        {"label": [[0, 40], [1, 15], [2, 4]]},
        {"label": [[0, 40], [2, 5], [1, 15]]},
        {"label": [[0, 60], [1, 0]]},
        {"label": [[0, 60.0]]},
        {"label": [[0, True], [1, 59]]},
        {"label": [[0, 30, 1, 30]]},
        {"label": [60]},
        {"label": None},
        {"x": [[0, 60]]},
        {"nothing": [[0, 60]]},
        [],
        None,
    ],
    ids=str,
)
def test_what_can_be_no_counts_is_refused(counts: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        class_counts.from_json(json.loads(json.dumps(counts)), SCHEMA, 60)
