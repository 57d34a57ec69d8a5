"""Everyday formats through every store and back: what their own libraries wrote, value by value."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
import soundfile
from PIL import Image
from pyarrow import csv as pa_csv
from pyarrow import feather, parquet
from sklearn.datasets import dump_svmlight_file

import bigconv
from bigconv.view.opening import open_store
from bigconv.view.report import verify

STORES = (".mmap", ".h5", ".lmdb", ".zarr")
TEXTS = ["plain", 'a "quote", a comma', "two\nlines", "naïve 数据", ""]
Made = tuple[list[Path], str, dict[str, Any], list[dict[str, Any]]]  # sources, kind, options, rows


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def columns() -> tuple[pa.Table, list[dict[str, Any]]]:
    x, n = random().normal(size=5), random().integers(-9, 9, 5)
    rows = [{"x": x[i], "n": n[i], "t": TEXTS[i]} for i in range(5)]
    return pa.table({"x": x, "n": n, "t": TEXTS}), rows


def csv(folder: Path) -> Made:
    table, rows = columns()
    pa_csv.write_csv(table, folder / "t.csv")
    return [folder / "t.csv"], "csv", {}, rows


def parquet_(folder: Path) -> Made:
    table, rows = columns()
    parquet.write_table(table, folder / "t.parquet", row_group_size=2)
    return [folder / "t.parquet"], "parquet", {}, rows


def arrow(folder: Path) -> Made:
    table, rows = columns()
    feather.write_feather(table, folder / "t.arrow", compression="zstd", chunksize=2)
    return [folder / "t.arrow"], "arrow", {}, rows


def jsonl(folder: Path) -> Made:
    _, rows = columns()
    plain = [{"x": float(row["x"]), "n": int(row["n"]), "t": row["t"]} for row in rows]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain), encoding="utf-8")
    return [folder / "t.jsonl"], "jsonl", {}, rows


def images(folder: Path) -> Made:
    rows = []
    for i, label in enumerate(("cats", "dogs", "dogs")):
        (folder / label).mkdir(exist_ok=True)
        pixels = random(i).integers(0, 256, (7 + i, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / label / f"{i}.png")
        rows.append({"image": pixels.transpose(2, 0, 1), "label": np.int64(label == "dogs")})
    return [folder], "images", {}, rows


def arrays(folder: Path) -> Made:
    x, y = random().normal(size=(6, 2, 3)).astype("f2"), random().integers(0, 9, 6)
    np.savez_compressed(folder / "both.npz", x=x, y=y)
    return [folder / "both.npz"], "arrays", {}, [{"x": x[i], "y": y[i]} for i in range(6)]


def array_folder(folder: Path) -> Made:
    rows = [{"array": random(i).normal(size=(2 + i, 4))} for i in range(4)]
    for i, row in enumerate(rows):
        np.save(folder / f"{i}.npy", row["array"])
    return [folder], "array-folder", {}, rows


def text(folder: Path) -> Made:
    for i, told in enumerate(TEXTS):
        (folder / f"{i}.txt").write_bytes(told.encode())
    return [folder], "text", {}, [{"text": told} for told in TEXTS]


def audio(folder: Path) -> Made:
    rows = []
    for i in range(3):
        waves = random(i).integers(-(2**15), 2**15, (400 + 30 * i, 2)).astype(np.int16)
        soundfile.write(folder / f"{i}.flac", waves, 8000, subtype="PCM_16")
        rows.append({"audio": (waves.T / 2**15).astype(np.float32), "sample_rate": np.int64(8000)})
    return [folder], "audio", {}, rows


def webdataset(folder: Path) -> Made:
    rows = []
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i in range(4):
            pixels, data = random(i).integers(0, 256, (8, 6, 3), np.uint8), io.BytesIO()
            Image.fromarray(pixels).save(data, "PNG")
            for name, content in (("png", data.getvalue()), ("cls", str(i).encode()), ("txt", TEXTS[i].encode())):
                info = tarfile.TarInfo(f"{i:03}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            rows.append({"image": pixels.transpose(2, 0, 1), "label": np.int64(i), "text": TEXTS[i]})
    return [folder / "a.tar"], "webdataset", {}, rows


def sparse(folder: Path) -> Made:
    matrix = scipy.sparse.random(6, 40, 0.2, "csr", np.float32, random_state=0)
    scipy.sparse.save_npz(folder / "m.npz", matrix)
    rows = [{"indices": matrix[i].indices.astype(np.int64), "values": matrix[i].data} for i in range(6)]
    return [folder / "m.npz"], "sparse", {"from_": "sparse"}, rows


def libsvm(folder: Path) -> Made:
    matrix = scipy.sparse.random(6, 40, 0.2, "csr", np.float64, random_state=1)
    matrix.data = np.ceil(matrix.data * 64) / 64  # exact in the 16 digits that scikit-learn writes
    labels = random().integers(0, 3, 6)
    dump_svmlight_file(matrix, labels, str(folder / "m.svm"), zero_based=False)
    rows = [{"indices": matrix[i].indices, "values": matrix[i].data, "label": labels[i]} for i in range(6)]
    return [folder / "m.svm"], "libsvm", {}, rows


FORMATS = [csv, parquet_, arrow, jsonl, images, arrays, array_folder, text, audio, webdataset, sparse, libsvm]


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__.rstrip("_"))
def test_round_trip(tmp_path: Path, make: Callable[[Path], Made]) -> None:
    """The same in every store, and proven by its digests."""
    folder = tmp_path / "raw"
    folder.mkdir()
    sources, kind, options, expected = make(folder)
    digests = set()
    for suffix in STORES:
        path = tmp_path / f"out{suffix}"
        manifest = bigconv.convert(sources, path, workers=0, progress=False, **options)
        assert (manifest.source["kind"], manifest.rows) == (kind, len(expected))
        digests.add(manifest.content_digest)
        for row, wanted in zip(bigconv.open(path), expected, strict=True):
            assert set(row) == set(wanted)
            for name, value in wanted.items():
                if isinstance(value, str):
                    assert row[name] == value
                    continue
                assert row[name].shape == np.shape(value), name
                np.testing.assert_array_equal(row[name].astype(np.asarray(value).dtype), value, err_msg=name)
        assert verify(open_store(path)) == []
    assert len(digests) == 1
