"""Files of directory stores, and parts of sharded ones, missing, swapped, foreign, added or made something else."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bigconv import fsio, registry
from bigconv.conversion.shard import shard
from bigconv.errors import StoreError
from bigconv.stores.memmap import Memmap
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from tests.torture import Case
from tests.torture._child import streamed
from tests.torture._runs import contents, workspace
from tests.torture.flips import ROWS, SCHEMA

STORES = ("a.mmap", "a.zarr", "a.lmdb", "parts-memmap", "parts-hdf5", "parts-zarr")  # those that are folders
PAIRS = 200  # swapped, a store
FEW = 10  # damages tried of each store below scale 1


def run(scale: float) -> Iterator[Case]:
    with workspace() as root:
        for name in STORES:
            yield from streamed(partial(_damaged, root, name, scale))


def _damaged(root: Path, name: str, scale: float) -> Iterator[Case]:
    path, other = root / name, root / f"other {name}"
    for seed, dest in enumerate((path, other)):  # the same sizes all over: only the values differ
        block = cases.block(SCHEMA, ROWS, seed=7)
        block.columns["x"][:] += seed  # type: ignore[index]
        block.columns["y"][:] += seed  # type: ignore[index]
        if dest.suffix:
            write(dest, registry.load("store", registry.store_for(dest))(), block, 16)
        else:
            whole = dest.with_suffix(".mmap")
            write(whole, Memmap(), block, 16)
            shard(whole, dest, shards=3, to=name.removeprefix("parts-"), workers=0)
    names = list(fsio.files_below(path))
    kept = root / f"kept {name}"
    shutil.copytree(path, kept)
    damages = list(_damages(path, other, names, random.Random(name)))
    for what, damage in damages if scale >= 1 else random.Random(name).sample(damages, FEW):
        damage()
        yield Case(f"{name} {what}", "" if _found(path) else "not found")
        shutil.rmtree(path)
        shutil.copytree(kept, path)
    yield Case(f"{name} as it was", "" if not _found(path) else "damage found in a whole store")


def _damages(
    path: Path, other: Path, names: list[str], rng: random.Random
) -> Iterator[tuple[str, Callable[[], object]]]:
    for name in names:
        file = path / name
        yield f"{name} missing", file.unlink
        yield f"{name} a folder", partial(_as_folder, file)
        yield f"{name} a link to nothing", partial(_as_link, file)
        twin = other / name if (other / name).exists() else _twin(other, name)
        if twin is not None and twin.read_bytes() != file.read_bytes():
            yield f"{name} of another store", partial(shutil.copy, twin, file)
        yield f"{name} twice", partial(shutil.copy, file, file.with_name("copy of " + file.name))
    folders = [p.name for p in path.iterdir() if p.is_dir()]
    for name in folders:
        yield f"{name}/ missing", partial(shutil.rmtree, path / name)
        yield f"{name}/ twice", partial(shutil.copytree, path / name, path / f"copy of {name}")
        foreign = next((p.name for p in other.iterdir() if p.name[:10] == name[:10] and p.is_dir()), None)
        if foreign is not None and contents(path / name) != contents(other / foreign):
            yield f"{name}/ of another store", partial(_exchanged, path / name, other / foreign)
    for a, b in itertools.combinations(folders, 2):
        if contents(path / a) != contents(path / b):
            yield f"{a}/ and {b}/ swapped", partial(_swapped, path / a, path / b)
    pairs = [p for p in itertools.combinations(names, 2) if (path / p[0]).read_bytes() != (path / p[1]).read_bytes()]
    for a, b in rng.sample(pairs, min(len(pairs), PAIRS)):
        yield f"{a} and {b} swapped", partial(_swapped, path / a, path / b)


def _twin(other: Path, name: str) -> Path | None:
    """The file at the same place in another sharded directory, whose parts have names of their own."""
    first, _, rest = name.partition("/")
    found = [p / rest if rest else p for p in other.iterdir() if p.name[:10] == first[:10]]  # part-00000
    return found[0] if len(found) == 1 and found[0].is_file() else None


def _exchanged(folder: Path, foreign: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(foreign, folder)


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
