"""From what a user typed to a source and a list of transforms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bigconv import registry
from bigconv.errors import InputError, UsageError
from bigconv.schema import Schema, unknown
from bigconv.sources.base import Source
from bigconv.transforms.base import Transform

LOOK_AT = 10_000  # files of a folder that are looked at to tell what it holds
STEPS = ("resize", "dtype", "layout")


def find_source(
    paths: Sequence[Path], name: str | None, options: Mapping[str, Any], hints: Mapping[str, Any] | None = None
) -> Source:
    """The source that reads `paths`: the one named, else the one that fits.

    `hints`: what may spare a source work (`workers`, `sizes_matter`); those that a source doesn't know are dropped.

    Raises `InputError` when nothing fits, `UsageError` for options that the source doesn't have.
    """
    if not paths:
        raise UsageError("nothing to convert: name a folder, files or a store")
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    name = name or recognise(paths)
    source = registry.load("source", name)
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    for key in given:
        if key not in source.options and not (key == "axis" and given[key] == 0):
            raise UsageError(f"--{key.replace('_', '-')} has no meaning for {name} input")
    known = {key: value for key, value in given.items() if key in source.options}
    spared = {key: value for key, value in (hints or {}).items() if key in getattr(source, "hints", ())}
    found: Source = source.find(paths, **known, **spared)
    if found.inputs == 0:
        raise InputError(f"{', '.join(map(str, paths))}: no rows in it")
    return found


def recognise(paths: Sequence[Path]) -> str:
    """Name of the source that fits the paths. Raises `InputError`, saying what was seen."""
    if all(registry.recognise(path) for path in paths):
        return "store"
    if len(paths) == 1 and paths[0].is_dir():
        return _of_folder(paths[0])
    if any(path.is_dir() for path in paths):
        raise InputError("several inputs must all be files or all be stores; give a folder on its own")
    for name, entry in registry.SOURCES.items():
        if entry.takes != "folder" and entry.extensions and all(_ends(p.name, entry.extensions) for p in paths):
            return name
    known = sorted({e for entry in registry.SOURCES.values() if entry.takes != "folder" for e in entry.extensions})
    odd = next((p for p in paths if not _ends(p.name, tuple(known))), None)
    if odd is None:
        raise InputError("files of different kinds can't make one store: convert each kind on its own")
    raise InputError(
        f"{odd}: not recognised. bigconv reads its own stores, folders, and files {' '.join(known)};\n"
        "--from NAME says what it is"
    )


def _ends(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions)


def _of_folder(path: Path) -> str:
    names = (name for _, _, files in os.walk(path) for name in files if not name.startswith("."))
    seen = list(islice(names, LOOK_AT))
    folders = {name: entry for name, entry in registry.SOURCES.items() if entry.takes != "files"}
    counts = {name: sum(_ends(n, entry.extensions) for n in seen) for name, entry in folders.items()}
    fits = [name for name, n in counts.items() if n]
    if len(fits) == 1:
        return fits[0]
    if fits:
        listed = ", ".join(f"{counts[name]} for {name}" for name in fits)
        raise InputError(f"{path}: files of several kinds in one folder ({listed}): say which with --from NAME")
    if not seen:
        raise InputError(f"{path}: an empty folder")
    suffixes = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in seen)
    found = ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common(4))
    known = " ".join(sorted({e for entry in folders.values() for e in entry.extensions}))
    raise InputError(f"{path}: nothing in it that bigconv reads (found {found}).\nIt reads folders of {known}")


def make_steps(source: Source, steps: Sequence[tuple[str, str]], fit: str) -> tuple[list[Transform], Schema]:
    """Transforms in the order given, and the schema they yield. Images end in CHW unless a layout was asked for."""
    made: list[Transform] = []
    for name, value in steps:
        if name not in STEPS:
            raise UsageError(unknown("step", name, STEPS))
        cls = registry.load("transform", name)
        made.append(cls.parse(value, fit=fit) if name == "resize" else cls(value))
    schema = source.schema
    for step in made:
        schema = step.schema(schema)
    if any(f.kind == "image" and f.layout == "hwc" for f in schema) and "layout" not in dict(steps):
        layout = registry.load("transform", "layout")("chw")
        if source.name != "store":  # a store's fields are taken as they are
            made.append(layout)
            schema = layout.schema(schema)
    return made, schema
