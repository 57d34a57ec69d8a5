"""What `inspect` was pointed at: a store of ours, or raw input, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bigconv import provenance
from bigconv.errors import InputError, NotAStore
from bigconv.inspection.datasets import Dataset, container, datasets
from bigconv.inspection.diff import Side
from bigconv.inspection.rows import Rows, StoreRows
from bigconv.inspection.stats import FieldStats
from bigconv.inspection.unfinished import Unfinished, unfinished
from bigconv.inspection.warnings import Complaint, Facts, warnings
from bigconv.schema import Schema
from bigconv.view.opening import Opened, address, in_place, open_store
from bigconv.view.report import gaps
from bigconv.view.table import StoreView

if TYPE_CHECKING:
    from bigconv.inspection.raw import Raw


@dataclass(frozen=True)
class Subject:
    """`opened`: the store, if it is one of ours; else `raw`."""

    paths: tuple[Path, ...]
    opened: Opened | None
    raw: Raw | None

    @property
    def name(self) -> str:
        if self.opened is not None and self.opened.at is not None:
            return self.opened.told
        return ", ".join(map(address, self.paths))

    @cached_property
    def rows(self) -> Rows | None:
        """None where no source can read it, or several can."""
        if self.opened is not None:
            return StoreRows(StoreView.of([self.opened]))
        return None if self.raw is None else self.raw.rows

    @cached_property
    def container(self) -> str | None:
        return container(self.paths[0]) if len(self.paths) == 1 else None

    @cached_property
    def datasets(self) -> tuple[Dataset, ...]:
        """The arrays inside, as they lie there."""
        if self.raw is not None:
            return self.raw.datasets
        if self.opened is not None and self.opened.at is not None:
            return tuple(
                datasets(self.paths[0], {name: size for name, (size, _) in self.opened.manifest.files.items()})
            )
        return tuple(datasets(self.paths[0]))

    def warnings(self, stats: Sequence[FieldStats] | None = None) -> list[Complaint]:
        rejected = 0 if self.raw is None or self.raw.rows is None else self.raw.rows.rejected
        counts = {} if self.opened is None else self.opened.manifest.counts
        known = (self.paths[0], self.opened is not None, self.container, self.datasets, self.rows, stats, rejected)
        option = None if self.raw is None or self.raw.rows is None else self.raw.readings[0].option
        return warnings(Facts(*known, counts, self._gaps(), self.unfinished, option))

    @cached_property
    def unfinished(self) -> Unfinished | None:
        return unfinished(self.paths[0], self.opened)

    def _gaps(self) -> str | None:
        if self.opened is not None:
            return gaps(self.opened.manifest.source)
        rows = None if self.raw is None else self.raw.rows
        return None if rows is None else gaps(rows.source.describe())

    def side(self) -> Side:
        """For a comparison. Raises `InputError` where there are no rows to compare."""
        rows = self.rows
        if rows is None:
            readings = () if self.raw is None else self.raw.readings
            why = next((r.problem for r in readings if r.problem), "")
            kinds = ", ".join(f"--from {r.name}" for r in readings)
            raise InputError(why or f"{self.name}: files of several kinds. Name some, or say which: {kinds}")
        if self.opened is None:
            return Side(self.name, rows)
        manifest = self.opened.manifest
        attached = None
        if len(self.opened.part_rows) == 1 and self.container != "dataset":
            attached = self.opened.attachment(provenance.NAME)
        return Side(self.name, rows, manifest, attached)


def subject(paths: Sequence[Path], from_: str | None = None) -> Subject:
    """Find out what paths are. Raises `StoreError` for a damaged store, and as `convert` does for other input."""
    if len(paths) > 1 or from_ is not None:
        return _raw(paths, from_)
    path = paths[0]
    if (ranged := in_place(path)) is not None:
        return Subject((ranged.path,), ranged, None)
    try:
        return Subject((path,), open_store(path), None)
    except NotAStore as error:
        if not path.exists() or path.suffix == ".mmap" or _has_parts(path):  # ours by its name, and not whole
            raise
        try:
            return _raw([path], None)
        except InputError:
            if path.suffix in (".zarr", ".lmdb") and not (path / "data.mdb").exists():
                raise error from None
            raise


def _raw(paths: Sequence[Path], from_: str | None) -> Subject:
    from bigconv.inspection import raw  # late: stores need none of what reads raw input

    return Subject(tuple(paths), None, raw.look(paths, from_))


def _has_parts(path: Path) -> bool:
    return path.is_dir() and any(name.startswith("part-") for name in os.listdir(path))


def stored_sizes(schema: Schema, found: Sequence[Dataset]) -> dict[str, int]:
    """Field -> bytes on disk, of those whose arrays lie apart from others'."""
    stored = {d.name: d.stored for d in found if not d.private}
    sizes: dict[str, int] = {}
    for f in schema:
        parts = [stored.get(part.name, stored.get(part.name.replace("/", "."))) for part in f.parts()]
        if all(size is not None for size in parts):
            sizes[f.name] = sum(size for size in parts if size is not None)
    return sizes
