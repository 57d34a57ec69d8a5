"""Every registered source passes the shipped suite."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from bigconv import registry
from bigconv.block import Block, Ragged
from bigconv.schema import Field, Schema
from bigconv.testing.source_suite import Made, SourceSuite
from bigconv.testing.store_suite import write


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """PNG files, which keep every bit, in two classes, in the order of their names."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    for i, image in enumerate(images):
        path = folder / ("cat" if i < len(images) // 2 else "dog") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return images


class Images(SourceSuite):
    source = "images"
    limits: ClassVar = {"bigconv.sources.images.SPAN_FILES": 2}


class TestImagesOfOneSize(Images):
    def make(self, folder: Path) -> Made:
        images = pictures(folder, [(8, 9)] * 5)
        return [folder], {}, [{"image": x, "label": np.int64(i >= 2)} for i, x in enumerate(images)]


class TestImagesOfAllSizes(Images):
    def make(self, folder: Path) -> Made:
        images = pictures(folder, [(8, 9), (3, 4), (1, 1), (9, 8), (20, 2)])
        return [folder], {"label_from": "none"}, [{"image": x} for x in images]


class TestImagesAsTheyAre(Images):
    damages = ("junk", "empty")

    def make(self, folder: Path) -> Made:
        pictures(folder, [(8, 9), (3, 4), (1, 1)])
        files = sorted(folder.rglob("*.png"))
        rows = [
            {"image": np.frombuffer(p.read_bytes(), np.uint8), "label": np.int64(p.parent.name == "dog")} for p in files
        ]
        return [folder], {"keep_encoded": True}, rows


class TestArrays(SourceSuite):
    """Every way an array can lie in a file, in one store."""

    source = "arrays"
    file_a_row = False
    limits: ClassVar = {"bigconv.sources.arrays.SPAN_BYTES": 256}

    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        x, y = rng.random((7, 3, 2)), rng.integers(0, 9, 7)
        words = ["", "é", "naïve ☃", "line\nbreak", "x" * 20, "a b", "c"]
        np.save(folder / "x.npy", np.asfortranarray(x))
        np.save(folder / "y.npy", y.astype(">i4"))
        np.save(folder / "t.npy", np.array(words))
        np.savez(folder / "plain.npz", b=x > 0.5, a=x.astype("f2"))
        np.savez_compressed(folder / "packed.npz", c=x * 1j, none=np.zeros((7, 0)))
        rows = [
            {
                "x": x[i],
                "y": y[i].astype("i4"),
                "t": words[i],
                "a": x[i].astype("f2"),
                "b": x[i] > 0.5,
                "c": x[i] * 1j,
                "none": np.zeros(0),
            }
            for i in range(7)
        ]
        return [folder / name for name in ("x.npy", "y.npy", "plain.npz", "packed.npz", "t.npy")], {}, _ordered(rows)


def _ordered(rows: list[dict]) -> list[dict]:
    """Fields come in the order of the paths, members of an archive in that of their names."""
    return [{name: row[name] for name in ("x", "y", "a", "b", "c", "none", "t")} for row in rows]


class TestArraysAlongAnotherAxis(SourceSuite):
    source = "arrays"
    file_a_row = False
    limits: ClassVar = {"bigconv.sources.arrays.SPAN_BYTES": 64}

    def make(self, folder: Path) -> Made:
        x, y = np.arange(24.0).reshape(3, 8), np.arange(40, dtype=np.uint8).reshape(5, 8)
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
        rows = [{"x": x[:, i], "y": y[:, i]} for i in range(8)]
        return [folder / "x.npy", folder / "y.npy"], {"axis": -1}, rows


class TestArrayFolder(SourceSuite):
    source = "array-folder"
    limits: ClassVar = {"bigconv.sources.array_folder.SPAN_FILES": 2}

    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        rows = [rng.random((n, 3)).astype(np.float32) for n in (2, 0, 5, 1, 1)]
        for i, row in enumerate(rows):
            path = folder / f"{'ba'[i < 2]}" / f"{i}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.asfortranarray(row.astype(">f4")))
        return [folder], {}, [{"array": row} for row in rows]


class TestArrayFolderOfArchives(SourceSuite):
    """Plain and compressed archives, scalars and text among their members."""

    source = "array-folder"
    limits: ClassVar = {"bigconv.sources.array_folder.SPAN_FILES": 2}

    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        rows = []
        for i in range(5):
            x, text = rng.integers(0, 99, (2, 3), np.int16), f"text ☃ {i}"
            save = np.savez_compressed if i % 2 else np.savez
            save(folder / f"{i}.npz", x=x, label=np.int64(i), text=np.array(text), raw=np.bytes_(b"bytes"))
            rows.append({"label": np.int64(i), "raw": "bytes", "text": text, "x": x})
        return [folder], {}, rows


class TestStores(SourceSuite):
    """Two stores of different formats as one."""

    source = "store"
    file_a_row = False
    limits: ClassVar = {"bigconv.sources.store.SPAN_BYTES": 4096}

    def make(self, folder: Path) -> Made:
        schema = Schema((Field("x", "float32", (300,)), Field("t", "uint8", (None,), "text")))
        x, words = np.random.default_rng(0).random((9, 300)).astype(np.float32), [f"é{i}" * i for i in range(9)]
        text = Ragged.of([np.frombuffer(w.encode(), np.uint8) for w in words], schema["t"])
        block = Block(schema, {"x": x, "t": text})
        paths = []
        for name, start, stop in (("a.zarr", 0, 5), ("b.mmap", 5, 9)):
            path = folder / name
            write(path, registry.load("store", registry.store_for(path))(), block.slice(start, stop), 16)
            paths.append(path)
        return paths, {}, [{"x": x[i], "t": words[i]} for i in range(9)]


def test_every_registered_source_has_a_suite() -> None:
    arrays = ("test_dicom", "test_geotiff", "test_nifti", "test_sparse", "test_tiff")
    others = ("test_audio", "test_csv", "test_jsonl", "test_parquet", "test_tar", "test_text", "test_video")
    stores = ("test_foreign", "test_foreign_lmdb", "test_joined")
    for module in arrays + others + stores:
        importlib.import_module(module)  # theirs stand beside their other tests
    suites = {cls.source for cls in SourceSuite.__subclasses__()}
    assert suites == set(registry.SOURCES)
