"""One flipped bit anywhere in a store, a file cut short or longer: found by --verify (or refused), never a signal."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import fsio, registry
from bigconv.errors import StoreError
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView
from tests.torture import Case
from tests.torture._runs import SUFFIXES

SCHEMA = Schema((Field("x", "uint8", (33,)), Field("t", "uint16", (None,)), Field("y", "int64")))
ROWS = 40
FLIPS = 4000  # a store, at scale 1


def run(scale: float) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        for suffix in SUFFIXES:
            path = Path(name) / f"a{suffix}"
            store = registry.load("store", registry.store_for(path))()
            write(path, store, cases.block(SCHEMA, ROWS), 16)
            context = multiprocessing.get_context("fork")
            ours, theirs = context.Pipe()
            process = context.Process(target=_flip_all, args=(path, scale, theirs))
            process.start()
            theirs.close()
            try:
                while True:
                    yield ours.recv()
            except EOFError:
                process.join()
            if process.exitcode:
                yield Case(suffix, f"the reader ended with {process.exitcode}")


def _flip_all(path: Path, scale: float, pipe: Any) -> None:
    files = [path] if path.is_file() else [path / name for name in fsio.files_below(path)]
    total = sum(f.stat().st_size for f in files)
    rng = np.random.default_rng(0)
    original = StoreView([path])[:]
    for file in files:
        whole = file.read_bytes()
        wanted = max(20, round(FLIPS * scale * len(whole) / total))
        spots = np.unique(rng.integers(0, len(whole), wanted)) if wanted < len(whole) else np.arange(len(whole))
        for at in spots.tolist():
            changed = bytearray(whole)
            changed[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            pipe.send(Case(f"{file.name} byte {at}", "" if _found(path, original) else "not found"))
        for size in sorted({0, 1, len(whole) - 1, *rng.integers(0, len(whole), round(20 * scale)).tolist()}):
            file.write_bytes(whole[:size])
            pipe.send(Case(f"{file.name} cut to {size}", "" if _found(path, original) else "not found"))
        file.write_bytes(whole + b"\0")
        pipe.send(Case(f"{file.name} extended", "" if _found(path, original) else "not found"))
        file.write_bytes(whole)
    pipe.send(
        Case(f"{path.suffix} as it was", "" if verify(open_store(path)) == [] else "damage found in a whole store")
    )


def _found(path: Path, original: Any) -> bool:
    """Whether damage is refused or found; a read that goes through must not be wrong unnoticed or end the process."""
    try:
        opened = open_store(path)
        try:
            StoreView.of([opened]).take(np.arange(ROWS))
        except StoreError:
            return True
        return bool(verify(opened))
    except StoreError:
        return True
