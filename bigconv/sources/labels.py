"""Class labels of files: from their folders, their names or a table."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import registry
from bigconv.block import Index
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, unknown
from bigconv.sources.filelist import FileList
from bigconv.view.opening import open_store

LABELS = ("folder", "name:REGEX", "csv:FILE", "none")
MAX_CLASSES_BYTES = 64 << 20  # 64 MiB: a million names of 64 bytes

Classes = str | os.PathLike[str] | Sequence[str]  # a file, or the names themselves


def class_names(files: FileList, label_from: str | None, what: str) -> tuple[str, list[str] | None]:
    """Where labels come from, and the class name of every file. `what`: what the files are, in plural.

    `label_from`: `folder` (the first folder below the root; what is done by default when no file lies outside of one),
    `name:REGEX` (group 1, or else the match, in the relative path), `csv:FILE` (two columns, file and label; rows on
    other files, such as a header, are passed over) or `none`. Raises `InputError`, `UsageError`.
    """
    names = files.relative(0, len(files))
    if label_from is None:
        loose = [name for name in names if b"/" not in name]
        if loose and len(loose) < len(names):
            raise InputError(
                f"{_text(loose[0])} lies outside of any class folder, {len(names) - len(loose)} other {what} in one.\n"
                "Move it, or say --label-from none"
            )
        label_from = "none" if loose else "folder"
    how, _, where = label_from.partition(":")
    if label_from == "none":
        return label_from, None
    if label_from == "folder":
        return label_from, _from_folders(names)
    if how == "name" and where:
        return label_from, _from_names(names, where)
    if how == "csv" and where:
        return f"csv:{Path(where).name}", _from_table(names, Path(where), what)
    raise UsageError(f"--label-from: {unknown('way', label_from, LABELS)}")


def _from_folders(names: list[bytes]) -> list[str]:
    text: dict[bytes, str] = {}  # few folders, many names
    labels = []
    for name in names:
        folder, slash, _ = name.partition(b"/")
        if not slash:
            raise InputError(f"{_text(name)} lies in no folder that could be its label")
        label = text.get(folder)
        if label is None:
            label = text[folder] = _text(folder)
        labels.append(label)
    return labels


def _from_names(names: list[bytes], regex: str) -> list[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UsageError(f"--label-from name:{regex}: not a regular expression: {error}") from error
    labels = []
    for name in names:
        text = _text(name)
        match = pattern.search(text)
        label = match[1 if pattern.groups else 0] if match else None
        if not label:
            raise InputError(f"{text}: no label in this name for --label-from name:{regex}")
        labels.append(label)
    return labels


def _from_table(names: list[bytes], path: Path, what: str) -> list[str]:
    table: dict[bytes, str] = {}
    wanted = set(names)
    example = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                if not row:
                    continue
                if len(row) != 2:
                    raise InputError(f"{path}, line {rows.line_num}: expected file,label, got {len(row)} columns")
                example = row[0]
                name, label = row[0].removeprefix("./").encode(), row[1].strip()
                if name not in wanted:
                    continue
                if not label:
                    raise InputError(f"{path}, line {rows.line_num}: no label for {row[0]}")
                if table.setdefault(name, label) != label:
                    raise InputError(f"{path}, line {rows.line_num}: a second label, {label}, for {row[0]}")
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of file,label in UTF-8: {error}") from error
    missing = [name for name in names if name not in table]
    if missing:
        raise InputError(
            f"{path} has no label for {len(missing)} of {len(names)} {what}. The first: {_text(missing[0])}\n"
            f"Its first column must be paths relative to the folder of {what}; it has {example!r}"
        )
    return [table[name] for name in names]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")  # as JSON and terminals can't hold bytes that aren't UTF-8


def numbered(names: Sequence[str], classes: Classes | None = None) -> tuple[Field, Index]:
    """The field `label`, and int64 `[files]`: the class of each. Classes are the names sorted bytewise.

    `classes`: those of a file or in a list instead, in its order. Raises `InputError` for a name that is none of them.
    """
    if classes is None:
        classes = tuple(sorted(set(names)))  # str sorts by code point, which is the order of its UTF-8 bytes
    else:
        classes = known_classes(classes)
        new = sorted(set(names).difference(classes))
        if new:
            more = f", nor are {len(new) - 1} others" if len(new) > 1 else ""
            raise InputError(f"--classes: {unknown('class', new[0], classes[:50])}{more}")
    number = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter(map(number.__getitem__, names), np.int64, len(names))
    return Field("label", "int64", (), kind="label", classes=classes), labels


def known_classes(classes: Classes) -> tuple[str, ...]:
    """Names of classes in their order: one a line of a file in UTF-8, those of a store's labels, or a list as it is.

    Raises `InputError`.
    """
    if not isinstance(classes, str | os.PathLike):
        found = tuple(classes)
    else:
        path = Path(classes)
        found = _of_store(path) if registry.recognise(path) else _of_lines(path)
    if not found or len(set(found)) < len(found):
        twice = next((name for i, name in enumerate(found) if name in found[:i]), None)
        raise InputError(f"--classes: {'no names in it' if twice is None else f'{twice!r:.80} stands there twice'}")
    return found


def _of_store(path: Path) -> tuple[str, ...]:
    fields = [f for f in open_store(path).manifest.schema if f.classes]
    if len(fields) != 1 or fields[0].classes is None:
        raise InputError(f"--classes {path}: {len(fields)} fields of this store have classes, expected one")
    return fields[0].classes


def _of_lines(path: Path) -> tuple[str, ...]:
    try:
        if path.is_file() and path.stat().st_size > MAX_CLASSES_BYTES:
            raise InputError(f"--classes {path}: more than {MAX_CLASSES_BYTES} bytes are no list of classes")
        if not path.is_file():
            raise InputError(f"--classes {path}: no such file: expected one name a line, or a store with labels")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"--classes {path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--classes {path}: not UTF-8: expected one name a line, or a store with labels") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def told_of(label_from: str, labels: Index | None) -> dict[str, Any]:
    """What the manifest keeps of labels: a table that was edited makes another source, as no file tells of it."""
    if labels is None or not label_from.startswith("csv:"):
        return {"label_from": label_from}
    return {"label_from": label_from, "labels_sha256": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()}
