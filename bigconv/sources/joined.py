"""Files of one folder joined on their stems: an image with its mask, its caption, its array.

`--field image=images/*.jpg --field mask=masks/*.png`: what the wildcards of a glob match, without an extension, is
the key, and files with one key make one row. So `*_img.png` and `*_mask.png` belong together as well, and so do files
in folders that `**` matches. Rows come in the order of the first field's files.

A key for which a field has no file, or several, is a reject. When no key is complete, that is an error.

Masks and volumes may be NIfTI; `affine` is then that of the first such field, and a mask has the shape of the volume.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import decode
from bigconv.block import Array, Block, Index
from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.schema import Field, Schema, unknown
from bigconv.sources import joined_scans, npy
from bigconv.sources.base import Reject, Span
from bigconv.sources.filelist import FileList
from bigconv.sources.joined_scans import AFFINE, are_scans, is_scan, scan, scan_field
from bigconv.sources.labels import Classes, class_names, numbered, told_of
from bigconv.sources.rowwise import Row, assembled, sized_spans
from bigconv.sources.tar_members import MAKERS, kind

KINDS = ("image", "mask", "volume", "array", "text", "label", "bytes")
HEAD_BYTES = 64 << 10  # 64 KiB: where nearly all headers end
FILE_BYTES = 1 << 30  # 1 GiB: twice the pixels of the largest image that is decoded
NONE, SEVERAL = -1, -2


@dataclass(frozen=True)
class Wanted:
    """What a user typed for a field: `NAME=GLOB`, or `NAME:KIND=GLOB` where name and extension don't tell the kind."""

    name: str
    kind: str | None
    glob: str

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Raises `UsageError`."""
        head, equals, glob = text.partition("=")
        name, colon, what = head.strip().partition(":")
        if not equals or not name or not glob.strip():
            raise UsageError(f"--field {text}: expected NAME=GLOB, such as image=images/*.jpg or mask=masks/*.png")
        if colon and what not in KINDS:
            raise UsageError(f"--field {text}: {unknown('kind', what, KINDS)}")
        if not what and (name == "mask" or name.endswith("_mask")):
            what = "mask"
        return cls(name, what or None, glob.strip().removeprefix("./"))

    def pattern(self) -> re.Pattern[str]:
        """Of relative paths; its groups are what the wildcards match. Raises `UsageError`."""
        glob = self.glob
        tail = "" if not glob.endswith(".*") else r"\.[^/.]*"
        glob = glob.removesuffix(".*") if tail else glob
        parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\]|\{[^{}/]*\})", glob)
        made = "".join(_regex(part) for part in parts)
        if not tail and parts[-1] == "" and len(parts) > 1:  # a wildcard at the end takes the extension along
            tail = r"(?:\.[^/.]*)?"
            made = made.removesuffix("([^/]*)") + "([^/]*?)" if made.endswith("([^/]*)") else made
        try:
            return re.compile(made + tail)
        except re.error as error:
            raise UsageError(f"--field {self.name}={self.glob}: not a glob: {error}") from error


def _regex(part: str) -> str:
    if part == "**/":
        return "((?:[^/]+/)*)"
    if part == "**":
        return "(.*)"
    if part == "*":
        return "([^/]*)"
    if part == "?":
        return "([^/])"
    if part.startswith("[") and part.endswith("]"):
        return "([^" + part[2:-1].replace("\\", r"\\") + "])" if part[1] in "!^" else f"({part})".replace("\\", r"\\")
    if part.startswith("{") and part.endswith("}"):
        return "(?:" + "|".join(map(re.escape, part[1:-1].split(","))) + ")"
    return re.escape(part)


@dataclass(frozen=True, eq=False)
class Joined:
    """Rows of files that have one key.

    `members`: int64 `[rows, fields]`, number of the file of each field, `NONE` or `SEVERAL`; `anchors`: int64
    `[rows]`, the file by which a row goes: that of the first field that has one. `labels`: int64 `[rows]`, or None.
    """

    name: ClassVar[str] = "joined"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("field", "keep_encoded", "label_from", "classes")
    hints: ClassVar[tuple[str, ...]] = ("sizes_matter",)

    files: FileList
    wanted: tuple[Wanted, ...]
    members: Index
    anchors: Index
    labels: Index | None
    label_from: str
    passed_over: int
    schema: Schema

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        field: Sequence[str] | str | None = None,
        keep_encoded: bool = False,
        label_from: str | None = None,
        classes: Classes | None = None,
        sizes_matter: bool = True,
    ) -> Joined:
        """List the folder, join, and look at headers as far as the fields depend on them.

        `field`: `NAME=GLOB` or `NAME:KIND=GLOB`, globs relative to the folder. Raises `InputError`, `UsageError`.
        """
        if len(paths) != 1 or not paths[0].is_dir():
            raise InputError("files are joined within one folder; give that folder alone, and --field NAME=GLOB")
        everything = FileList.below(paths[0], lambda _: True)
        if not len(everything):
            raise InputError(f"{paths[0]}: no files in it")
        wanted = tuple(Wanted.parse(text) for text in ([field] if isinstance(field, str) else field or ()))
        if not wanted:
            raise UsageError("files are joined by --field NAME=GLOB, such as --field image=images/*.jpg")
        if len({w.name for w in wanted}) < len(wanted):
            raise UsageError(f"--field: two of the same name: {', '.join(w.name for w in wanted)}")
        matched = [_matched(everything, w) for w in wanted]
        for w, keys in zip(wanted, matched, strict=True):
            if not keys:
                raise InputError(f"{paths[0]}: no file matches --field {w.name}={w.glob}.\n{_example(everything)}")
        members, anchors, used = _joined(matched)
        complete = (members >= 0).all(axis=1)
        if not complete.any():
            told = ", ".join(f"{w.name} has {min(keys)!r:.60}" for w, keys in zip(wanted, matched, strict=True))
            raise InputError(
                f"{paths[0]}: no stem has a file for each field: {told}.\nWildcards must match what they share"
            )
        files = everything.take(used)
        members = np.where(members >= 0, np.searchsorted(used, members), members)
        anchors = np.searchsorted(used, anchors)
        label_from, names = class_names(files.take(anchors), label_from or "none", "rows")
        source = cls(
            *(files, wanted, members, anchors, None, label_from, len(everything) - _count(matched)),
            Schema((Field("unknown", "uint8"),)),
        )
        fields = [source._field(number, w, keep_encoded, sizes_matter) for number, w in enumerate(wanted)]
        if any(is_scan(f) for f in fields):
            fields.append(Field(AFFINE, "float64", (4, 4), "label"))
        labels = None
        if names is not None:
            label, labels = numbered(names, classes)
            fields.append(label)
        elif classes is not None:
            raise UsageError("--classes needs labels: say where they come from with --label-from")
        try:
            return replace(source, labels=labels, schema=Schema(tuple(fields)))
        except SchemaError as error:
            raise UsageError(f"--field: {error}") from error

    @property
    def inputs(self) -> int:
        return len(self.members)

    def plan(self) -> Sequence[Span]:
        sizes = np.where(self.members >= 0, self.files.sizes[np.maximum(self.members, 0)], 0).sum(axis=1)
        fixed = sum(f.row_bytes for f in self.schema if not f.ragged)
        return sized_spans(np.minimum(sizes, FILE_BYTES) + fixed)

    def read(self, span: Span) -> Iterator[Block | Reject]:
        yield from assembled(self.schema, range(span.start, span.stop), self._row, self._place, self.files)

    def _place(self, i: int) -> tuple[int, int]:
        return int(self.anchors[i]), 0

    def _row(self, i: int) -> Row:
        row: dict[str, Array] = {}
        for w, number in zip(self.wanted, self.members[i].tolist(), strict=True):
            if number == NONE:
                raise InputError(f"no file for field {w.name}: none of {w.glob} has its stem")
            if number == SEVERAL:
                raise InputError(f"several files for field {w.name}: more than one of {w.glob} has its stem")
        for w, number in zip(self.wanted, self.members[i].tolist(), strict=True):
            field = self.schema[w.name]
            try:
                if is_scan(field):
                    row[w.name], affine = scan(self.files.path(number), field)
                    row.setdefault(AFFINE, affine)
                else:
                    row[w.name] = _made(_bytes(self.files, number), field)
            except (InputError, OSError) as error:
                if number == self.anchors[i]:
                    raise
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise type(error)(f"{self.files.name(number)}: {why}") from error
        _lie_alike(row, self.schema)
        if self.labels is not None:
            row["label"] = np.array(self.labels[i])
        return row

    def _field(self, number: int, wanted: Wanted, keep_encoded: bool, sizes_matter: bool) -> Field:
        """Raises `InputError`, `UsageError`."""
        numbers = [n for n in self.members[:, number].tolist() if n >= 0]
        what = wanted.kind or _kind(self.files, numbers, wanted)
        try:
            if are_scans([self.files.name(n) for n in numbers], wanted.kind):
                paths = [self.files.path(n) for n in numbers]
                return scan_field(paths, wanted.name, "mask" if what == "mask" else "volume")
            if what == "image" and keep_encoded:
                return Field(wanted.name, "uint8", (None,), kind="encoded")
            if what == "image":
                size = _common(self.files, numbers, decode.probe) if sizes_matter else None
                return Field(wanted.name, "uint8", (*(size or (None, None)), 3), kind="image", layout="hwc")
            if what == "mask":
                return _mask_field(self.files, numbers, wanted.name)
            if what == "array":
                return _array_field(self.files, numbers, wanted.name)
            if what == "label":
                return Field(wanted.name, "int64", (), kind="label")
            return Field(wanted.name, "uint8", (None,), kind=what)
        except SchemaError as error:
            raise UsageError(f"--field {wanted.name}={wanted.glob}: {error}") from error

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.files),
            "bytes": int(self.files.sizes.sum()),
            "rows": self.inputs,
            "unmatched": int((self.members < 0).any(axis=1).sum()),
            "passed_over": self.passed_over,
            **told_of(self.label_from, self.labels),
        }


def _matched(files: FileList, wanted: Wanted) -> dict[str, list[int]]:
    """Key -> numbers of the files that have it."""
    pattern, found = wanted.pattern(), dict[str, list[int]]()
    for i in range(len(files)):
        name = files.name(i)
        match = pattern.fullmatch(name)
        if match is not None:
            key = "\0".join(match.groups()) or os.path.splitext(os.path.basename(name))[0]
            found.setdefault(key, []).append(i)
    return found


def _joined(matched: Sequence[dict[str, list[int]]]) -> tuple[Index, Index, Index]:
    """Members and anchors as numbers of all files, rows in the order of the anchors; and the files that are used."""
    rows = []
    for key in dict.fromkeys(key for keys in matched for key in keys):
        numbers = [keys.get(key, []) for keys in matched]
        anchor = next(some[0] for some in numbers if some)
        rows.append((anchor, [some[0] if len(some) == 1 else SEVERAL if some else NONE for some in numbers]))
    rows.sort()
    members = np.array([row for _, row in rows], np.int64)
    anchors = np.array([anchor for anchor, _ in rows], np.int64)
    used = np.unique(np.concatenate([members.ravel(), anchors]))
    return members, anchors, used[used >= 0]


def _count(matched: Sequence[dict[str, list[int]]]) -> int:
    return len({number for keys in matched for some in keys.values() for number in some})


def _example(files: FileList) -> str:
    return f"Globs are relative to the folder; its first file is {files.name(0)!r:.100}"


def _kind(files: FileList, numbers: Sequence[int], wanted: Wanted) -> str:
    """What the extensions say."""
    kinds = {kind(os.path.splitext(files.name(n))[1].lower().removeprefix(".")): n for n in numbers}
    if len(kinds) > 1:
        told = ", ".join(f"{files.name(n)!r:.60} is {what}" for what, n in sorted(kinds.items()))
        raise InputError(f"--field {wanted.name}={wanted.glob}: files of several kinds: {told}")
    return next(iter(kinds))


def _bytes(files: FileList, number: int, most: int | None = None) -> bytes:
    """A file, or its first `most` bytes. Raises `InputError`, `OSError`."""
    size = int(files.sizes[number])
    if size > FILE_BYTES:
        raise InputError(f"{size} bytes are more than the {FILE_BYTES} that one file may have")
    fd = os.open(files.paths(number, number + 1)[0], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        if most is not None and most < size:
            return file.read(most)
        data = file.read(size + 1)
    if len(data) != size:
        raise InputError(f"changed since it was listed with {size} bytes")
    return data


def _heads(files: FileList, numbers: Sequence[int]) -> Iterator[tuple[bytes, Callable[[], bytes]]]:
    for number in numbers:
        try:
            yield _bytes(files, number, HEAD_BYTES), lambda number=number: _bytes(files, number)  # type: ignore[misc]
        except (InputError, OSError):
            continue  # becomes a reject when it is read


def _common(
    files: FileList, numbers: Sequence[int], probe: Callable[[bytes], tuple[int, int]]
) -> tuple[int, int] | None:
    """Height and width if all have the same; those that can't be read have none."""
    seen: set[tuple[int, int]] = set()
    for head, whole in _heads(files, numbers):
        try:
            seen.add(probe(head))
        except InputError:
            try:
                seen.add(probe(whole()))
            except (InputError, OSError):
                continue
        if len(seen) > 1:
            return None
    return seen.pop() if seen else None


