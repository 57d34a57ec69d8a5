"""Conversions that torture shares: small ones with every kind of field, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigconv import fsio
from bigconv.conversion import build
from bigconv.conversion.api import Request
from bigconv.conversion.run import Policy
from bigconv.errors import BigconvError, StoreError
from bigconv.sources import array_folder
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


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder of its own, in memory where there is some: what is tried is what survives, not how fast a disk is."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="torture-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@contextmanager
def checkpoints_everywhere() -> Iterator[None]:
    """Small spans and a checkpoint after each, in this process and those forked from it."""
    changes = [(build, "CHECKPOINT_SECONDS", 0.0), (build, "CHECKPOINT_SHARE", 1e9), (array_folder, "SPAN_FILES", 7)]
    kept = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def folders(root: Path, files: int = 24) -> list[Path]:
    """Two small inputs of several spans: a folder of arrays of one shape, and one of many, which is ragged."""
    rng = np.random.default_rng(files)
    for i in range(files):
        for name, shape in (("fixed", (5, 7)), ("ragged", (int(rng.integers(0, 9)), int(rng.integers(1, 5))))):
            place = root / name / f"{i:03}.npy"
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, rng.integers(0, 255, shape).astype(np.uint16))
    return [root / "fixed", root / "ragged"]


def request(source: Path, dest: Path, **policy: Any) -> Request:
    return Request((source,), dest, policy=Policy(0, **policy))


@dataclass(frozen=True)
class Target:
    """What is made of a source: the name of its destination, and what is asked of it."""

    dest: str
    to: str | None = None
    compress: str | None = None
    chunk: int | None = None
    shards: int | None = None

    def request(self, source: Path, place: Path, workers: int = 0, **policy: Any) -> Request:
        storage = {"compress": self.compress, "chunk": self.chunk}
        asked = Policy(workers, **policy)
        return Request((source,), place / self.dest, to=self.to, shards=self.shards, storage=storage, policy=asked)

    def arguments(self) -> list[str]:
        """The same for the command line."""
        options = {"--to": self.to, "--compress": self.compress, "--chunk": self.chunk, "--shards": self.shards}
        return [word for name, value in options.items() if value is not None for word in (name, str(value))]


PLAIN = tuple(Target(f"out{suffix}") for suffix in SUFFIXES)
PACKED = (
    Target("packed.h5", compress="zstd", chunk=5),
    Target("packed.zarr", compress="lz4", chunk=5),
    Target("packed.lmdb", compress="zstd"),
)
SHARDED = (Target("parts-memmap", "memmap", shards=3), Target("parts-hdf5", "hdf5", shards=3))


def trials(root: Path) -> list[tuple[Path, Target]]:
    """What runs are cut off: both inputs into each store, the ragged one into compressed and sharded ones too."""
    fixed, ragged = folders(root)
    return [*product((fixed, ragged), PLAIN), *product((ragged,), (*PACKED, *SHARDED))]


def after_a_cut(again: Request, rows: int, expected: dict[str, bytes], promised: int = 0) -> str:
    """What is wrong at a destination after a run was cut off, and after it is run again; empty when nothing is.

    `promised`: rows of its last checkpoint, which must not be made again.
    """
    dest = again.dest
    wrong = refused_or_whole(dest, rows)
    if wrong:
        return wrong
    try:
        outcome = again.run()
    except BigconvError as error:
        return f"can't be resumed: {error}"
    if contents(dest) != expected:
        return "the resumed store differs"
    if outcome.status == "done" and outcome.resumed_rows < promised:
        return f"went on from row {outcome.resumed_rows}, {promised} had been promised"
    left = sorted(p.name for p in dest.parent.glob(f"{dest.name}*") if p != dest)
    return f"left behind: {left}" if left else ""
