"""Commands of `bigconv shard` that torture cuts off: fields that come and go, parts dropped and made again, splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import dataset, fsio
from bigconv.conversion.run import Outcome
from bigconv.conversion.shard import shard
from bigconv.dataset import DatasetManifest
from bigconv.errors import BigconvError, StoreError
from bigconv.manifest import Manifest
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from tests.torture._runs import PLAIN, Target, Trial, contents, request

SHARDED = tuple(Target(f"parts-{kind}", kind, shards=3) for kind in ("memmap", "hdf5", "lmdb", "zarr"))
SEPARABLE = (PLAIN[0], PLAIN[2], SHARDED[0], SHARDED[3])  # fields of memmap and Zarr lie apart
BAD = (0, 2)  # parts to be made again: the first is missing, the other damaged


@dataclass(frozen=True)
class Change:
    """`bigconv shard` with some options: in the place of `dest`, or from `store` into it."""

    dest: Path
    options: Mapping[str, Any]
    store: Path | None = None

    def run(self) -> Outcome:
        paths = (self.dest,) if self.store is None else (self.store, self.dest)
        made = shard(*paths, workers=0, **self.options)
        return Outcome("done", made if isinstance(made, Manifest) else next(iter(made.values())), self.dest)


class Edited(Trial):
    """What `bigconv shard` makes or changes; said once more, a command finds all done."""

    request: Change
    datasets: tuple[str, ...] = ("",)

    def after_a_cut(self, promised: int = 0) -> str:
        return super().after_a_cut(promised) or self.damage() or self._again()

    def damage(self) -> str:
        for name in self.datasets:
            try:
                findings = verify(open_store(self.dest / name))
            except StoreError as error:
                return f"a reader is refused: {error}"
            if findings:
                return f"a reader sees damage in {name or 'it'}: {findings[0]}"
        return ""

    def _again(self) -> str:
        try:
            self.request.run()
        except BigconvError as error:
            return f"said again, it fails: {error}"
        return "" if contents(self.dest) == self.expected else "said again, it changes something"


class Changing(Edited):
    """A store or directory that is changed in its place."""

    def __init__(self, root: Path, source: Path, target: Target, options: Mapping[str, Any]) -> None:
        self.source, self.target = source, target
        self._set_up(root, f"{source.name} {target.name} {' '.join(options)}")
        self.request = Change(self.place / target.dest, options)
        self._try_out(target.request(source, self.place))


@dataclass(frozen=True)
class Spoilt:
    """A sharded directory of which some parts are missing or damaged."""

    made: Any = field(repr=False)

    def run(self) -> Outcome:
        outcome: Outcome = self.made.run()
        manifest = outcome.manifest
        assert isinstance(manifest, DatasetManifest) and isinstance(outcome.dest, Path)
        missing, damaged = (outcome.dest / manifest.parts[number].name for number in BAD)
        fsio.remove(missing)
        largest = damaged
        if damaged.is_dir():
            largest = damaged / max(fsio.files_below(damaged).items(), key=lambda item: item[1])[0]
        raw = bytearray(largest.read_bytes())
        raw[len(raw) // 2 :] = bytes(255 - byte for byte in raw[len(raw) // 2 :])
        largest.write_bytes(raw)
        return outcome


class Repairing(Changing):
    """Parts made again; a reader sees damage until then, and always the same manifest."""

    def __init__(self, root: Path, source: Path, target: Target) -> None:
        self.source, self.target = source, target
        self._set_up(root, f"{source.name} {target.name} repair")
        self.request = Change(self.place / target.dest, {"repair": True, "source": source})
        self._try_out(Spoilt(target.request(source, self.place)))

    def seen(self) -> str:
        try:
            digest = dataset.read(self.dest).content_digest
        except (OSError, StoreError) as error:
            return f"the manifest is gone: {error}"
        return "" if digest in self._whole else "a reader sees another manifest"


class Splitting(Edited):
    """A store split in two: there is nothing of it, or both datasets, whole."""

    datasets = ("train", "val")

    def __init__(self, root: Path, store: Path, to: str) -> None:
        self.source, self.target = store, Target(f"sets-{to}", to)
        self._set_up(root, f"{store.name} {self.target.name} split")
        options = {"split": "train=0.7,val=0.3", "shuffle": True, "shards": 2, "to": to}
        self.request = Change(self.place / self.target.dest, options, store)
        self._try_out(None)

    def seen(self) -> str:
        return self.damage() if self.dest.exists() else ""


def edits(root: Path, source: Path, most: int | None = None) -> Iterator[Trial]:
    """What is done to stores and directories with the rows of a folder of arrays; the next when one is done with.

    `most`: stores or directories, of each kind of change.
    """
    rows = len(list(source.iterdir()))
    given = root / "given"
    given.mkdir()
    np.save(given / "new.npy", np.random.default_rng(rows).normal(size=(rows, 11)))
    new = request(given / "new.npy", given / "new.h5").run()
    for target in SEPARABLE[:most]:
        yield Changing(root, source, target, {"add_field": new.dest})
    two = given / "two.zarr"
    for target in SEPARABLE[:most]:
        yield Changing(root, _with_two(source, new.dest, two), target, {"drop_field": "new"})
    for target in SHARDED[:most]:
        yield Changing(root, source, target, {"drop": "1"})
        yield Repairing(root, source, target)
    store = request(source, given / "whole.mmap").run().dest
    for target in SHARDED[:most]:
        assert isinstance(store, Path) and target.to is not None
        yield Splitting(root, store, target.to)


def _with_two(source: Path, new: Any, path: Path) -> Path:
    """A store of two fields, as what is made from it has them too."""
    if not path.exists():
        request(source, path).run()
        shard(path, add_field=new, workers=0)
    return path