def _mask_field(files: FileList, numbers: Sequence[int], name: str) -> Field:
    """A dtype that holds all masks."""
    dtypes: set[str] = set()
    failed = ""

    def probe(data: bytes) -> tuple[int, int]:
        nonlocal failed
        try:
            height, width, dtype = decode.probe_mask(data)
        except InputError as error:
            failed = str(error)
            raise
        dtypes.add(dtype)
        return height, width

    sizes = {_common(files, [number], probe) for number in numbers} - {None}
    if not dtypes:
        raise InputError(
            f"--field {name}: none of {len(numbers)} masks can be read. {files.name(numbers[0])}: {failed}"
        )
    size = sizes.pop() if len(sizes) == 1 else None
    return Field(name, np.result_type(*dtypes).name, size or (None, None), kind="mask")


def _array_field(files: FileList, numbers: Sequence[int], name: str) -> Field:
    """The first array says dtype and axes; extents that differ vary."""
    dtype, shape = "", None
    for head, _ in _heads(files, numbers):
        try:
            found = npy.read_header(io.BytesIO(head), name)
        except InputError:
            continue
        if shape is None:
            dtype, shape = found[0], list[int | None](found[1])
        elif len(shape) == len(found[1]):
            shape = [a if a == b else None for a, b in zip(shape, found[1], strict=True)]
    if shape is None:
        npy.read_header(io.BytesIO(_bytes(files, numbers[0])), files.name(numbers[0]))  # raises, saying why
        raise InputError(f"--field {name}: none of its files is an array that can be read")
    return npy.field_of(name, dtype, shape, f"--field {name}")


def _made(data: bytes, field: Field) -> Array:
    """Raises `InputError`."""
    if field.kind != "mask":
        return MAKERS[field.kind](data, field)
    mask = decode.decode_mask(data)
    return mask.astype(field.dtype)


def _lie_alike(row: Row, schema: Schema) -> None:
    """A mask whose sides are those of its image exchanged was made without heeding that the image is turned."""
    joined_scans.lie_alike(row, schema)
    for image in (f for f in schema if f.kind == "image" and f.name in row):
        size = row[image.name].shape[:2]
        for mask in (f for f in schema if f.kind == "mask" and f.name in row):
            if size[0] != size[1] and row[mask.name].shape == size[::-1]:
                raise InputError(
                    f"{mask.name} has {size[1]}x{size[0]} pixels, {image.name} {size[0]}x{size[1]} as EXIF turns it: "
                    "they lie across one another"
                )
