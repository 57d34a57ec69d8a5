"""Files of directory stores missing, swapped, foreign, added or turned into something else: all is found."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bigconv import fsio, registry
from bigconv.errors import StoreError
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from tests.torture import Case
from tests.torture._child import streamed
from tests.torture._runs import workspace
from tests.torture.flips import ROWS, SCHEMA

SUFFIXES = (".mmap", ".zarr", ".lmdb")  # those that are folders
PAIRS = 200  # swapped, a store, at scale 1


def run(scale: float) -> Iterator[Case]:
    with workspace() as root:
        for suffix in SUFFIXES:
            yield from streamed(partial(_damaged, root, suffix, scale))


def _damaged(root: Path, suffix: str, scale: float) -> Iterator[Case]:
    path, other = root / f"a{suffix}", root / f"b{suffix}"
    for seed, dest in enumerate((path, other)):  # the same sizes all over: only the values differ
        block = cases.block(SCHEMA, ROWS, seed=7)
        block.columns["x"][:] += seed  # type: ignore[index]
        block.columns["y"][:] += seed  # type: ignore[index]
        write(dest, registry.load("store", registry.store_for(dest))(), block, 16)
    names = list(fsio.files_below(path))
    kept = root / f"kept{suffix}"
    shutil.copytree(path, kept)
    for name, damage in _damages(path, other, names, random.Random(suffix), scale):
        damage()
        yield Case(f"{suffix} {name}", "" if _found(path) else "not found")
        shutil.rmtree(path)
        shutil.copytree(kept, path)
    yield Case(f"{suffix} as it was", "" if not _found(path) else "damage found in a whole store")


def _damages(
    path: Path, other: Path, names: list[str], rng: random.Random, scale: float
) -> Iterator[tuple[str, Callable[[], object]]]:
    for name in names:
        file = path / name
        yield f"{name} missing", file.unlink
        yield f"{name} a folder", partial(_as_folder, file)
        yield f"{name} a link to nothing", partial(_as_link, file)
        if (other / name).read_bytes() != file.read_bytes():
            yield f"{name} of another store", partial(shutil.copy, other / name, file)
        yield f"{name} twice", partial(shutil.copy, file, file.with_name("copy of " + file.name))
    pairs = [p for p in itertools.combinations(names, 2) if (path / p[0]).read_bytes() != (path / p[1]).read_bytes()]
    for a, b in rng.sample(pairs, min(len(pairs), round(PAIRS * scale) + 1)):
        yield f"{a} and {b} swapped", partial(_swapped, path / a, path / b)


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _as_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nothing")


def _swapped(a: Path, b: Path) -> None:
    beside = a.with_name("beside")
    os.rename(a, beside)
    os.rename(b, a)
    os.rename(beside, b)


def _found(path: Path) -> bool:
    try:
        return bool(verify(open_store(path)))
    except StoreError:
        return True
