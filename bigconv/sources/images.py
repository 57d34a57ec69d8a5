"""A folder of images, with labels from the folders, the names or a table."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import decode, registry
from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema, unknown
from bigconv.sources.base import SPAN_BYTES, Reject, Span, even_spans, origins
from bigconv.sources.filelist import FileList

EXTENSIONS = registry.SOURCES["images"].extensions
SPAN_FILES = 256  # so that millions of tiny files are not millions of spans, and a retry is short
FILE_BYTES = 1 << 30  # 1 GiB: twice the pixels of the largest image that is decoded
LABELS = ("folder", "name:REGEX", "csv:FILE", "none")


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Each image below a folder is a row, in bytewise order of the paths.

    Fields: `image`, uint8 `[height, width, 3]` (or the file as it is, uint8 `[bytes]`), and `label`, int64, where there
    are labels. `labels`: int64 `[files]`, or None. `label_from`: where they came from, with no path of this machine.
    """

    name: ClassVar[str] = "images"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "keep_encoded")
    hints: ClassVar[tuple[str, ...]] = ("workers", "sizes_matter")

    files: FileList
    schema: Schema
    labels: Index | None
    label_from: str

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        label_from: str | None = None,
        keep_encoded: bool = False,
        workers: int = 1,
        sizes_matter: bool = True,
    ) -> ImageFolder:
        """List the images, find their labels and look at their sizes.

        `label_from`: `folder` (the first folder below `paths[0]`; what is done by default when no image lies outside
        of one), `name:REGEX` (group 1, or else the match, in the relative path), `csv:FILE` (two columns, file and
        label; rows on other files, such as a header, are passed over) or `none`. Classes are sorted bytewise.
        `sizes_matter=False` looks into no file: sizes then vary. Raises `InputError`, `UsageError`.
        """
        if len(paths) != 1 or not paths[0].is_dir():
            raise InputError("images are converted from one folder; give that folder alone")
        root = paths[0]
        files = FileList.below(root, lambda name: name.lower().endswith(EXTENSIONS))
        if not len(files):
            raise InputError(_nothing(root))
        label_from, names = _labels(files, label_from)
        if keep_encoded:
            fields = [Field("image", "uint8", (None,), kind="encoded")]
        else:
            size = _common_size(files, workers) if sizes_matter else None
            fields = [Field("image", "uint8", (*(size or (None, None)), 3), kind="image", layout="hwc")]
        labels = None
        if names is not None:
            classes = tuple(sorted(set(names)))  # str sorts by code point, which is the order of its UTF-8 bytes
            number = {name: i for i, name in enumerate(classes)}
            labels = np.fromiter((number[name] for name in names), np.int64, len(names))
            fields.append(Field("label", "int64", (), kind="label", classes=classes))
        return cls(files, Schema(tuple(fields)), labels, label_from)

    @property
    def inputs(self) -> int:
        return len(self.files)

    def plan(self) -> Sequence[Span]:
        image = self.schema["image"]
        if not image.ragged:
            return even_spans(len(self.files), min(SPAN_FILES, max(1, SPAN_BYTES // image.row_bytes)))
        spans, start, size = [], 0, 0
        for i, nbytes in enumerate(self.files.sizes.tolist()):
            size += nbytes
            if size >= SPAN_BYTES or i + 1 - start == SPAN_FILES:
                spans.append(Span(start, i + 1))
                start, size = i + 1, 0
        if start < len(self.files):
            spans.append(Span(start, len(self.files)))
        return spans

    def read(self, span: Span) -> Iterator[Block | Reject]:
        image = self.schema["image"]
        step = len(span) if image.ragged else max(1, SPAN_BYTES // image.row_bytes)
        for start in range(span.start, span.stop, step):
            yield from self._read(start, min(start + step, span.stop))

    def _read(self, start: int, stop: int) -> Iterator[Block | Reject]:
        image = self.schema["image"]
        room = None if image.ragged else np.empty((stop - start, *image.item_shape), np.uint8)
        encoded = image.kind == "encoded"
        paths = self._paths(start, stop)
        sizes = self.files.sizes[start:stop].tolist()
        first, rows, held = start, [], 0  # files `first` to `i` are read and not yet yielded
        for i in range(start, stop):
            at = i - start
            try:
                data = _bytes(paths[at], sizes[at])
                if room is not None:
                    decode.decode(data, room[at])
                elif encoded:
                    decode.probe(data)
                    rows.append(np.frombuffer(data, np.uint8))
                else:
                    rows.append(decode.decode(data))
            except (InputError, OSError) as error:
                if i > first:
                    yield self._block(first, i, rows if room is None else room[first - start : at])
                first, rows, held = i + 1, [], 0
                yield self._reject(i, error)
                continue
            if room is None:
                held += rows[-1].nbytes
                if held >= SPAN_BYTES:
                    yield self._block(first, i + 1, rows)
                    first, rows, held = i + 1, [], 0
        if stop > first:
            yield self._block(first, stop, rows if room is None else room[first - start :])

    def _block(self, start: int, stop: int, images: Array | list[Array]) -> Block:
        column = Ragged.of(images, self.schema["image"]) if isinstance(images, list) else images
        columns: dict[str, Column] = {"image": column}
        if self.labels is not None:
            columns["label"] = self.labels[start:stop].copy()  # a step may write into the block
        return Block(self.schema, columns, origins(np.arange(start, stop)))

    def _paths(self, start: int, stop: int) -> list[bytes]:
        root = os.path.join(os.fsencode(self.files.root), b"")
        ends = self.files.ends[start:stop].tolist()
        begin = int(self.files.ends[start - 1]) if start else 0
        return [root + self.files.names[a:b] for a, b in zip([begin, *ends], ends, strict=False)]

    def _reject(self, i: int, error: Exception) -> Reject:
        stage = "decode" if isinstance(error, decode.DecodeError) else "read"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Reject(self.files.name(i), 0, stage, reason)

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "kind": self.name,
            "files": len(self.files),
            "bytes": int(self.files.sizes.sum()),
            "label_from": self.label_from,
        }
        if self.labels is not None and self.label_from.startswith("csv:"):
            # The images don't tell these labels: a table that was edited makes another source.
            told["labels_sha256"] = hashlib.sha256(self.labels.astype("<i8").tobytes()).hexdigest()
        return told


def _bytes(path: bytes, size: int) -> bytes:
    if size > FILE_BYTES:
        raise InputError(f"{size} bytes are more than the {FILE_BYTES} that one image may have")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, size + 1)
    finally:
        os.close(fd)
    if len(data) != size:
        raise InputError(f"changed since it was listed with {size} bytes")
    return data


def _common_size(files: FileList, workers: int) -> tuple[int, int] | None:
    """Height and width if all images have the same; files that can't be read have none.

    Raises `InputError` when no file can be read.
    """
    sizes: set[tuple[int, int]] = set()

    def look(start: int) -> None:
        for i in range(start, min(start + SPAN_FILES, len(files))):
            if len(sizes) > 1:
                return  # already mixed: the others can't change that
            try:
                sizes.add(decode.probe_file(files.path(i)))
            except (InputError, OSError):
                continue  # becomes a reject when it is read

    starts = range(0, len(files), SPAN_FILES)
    if workers > 1:  # threads wait for the disk together; looking itself takes microseconds
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(look, starts):
                pass
    else:
        for start in starts:
            look(start)
    if not sizes:
        try:
            decode.probe_file(files.path(0))
            reason = "changed while it was read"
        except OSError as error:
            reason = error.strerror or str(error)
        except InputError as error:
            reason = str(error)
        raise InputError(f"none of {len(files)} images can be read. The first, {files.name(0)}: {reason}")
    return sizes.pop() if len(sizes) == 1 else None


def _labels(files: FileList, label_from: str | None) -> tuple[str, list[str] | None]:
    """Where labels come from, and the class name of every file."""
    names = [os.fsencode(files.name(i)) for i in range(len(files))]
    if label_from is None:
        loose = [name for name in names if b"/" not in name]
        if loose and len(loose) < len(names):
            raise InputError(
                f"{_text(loose[0])} lies outside of any class folder, {len(names) - len(loose)} other images in one.\n"
                "Move it, or say --label-from none"
            )
        label_from = "none" if loose else "folder"
    how, _, what = label_from.partition(":")
    if label_from == "none":
        return label_from, None
    if label_from == "folder":
        return label_from, _from_folders(names)
    if how == "name" and what:
        return label_from, _from_names(names, what)
    if how == "csv" and what:
        return f"csv:{Path(what).name}", _from_table(names, Path(what))
    raise UsageError(f"--label-from: {unknown('way', label_from, LABELS)}")


def _from_folders(names: list[bytes]) -> list[str]:
    for name in names:
        if b"/" not in name:
            raise InputError(f"{_text(name)} lies in no folder that could be its label")
    return [_text(name.split(b"/", 1)[0]) for name in names]


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


def _from_table(names: list[bytes], path: Path) -> list[str]:
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
            f"{path} has no label for {len(missing)} of {len(names)} images. The first: {_text(missing[0])}\n"
            f"Its first column must be paths relative to the folder of images; it has {example!r}"
        )
    return [table[name] for name in names]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")  # as JSON and terminals can't hold bytes that aren't UTF-8


def _nothing(root: Path) -> str:
    others = FileList.below(root, lambda _: True)
    counts = Counter(os.path.splitext(others.name(i))[1].lower() or "without suffix" for i in range(len(others)))
    listed = ", ".join(f"{n} {suffix}" for suffix, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))[:4])
    return f"{root}: no images in it (found {listed or 'no files'}).\nLooked for {' '.join(EXTENSIONS)}"
