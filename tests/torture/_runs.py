"""Conversions that torture shares: small ones with every kind of field, in a process of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bigconv import fsio
from bigconv.conversion import build
from bigconv.conversion.request import Request
from bigconv.conversion.run import Outcome, Policy
from bigconv.errors import BigconvError, StoreError
from bigconv.inspection.unfinished import unfinished
from bigconv.manifest import Manifest
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
    """What is made of a source: the name of its destination, and what is asked of it.

    `append`, `overwrite`: the destination holds the rows of every second file already, which stay or are replaced.
    """

    dest: str
    to: str | None = None
    compress: str | None = None
    chunk: int | None = None
    shards: int | None = None
    append: bool = False
    overwrite: bool = False

    @property
    def name(self) -> str:
        return self.dest + " append" * self.append + " overwrite" * self.overwrite

    @property
    def there(self) -> bool:
        """Whether the destination is a store before."""
        return self.append or self.overwrite

    def first(self, half: Path, place: Path) -> Request:
        """What makes the rows that are there before."""
        return replace(self, append=False, overwrite=False).request(half, place)

    def request(self, source: Path, place: Path, workers: int = 0, **policy: Any) -> Request:
        given: dict[str, Any] = {"append": True}  # rows are added to a store as it is
        if not self.append:
            storage = {"compress": self.compress, "chunk": self.chunk}
            given = {"overwrite": self.overwrite, "to": self.to, "shards": self.shards, "storage": storage}
        return Request((source,), place / self.dest, policy=Policy(workers, **policy), **given)

    def arguments(self) -> list[str]:
        """The same for the command line."""
        if self.append:
            return ["--append"]
        options = {"--to": self.to, "--compress": self.compress, "--chunk": self.chunk, "--shards": self.shards}
        words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return words + ["--overwrite"] * self.overwrite


PLAIN = tuple(Target(f"out{suffix}") for suffix in SUFFIXES)
PACKED = (
    Target("packed.h5", compress="zstd", chunk=5),
    Target("packed.zarr", compress="lz4", chunk=5),
    Target("packed.lmdb", compress="zstd"),
)
SHARDED = (Target("parts-memmap", "memmap", shards=3), Target("parts-hdf5", "hdf5", shards=3))
APPENDED = tuple(replace(target, append=True) for target in (*PLAIN, PACKED[1], SHARDED[1]))
OVERWRITTEN = tuple(replace(target, overwrite=True) for target in (*PLAIN, PACKED[1], SHARDED[1]))


class Cut(Protocol):
    """What is cut off: a conversion, or another command that makes or changes a store."""

    @property
    def dest(self) -> Any: ...

    def run(self) -> Outcome: ...


class Trial:
    """A conversion that is cut off or disturbed in many ways, in a folder of its own.

    A reader must see the rows that were there before, or all; where there were none before, it may refuse.
    """

    def __init__(self, root: Path, source: Path, target: Target) -> None:
        self.source, self.target = source, target
        self._set_up(root, f"{source.name} {target.name}")
        self.request: Cut = target.request(source, self.place)
        self._try_out(target.first(half_of(source), self.place) if target.there else None)

    def _set_up(self, root: Path, name: str) -> None:
        self.name = name
        self.place, self._before = root / name, root / f"before {name}"
        self.place.mkdir()

    def _try_out(self, first: Cut | None) -> None:
        """Run it once, undisturbed. `first`: what makes the store that is there before."""
        self.dest, before = self.request.dest, ""
        self.there = first is not None
        if first is not None:
            before = first.run().manifest.content_digest
            self._before.mkdir()
            os.rename(self.dest, self._before / self.dest.name)
        self.reset()
        made: Manifest = self.request.run().manifest
        self.plan, self._whole = made.plan, {before, made.content_digest}
        self.expected = contents(self.dest)
        self.reset()

    def reset(self) -> None:
        """As it was before the run."""
        for path in self.place.iterdir():
            fsio.remove(path)
        if self.there:
            kept = self._before / self.dest.name
            if kept.is_dir():
                shutil.copytree(kept, self.dest)
            else:
                shutil.copy(kept, self.dest)

    def seen(self) -> str:
        """What is wrong with what a reader sees; empty when nothing is."""
        try:
            opened = open_store(self.dest)
        except StoreError as error:
            return f"a reader is refused what was there before: {error}" if self.there else ""
        if opened.manifest.content_digest not in self._whole:
            return f"a reader sees {opened.manifest.rows} rows that are neither those before nor all"
        work = unfinished(self.dest, opened)
        findings = verify(opened, () if work is None else work.names)
        return f"a reader sees damage: {findings[0]}" if findings else ""

    def after_a_cut(self, promised: int = 0) -> str:
        """What is wrong at a destination after a run was cut off, and after it is run again; empty when nothing is.

        `promised`: rows of its last checkpoint, which must not be made again.
        """
        wrong = self.seen()
        if wrong:
            return wrong
        try:
            outcome = self.request.run()
        except BigconvError as error:
            return f"can't be resumed: {error}"
        if contents(self.dest) != self.expected:
            return "the resumed store differs"
        if outcome.status == "done" and outcome.resumed_rows < promised:
            return f"went on from row {outcome.resumed_rows}, {promised} had been promised"
        left = sorted(p.name for p in self.place.glob(f"{self.dest.name}*") if p != self.dest)
        return f"left behind: {left}" if left else ""


def half_of(source: Path) -> Path:
    """A folder of the same name with links to every second file."""
    half = source.parent / "half" / source.name
    if not half.exists():
        for file in sorted(path for path in source.rglob("*") if path.is_file())[::2]:
            link = half / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    return half


def trials(root: Path) -> list[tuple[Path, Target]]:
    """What runs are cut off: both inputs into each store, the ragged one into compressed and sharded ones too, added
    to what is there, and in its place."""
    fixed, ragged = folders(root)
    return [*product((fixed, ragged), PLAIN), *product((ragged,), (*PACKED, *SHARDED, *APPENDED, *OVERWRITTEN))]
