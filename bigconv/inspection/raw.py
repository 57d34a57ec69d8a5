"""Raw input before it is converted: what it is, what it would become, what does not fit, and the command to type."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigconv import registry
from bigconv.conversion.options import find_source
from bigconv.errors import InputError, MissingPackage, SchemaError, UsageError
from bigconv.inspection.datasets import Dataset, container, datasets
from bigconv.inspection.source_rows import SourceRows
from bigconv.view.opening import address

if TYPE_CHECKING:
    from bigconv.sources.base import OnlySome

EXAMPLES = 3  # files named a kind of misfit
DEST = ".h5"


@dataclass(frozen=True)
class Misfit:
    """Files that would not be read. `why`: their extension, or `hidden`, `link`, `special`."""

    why: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """One way to read the input: the source that recognises it, or why that can't read it.

    Where only some of its arrays go together, `problem` says so, and `option` takes them.
    """

    name: str
    rows: SourceRows | None
    files: int
    bytes: int
    command: str
    problem: str = ""
    option: str = ""

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"recognised": self.name, "files": self.files, "files_bytes": self.bytes}
        if self.rows is None:
            return {**out, "problem": self.problem}
        fields = self.rows.schema.to_json()
        source = self.rows.source.describe()
        if self.problem:
            out["problem"] = self.problem
        return {**out, "inputs": self.rows.count, "fields": fields, "source": source, "command": self.command}


@dataclass(frozen=True, eq=False)
class Raw:
    """Input as `inspect` shows it. More than one reading: files of several kinds, of which each makes a store."""

    paths: tuple[Path, ...]
    container: str | None
    readings: tuple[Reading, ...]
    misfits: tuple[Misfit, ...]
    datasets: tuple[Dataset, ...]

    @property
    def rows(self) -> SourceRows | None:
        return self.readings[0].rows if len(self.readings) == 1 else None

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "schema_version": 1,
            "path": address(self.paths[0]),
            "paths": [address(p) for p in self.paths],
        }
        out["container"] = self.container
        one = self.readings[0].to_json() if len(self.readings) == 1 else {"recognised": None}
        if len(self.readings) > 1:
            out["readings"] = [reading.to_json() for reading in self.readings]
        out |= one
        out["misfits"] = [{"why": m.why, "count": m.count, "examples": list(m.examples)} for m in self.misfits]
        if self.container is not None:
            out["datasets"] = [d.to_json() for d in self.datasets]
        return out


def look(paths: Sequence[Path], from_: str | None = None) -> Raw:
    """Recognise raw input and find what is in it; nothing is decoded. Raises as `convert` would."""
    inside = container(paths[0]) if len(paths) == 1 else None
    found = tuple(datasets(paths[0])) if inside is not None else ()
    try:
        readings = [_some_of(paths, from_)]
    except (InputError, SchemaError, UsageError) as error:
        kinds = _kinds(paths[0]) if from_ is None and len(paths) == 1 and paths[0].is_dir() and inside is None else []
        if len(kinds) < 2 and not found:
            raise
        readings = [_attempt(paths, kind) for kind in kinds] or [Reading(inside or "", None, 0, 0, "", str(error))]
    return Raw(tuple(paths), inside, tuple(readings), tuple(_misfits(paths, readings)), found)


def _some_of(paths: Sequence[Path], from_: str | None) -> Reading:
    """All of the input, or those of its arrays that go together."""
    from bigconv.sources.base import OnlySome

    try:
        return _reading(paths, from_)
    except OnlySome as error:
        return _reading(paths, from_, only=error)


def _reading(paths: Sequence[Path], from_: str | None, several: bool = False, only: OnlySome | None = None) -> Reading:
    from bigconv.conversion.request import available_cores  # late: it brings all that converts

    options = {} if only is None else {"columns": only.columns}
    source = find_source(paths, from_, options, {"workers": available_cores()})
    files = source.files
    option = "" if only is None else f" --columns {shlex.quote(','.join(only.columns))}"
    command = _command(paths, from_, several) + option
    problem = "" if only is None else str(only)
    nbytes = int(files.sizes.sum())
    return Reading(source.name, SourceRows(source), len(files), nbytes, command, problem, option)


def _attempt(paths: Sequence[Path], name: str) -> Reading:
    try:
        return _reading(paths, name, several=True)
    except (InputError, SchemaError, UsageError, MissingPackage) as error:
        return Reading(name, None, 0, 0, "", str(error))


def _command(paths: Sequence[Path], from_: str | None, several: bool) -> str:
    """What to type. The destination goes by the input's name, beside which nothing is overwritten."""
    first = paths[0]
    stem = (first.name or first.resolve().name or "out").split(".")[0] or "out"
    stem += f"-{from_}" if several else ""
    dest = stem + DEST
    if Path(dest).exists() or any(os.path.abspath(dest) == os.path.abspath(path) for path in paths):
        dest = stem + "-new" + DEST
    option = f" --from {from_}" if from_ else ""
    return f"bigconv convert {' '.join(shlex.quote(address(path)) for path in paths)} {shlex.quote(dest)}{option}"


def _kinds(folder: Path) -> list[str]:
    """Sources that find files of theirs in a folder, by extension, the most first."""
    count: dict[str, int] = {}
    for name, entry in registry.SOURCES.items():
        if entry.takes != "files" and entry.extensions:
            count[name] = sum(
                file.lower().endswith(entry.extensions)
                for _, _, files in os.walk(folder)
                for file in files
                if not file.startswith(".")
            )
    return [name for name, n in sorted(count.items(), key=lambda pair: -pair[1]) if n]


def _misfits(paths: Sequence[Path], readings: Sequence[Reading]) -> list[Misfit]:
    """Files below the folder that no reading reads, by extension, the most first."""
    if len(paths) != 1 or not paths[0].is_dir() or registry.recognise(paths[0]) is not None:
        return []
    fitting: set[bytes] = set()
    for reading in readings:
        if reading.rows is not None:
            fitting |= set(_names(reading.rows))
    root = os.fsencode(paths[0])
    found: dict[str, list[Any]] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        prefix = os.path.relpath(folder, root)
        for file in sorted(files):
            name = file if prefix == b"." else os.path.join(prefix, file)
            if name in fitting:
                continue
            entry = found.setdefault(_why(os.path.join(folder, file)), [0, []])
            entry[0] += 1
            if len(entry[1]) < EXAMPLES:
                entry[1].append(os.fsdecode(name))
    told = [Misfit(why, count, tuple(examples)) for why, (count, examples) in found.items()]
    return sorted(told, key=lambda m: (-m.count, m.why))


def _names(rows: SourceRows) -> list[bytes]:
    files = rows.source.files
    starts = [0, *files.ends.tolist()]
    return [files.names[a:b] for a, b in pairwise(starts)]


def _why(path: bytes) -> str:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "special"
    if stat.S_ISLNK(mode):
        return "link"
    if not stat.S_ISREG(mode):
        return "special"
    name = os.fsdecode(os.path.basename(path))
    return "hidden" if name.startswith(".") else os.path.splitext(name)[1].lower() or "without extension"
