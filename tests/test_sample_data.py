"""The sample data is what its script makes, and its broken files are broken."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SAMPLES = Path(__file__).resolve().parent.parent / "sample_data"
CLASSES = ["blobs", "checks", "rings", "stripes"]
ORIENTATION = 0x0112  # the EXIF tag


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(folder / "make.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(SAMPLES, tmp_path / "samples", ignore=shutil.ignore_patterns("__pycache__"))


def test_script_makes_what_is_there() -> None:
    result = check(SAMPLES)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


def test_check_names_every_difference(copy: Path) -> None:
    (copy / "arrays/y.npy").write_bytes((copy / "arrays/y.npy").read_bytes()[:-1] + b"\x01")
    (copy / "images/rings/000.jpg").unlink()
    (copy / "images/rings/extra.jpg").write_bytes(b"x")
    picture = Image.open(copy / "images/blobs/000.jpg").rotate(180)
    picture.save(copy / "images/blobs/000.jpg")
    shutil.copy(copy / "broken/good.jpg", copy / "broken/truncated.jpg")
    result = check(copy)
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "arrays/y.npy: differs",
        "broken/truncated.jpg: differs",
        "images/blobs/000.jpg: differs",
        "images/rings/000.jpg: missing",
        "images/rings/extra.jpg: not ours",
    ]


def test_check_bears_another_codec(copy: Path) -> None:
    for name in ("images/blobs/000.jpg", "images/rings/003.png"):
        with Image.open(copy / name) as picture:
            picture.load()
            picture.save(copy / name, quality=95, compress_level=1)
        assert (copy / name).read_bytes() != (SAMPLES / name).read_bytes()
    cut = (copy / "broken/truncated.jpg").read_bytes()
    (copy / "broken/truncated.jpg").write_bytes(cut[:-10])
    result = check(copy)
    assert result.returncode == 0, result.stdout


def test_script_runs_anew(copy: Path) -> None:
    (copy / "images/rings/extra.jpg").write_bytes(b"x")
    subprocess.run([sys.executable, "-B", str(copy / "make.py")], check=True, capture_output=True, timeout=120)
    assert not (copy / "images/rings/extra.jpg").exists()
    assert check(copy).returncode == 0


def test_images_have_four_classes_and_the_odd_ones() -> None:
    root = SAMPLES / "images"
    assert sorted(p.name for p in root.iterdir()) == CLASSES
    forms: set[tuple[str | None, str]] = set()
    sizes: set[tuple[int, int]] = set()
    for name in CLASSES:
        files = sorted((root / name).iterdir())
        assert [p.stem for p in files] == [f"{n:03d}" for n in range(10)]
        for path in files:
            with Image.open(path) as picture:
                picture.load()
                forms.add((picture.format, picture.mode))
                sizes.add(picture.size)
    assert forms == {("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "L")}
    assert len(sizes) > 4
    with Image.open(root / "checks/007.jpg") as turned:
        assert turned.getexif()[ORIENTATION] == 6
        assert turned.width > turned.height  # upright it is a tall one


def test_broken_files_are_broken() -> None:
    broken = SAMPLES / "broken"
    assert sorted(p.name for p in broken.iterdir()) == ["good.jpg", "text.jpg", "truncated.jpg"]
    with Image.open(broken / "good.jpg") as good:
        good.load()
    with Image.open(broken / "truncated.jpg") as cut, pytest.raises(OSError, match="truncated"):
        cut.load()
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(broken / "text.jpg")


def test_arrays() -> None:
    x, y = np.load(SAMPLES / "arrays/x.npy"), np.load(SAMPLES / "arrays/y.npy")
    assert (x.dtype, x.shape) == (np.float32, (64, 3, 8))
    assert (y.dtype, y.shape) == (np.int64, (64,))
    assert set(y.tolist()) == {0, 1, 2, 3}
    with np.load(SAMPLES / "arrays/pair.npz") as pair:
        assert sorted(pair.files) == ["x", "y"]
        np.testing.assert_array_equal(pair["x"], x)
        np.testing.assert_array_equal(pair["y"], y)
    series = [np.load(p) for p in sorted((SAMPLES / "series").iterdir())]
    assert [(a.dtype, a.shape) for a in series] == [(np.dtype(np.int16), (4, 32))] * 8


def test_tables_and_texts() -> None:
    with open(SAMPLES / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    assert [row["id"] for row in rows[:3]] == ["00000", "00007", "00014"]
    assert all(float(row[name]) >= 0 for row in rows for name in ("height", "width", "weight"))
    assert {row["label"] for row in rows} == set(CLASSES)
    assert {c for row in rows for c in row["remark"]} >= {",", '"', "\n", "\t", "é"}
    notes = [json.loads(line) for line in (SAMPLES / "notes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [note["id"] for note in notes] == list(range(30))
    lines = (SAMPLES / "sparse.svm").read_text().splitlines()
    assert len(lines) == 40
    for line in lines:
        indices = [int(pair.partition(":")[0]) for pair in line.split()[1:]]
        assert indices == sorted(set(indices))
        assert all(1 <= index <= 50 for index in indices)


def test_tone() -> None:
    with wave.open(str(SAMPLES / "tone.wav")) as tone:
        assert tone.getparams()[:4] == (2, 2, 8000, 8000)
        samples = np.frombuffer(tone.readframes(8000), "<i2").reshape(-1, 2)
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64), axis=0))
    assert spectrum.argmax(axis=0).tolist() == [440, 660]


def test_everything_is_small() -> None:
    sizes = [p.stat().st_size for p in SAMPLES.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(sizes) < 500_000
    assert max(sizes) < 40_000
