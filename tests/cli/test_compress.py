"""`bigconv convert --compress --chunk`: what is made of it, what is refused, and what inspect says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app, main


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.arange(512_000, dtype=np.int32).reshape(2000, 256) // 50)
    return tmp_path / "x.npy"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".lmdb"])
def test_compressed_described_and_verified(rows: Path, suffix: str) -> None:
    dest = rows.with_name(f"out{suffix}")
    assert run("convert", rows, dest, "--compress", "zstd:2", "--quiet").exit_code == 0
    plain = rows.with_name("plain.mmap")
    assert run("convert", rows, plain, "--quiet").exit_code == 0
    told = json.loads(run("inspect", dest, "--json", "--verify").stdout)
    assert told["verified"]
    assert told["bytes"] < 2_048_000 / (1.5 if suffix == ".lmdb" else 8)
    assert "zstd + shuffle" in told["fields"][0]["layout"]
    assert told["recipe"]["options"]["compress"] == "zstd:2"
    assert told["content_digest"] == bigconv.open(plain).stores[0].manifest.content_digest


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.mmap", ["--compress", "lz4"], ".npy files hold rows as they are"),
        ("out.mmap", ["--chunk", "4"], ".npy files hold rows as they are"),
        ("out.lmdb", ["--chunk", "4"], "a key of its own"),
        ("out.h5", ["--chunk", "4"], "or compress with --compress lz4"),
        ("out.zarr", ["--chunk", "0"], "expected 1 row or more"),
        ("out.zarr", ["--compress", "gzip"], "expected none, lz4, zstd, or zstd:LEVEL"),
    ],
)
def test_refused_before_anything_is_read(
    rows: Path,
    name: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["bigconv", "convert", str(rows), str(rows.with_name(name)), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 3
    assert sorted(p.name for p in rows.parent.iterdir()) == ["x.npy"]


def test_any_compressed_store_to_any_other(rows: Path) -> None:
    digests, source = set(), rows
    for number, suffix in enumerate((".h5", ".zarr", ".lmdb", ".mmap", ".h5")):
        dest = rows.with_name(f"{number}{suffix}")
        made = bigconv.convert(source, dest, compress="none" if suffix == ".mmap" else "lz4", workers=0)
        digests.add(made.content_digest)
        source = dest
    assert len(digests) == 1
