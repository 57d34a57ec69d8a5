"""A folder of images, with labels from the folders, the names or a table."""

from __future__ import annotations

import os
import struct
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash

from bigconv import decode, registry
from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import SPAN_BYTES, Reject, Span, even_spans, origins
from bigconv.sources.filelist import FileList
from bigconv.sources.labels import Classes, class_names, numbered, told_of
from bigconv.sources.room import Room

EXTENSIONS = registry.SOURCES["images"].extensions
#: Pictures, too, that a folder may hold beside others without anybody knowing that they are not taken.
UNREAD = (
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".tga", ".ico", ".psd", ".exr", ".hdr", ".svg", ".pcx", ".dds"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
)
RATIO = 8  # of a photo's pixels to its file, about: spans are planned before anything is decoded
SPAN_FILES = 256  # so that millions of tiny files are not millions of spans, and a retry is short
FILE_BYTES = 1 << 30  # 1 GiB: twice the pixels of the largest image that is decoded
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
SLOW_SECONDS = 20e-6  # a header that takes longer isn't in memory: looking itself takes 4 us
ROOM_BYTES = SPAN_BYTES + SPAN_BYTES // 4  # of a block of images of any size: the last one reaches over


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Each image below a folder is a row, in bytewise order of the paths.

    Fields: `image`, uint8 `[height, width, 3]` (or the file as it is, uint8 `[bytes]`), and `label`, int64, where there
    are labels. `labels`: int64 `[files]`, or None. `label_from`: where they came from, with no path of this machine.
    """

    name: ClassVar[str] = "images"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "classes", "keep_encoded")
    hints: ClassVar[tuple[str, ...]] = ("workers", "sizes_matter")

    files: FileList
    schema: Schema
    labels: Index | None
    label_from: str
    notes: tuple[str, ...] = ()  # pictures that nothing here decodes, and labels that look like splits

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        label_from: str | None = None,
        classes: Classes | None = None,
        keep_encoded: bool = False,
        workers: int = 1,
        sizes_matter: bool = True,
    ) -> ImageFolder:
        """List the images, find their labels and look at their sizes.

        `label_from`: `folder` (the first folder below `paths[0]`; what is done by default when no image lies outside
        of one), `name:REGEX` (group 1, or else the match, in the relative path), `csv:FILE` (two columns, file and
        label; rows on other files, such as a header, are passed over) or `none`. Classes are sorted bytewise, or as in
        `classes`: a file, a store or a list.
        `sizes_matter=False` looks into no file: sizes then vary. Raises `InputError`, `UsageError`.
        """
        if len(paths) != 1 or not paths[0].is_dir():
            raise InputError("images are converted from one folder; give that folder alone")
        root = paths[0]
        others: Counter[str] = Counter()

        def wanted(name: str) -> bool:
            if name.lower().endswith(EXTENSIONS):
                return True
            others[os.path.splitext(name)[1].lower()] += 1
            return False

        files = FileList.below(root, wanted)
        if not len(files):
            raise InputError(_nothing(root))
        unread = ", ".join(f"{others[end]:,} {end}" for end in UNREAD if others[end])
        notes: tuple[str, ...] = (
            (f"left out, as no decoder here reads them: {unread}. Convert them to PNG or JPEG first",) if unread else ()
        )
        label_from, names = class_names(files, label_from, cls.name)
        if keep_encoded:
            fields = [Field("image", "uint8", (None,), kind="encoded")]
        else:
            size = _common_size(files, workers) if sizes_matter else None
            fields = [Field("image", "uint8", (*(size or (None, None)), 3), kind="image", layout="hwc")]
        labels = None
        if names is not None:
            label, labels = numbered(names, classes)
            fields.append(label)
            notes += _splits(label.classes or ()) if label_from == "folder" else ()
        elif classes is not None:
            raise UsageError("--classes needs labels: say where they come from with --label-from")
        return cls(files, Schema(tuple(fields)), labels, label_from, notes)

    @property
    def inputs(self) -> int:
        return len(self.files)

    def plan(self) -> Sequence[Span]:
        image = self.schema["image"]
        if not image.ragged:
            return even_spans(len(self.files), min(SPAN_FILES, max(1, SPAN_BYTES // image.row_bytes)))
        spans, start, size = [], 0, 0
        most = SPAN_BYTES if image.kind == "encoded" else SPAN_BYTES // RATIO
        for i, nbytes in enumerate(self.files.sizes.tolist()):
            size += nbytes
            if size >= most or i + 1 - start == SPAN_FILES:
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
        digests: dict[int, tuple[int, int]] = {}
        size = ROOM_BYTES if image.ragged else (stop - start) * image.row_bytes
        one_size = None if image.ragged else image.item_shape
        encoded = image.kind == "encoded"

        def place(height: int, width: int) -> Array:
            if one_size is not None:
                decode.same_size(height, width, one_size)
            return room.place(height * width * 3).reshape(height, width, 3)

        room = Room(size)
        self.__dict__["_digests"] = digests
        shapes: list[tuple[int, ...]] = []  # of the images in the room: they end before file `i`
        paths = self.files.paths(start, stop)
        for i, path, nbytes in zip(range(start, stop), paths, self.files.sizes[start:stop].tolist(), strict=True):
            bad = None
            try:
                data = _bytes(path, nbytes)
                if encoded:
                    decode.probe(data)
                    room.place(nbytes)[:] = np.frombuffer(data, np.uint8)
                    shapes.append((nbytes,))
                else:
                    shapes.append(decode.decode(data, place).shape)
                room.keep()
                digests[i] = struct.unpack(">qq", xxhash.xxh3_128_digest(data))
            except (InputError, OSError) as error:
                bad = self._reject(i, error)
            if bad is None and (not image.ragged or room.kept.nbytes < SPAN_BYTES):
                continue
            if shapes:
                yield self._block(i + (bad is None), shapes, room.kept)
                shapes = []
                room = Room(size)
            if bad is not None:
                yield bad
        if shapes:
            yield self._block(stop, shapes, room.kept)

    def _block(self, stop: int, shapes: list[tuple[int, ...]], values: Array) -> Block:
        """The images of the files that end before `stop`. `values`: uint8 `[bytes]`, one after another."""
        image, start = self.schema["image"], stop - len(shapes)
        column: Column
        if image.ragged:
            extents = np.array(shapes, np.int64)
            ends = np.concatenate([[0], np.cumsum(np.prod(extents, axis=1))])
            column = Ragged(values, ends, extents if image.has_shapes else None)
        else:
            column = values.reshape(len(shapes), *image.item_shape)
        columns: dict[str, Column] = {"image": column}
        if self.labels is not None:
            columns["label"] = self.labels[start:stop].copy()  # a step may write into the block
        return Block(self.schema, columns, origins(np.arange(start, stop)))

    def file_digest(self, i: int) -> tuple[int, int]:
        """As `FileList.digest`; of files that were just read, from the bytes that their rows were made of."""
        found: tuple[int, int] | None = self.__dict__.get("_digests", {}).get(i)
        return found or self.files.digest(i)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_digests"}

    def _reject(self, i: int, error: Exception) -> Reject:
        stage = "decode" if isinstance(error, decode.DecodeError) else "read"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Reject(self.files.name(i), 0, stage, reason)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.files),
            "bytes": int(self.files.sizes.sum()),
            **told_of(self.label_from, self.labels),
        }


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
        for path in files.paths(start, min(start + SPAN_FILES, len(files))):
            if len(sizes) > 1:
                return  # already mixed: the others can't change that
            try:
                sizes.add(decode.probe_file(path))
            except (InputError, OSError):
                continue  # becomes a reject when it is read

    starts = deque(range(0, len(files), SPAN_FILES))
    while starts:
        begun = time.perf_counter()
        look(starts.popleft())
        if workers > 1 and time.perf_counter() - begun > SPAN_FILES * SLOW_SECONDS:
            break
    if starts:  # threads wait for the disk together; where nobody waits for it they only stand in each other's way
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(look, starts):
                pass
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


def _nothing(root: Path) -> str:
    others = FileList.below(root, lambda _: True)
    counts = Counter(os.path.splitext(others.name(i))[1].lower() or "without suffix" for i in range(len(others)))
    listed = ", ".join(f"{n} {suffix}" for suffix, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))[:4])
    return f"{root}: no images in it (found {listed or 'no files'}).\nLooked for {' '.join(EXTENSIONS)}"


def _splits(classes: Sequence[str]) -> tuple[str, ...]:
    """A hint, where labels are called like splits, not classes."""
    if not {name.lower() for name in classes} <= SPLITS:
        return ()
    told = f"the labels are {', '.join(classes)}, as the folders right below SOURCE are called"
    return (f"{told}. If these are splits, convert each on its own; --classes STORE keeps the classes' numbers",)
