"""From what a user typed to a source and a list of transforms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bigconv import registry
from bigconv.decode import EXTENSIONS as IMAGES
from bigconv.errors import InputError, UsageError
from bigconv.schema import Schema, unknown
from bigconv.sources.base import Source
from bigconv.transforms.base import Transform

ARRAYS = (".npy", ".npz")
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
    if all(path.is_file() and path.suffix.lower() in ARRAYS for path in paths):
        return "arrays"
    if len(paths) == 1 and paths[0].is_dir():
        return _folder(paths[0])
    if len(paths) > 1 and any(path.is_dir() for path in paths):
        raise InputError("several inputs must all be array files or all be stores; give a folder on its own")
    odd = next(p for p in paths if not p.is_file() or p.suffix.lower() not in ARRAYS)
    raise InputError(
        f"{odd}: not recognised. bigconv reads folders of images or arrays, .npy and .npz files, and its own stores;\n"
        "--from NAME says what it is"
    )


def _folder(path: Path) -> str:
    counts: dict[str, int] = {}
    names = (name for _, _, files in os.walk(path) for name in files if not name.startswith("."))
    for name in islice(names, LOOK_AT):
        suffix = os.path.splitext(name)[1].lower()
        counts[suffix] = counts.get(suffix, 0) + 1
    images, arrays = (sum(counts.get(s, 0) for s in group) for group in (IMAGES, ARRAYS))
    if images and arrays:
        raise InputError(
            f"{path}: {images} images and {arrays} array files in one folder: say which with --from images|array-folder"
        )
    if images:
        return "images"
    if arrays:
        return "array-folder"
    if not counts:
        raise InputError(f"{path}: an empty folder")
    seen = ", ".join(f"{n} {s or 'without extension'}" for s, n in sorted(counts.items(), key=lambda kv: -kv[1])[:4])
    raise InputError(
        f"{path}: nothing in it that bigconv reads (found {seen}).\nIt reads images and .npy, .npz arrays."
    )


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
