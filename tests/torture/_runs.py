"""Conversions that torture shares: small ones with every kind of field, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from bigconv import fsio
from bigconv.errors import StoreError
from bigconv.view.opening import open_store
from bigconv.view.report import verify

SUFFIXES = (".mmap", ".h5", ".zarr", ".lmdb")
PROGRAM = (
    "import sys\n"
    "from bigconv.conversion import build\n"
    "build.CHECKPOINT_SECONDS, build.CHECKPOINT_SHARE = 0.0, 1e9  # at every span\n"
    "from bigconv.cli.app import main\n"
    "main()\n"
)


def images(folder: Path, count: int = 60, mixed: bool = False, names: str = "{:04}.png") -> Path:
    """A folder of small PNGs in three classes; `mixed`: of different sizes, which makes the field ragged."""
    rng = np.random.default_rng(count)
    for i in range(count):
        shape = (int(rng.integers(3, 30)), int(rng.integers(3, 30)), 3) if mixed else (16, 17, 3)
        place = folder / f"class{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(place / names.format(i))
    return folder


def command(*arguments: object) -> list[str]:
    """`bigconv convert` with a checkpoint at every span."""
    return [sys.executable, "-c", PROGRAM, "convert", *map(str, arguments), "-q"]


def convert(
    *arguments: object, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )


def contents(path: Path) -> dict[str, bytes]:
    """Every byte of a store."""
    if path.is_file():
        return {".": path.read_bytes()}
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


def refused_or_whole(path: Path, rows: int) -> str:
    """What is wrong with what a reader sees; empty when it refuses or sees all."""
    try:
        opened = open_store(path)
    except StoreError:
        return ""
    if opened.manifest.rows != rows:
        return f"a reader sees {opened.manifest.rows} of {rows} rows"
    findings = verify(opened)
    return f"a reader sees damage: {findings[0]}" if findings else ""
