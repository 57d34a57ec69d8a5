"""DICOM series, each one volume: pydicom reads them; pylibjpeg's plug-ins and Pillow decode what is compressed.

A series is the slices of one Series Instance UID; a file that has no position in the patient (an X-ray), or several
frames, is one by itself. Slices are sorted by position along the normal of their planes, never by name or number.
Then every axis of the volume `[slices, rows, columns]` is turned, without interpolation, so that it runs towards the
patient's left, back or head, whichever it is closest to: a series that was stored flipped comes out the same.

Refused, by name: gaps, uneven distances, two slices at one place, slices that differ in size, spacing or direction, a
tilted gantry, colour. Rescale slope and intercept are applied, slice by slice; `rescale.Rescale` has the rule for
the dtype. MONOCHROME1 stays as stored. Every other tag is dropped, those that name a patient first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block, Index
from bigconv.decode import DecodeError
from bigconv.errors import InputError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span
from bigconv.sources.dicom_geometry import Geometry, Plane, arranged
from bigconv.sources.dicom_slices import Slices, header, pixels, pydicom
from bigconv.sources.filelist import FileList
from bigconv.sources.filerows import MAX_ROW_BYTES, Labelling, common_shape, heads
from bigconv.sources.labels import Classes, told_of
from bigconv.sources.named import NamedFiles
from bigconv.sources.rescale import Rescale, common_dtype
from bigconv.sources.rowwise import Row, assembled, sized_spans

MAGIC_AT = 128  # bytes before DICM (PS3.10, 7.1)


@dataclass(frozen=True, eq=False)
class Dicom:
    """Each series is a row, in the order of its first file, which a reject names too.

    Fields: `volume`, `[slices, rows, columns]`; `spacing`, float64 `[3]`, mm along these axes; `orientation`, float64
    `[3, 3]`, a unit vector for each axis, and `origin`, float64 `[3]`, mm, the centre of the first voxel, in
    patient coordinates (left, back, head); NaN where nothing tells; `label`, int64, where labels were asked for.
    `ends`: int64 `[series]`, where each one ends in `members`: int64 `[files]`, numbers of files; `label_from` and
    `labels` (int64 `[series]`): by the first file's path.
    """

    name: ClassVar[str] = "dicom"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "classes")
    hints: ClassVar[tuple[str, ...]] = ("workers",)

    found: NamedFiles
    schema: Schema
    ends: Index
    members: Index
    sizes: Index
    label_from: str
    labels: Index | None

    @classmethod
    def find(
        cls, paths: Sequence[Path], *, label_from: str | None = None, classes: Classes | None = None, workers: int = 1
    ) -> Dicom:
        """List the files, read their headers and sort them into series.

        `label_from`, `classes`: see `labels`; none by default. Raises `InputError`, `UsageError`, `MissingPackage`.
        """
        pydicom()
        found = _listed(paths)
        number = {path: i for i, path in enumerate(found.paths)}
        told = heads(found, lambda path: header(path, number[path]), "DICOM files", workers)
        groups = _series(found, told)
        shapes: list[tuple[int, ...] | None] = []
        for group in groups:
            try:
                shapes.append(_shape(_planned(found, told, group)[0], told, group))
            except InputError:
                shapes.append(None)  # becomes a reject when it is read
        good = [shape for shape in shapes if shape is not None]
        if not good:
            _planned(found, told, groups[0])  # raises, saying why
        scales = [
            scale
            for group, shape in zip(groups, shapes, strict=True)
            if shape is not None
            for scale in _scales(told, group)
        ]
        dtype = common_dtype(scales)
        label_from, label, labels = Labelling(label_from, classes, "series", "none").of(_firsts(found, groups), paths)
        geometry = (("spacing", (3,)), ("orientation", (3, 3)), ("origin", (3,)))
        fields = [
            Field("volume", dtype, common_shape(good), kind="volume"),
            *(Field(name, "float64", shape, "label") for name, shape in geometry),  # steps leave them alone
        ]
        nbytes = [0 if s is None else int(np.prod(s)) * np.dtype(dtype).itemsize for s in shapes]
        return cls(
            found,
            Schema(tuple(fields if label is None else [*fields, label])),
            np.cumsum([len(group) for group in groups], dtype=np.int64),
            np.array([i for group in groups for i in group], np.int64),
            np.array(nbytes, np.int64),
            label_from,
            labels,
        )

    @property
    def files(self) -> FileList:
        return self.found.files

    @property
    def inputs(self) -> int:
        return len(self.ends)

    def plan(self) -> Sequence[Span]:
        return sized_spans(self.sizes)

    def read(self, span: Span) -> Iterator[Block | Reject]:
        def first(i: int) -> tuple[int, int]:
            return self._group(i)[0], 0

        yield from assembled(self.schema, range(span.start, span.stop), self._row, first, self.files)

    def _group(self, i: int) -> list[int]:
        members: list[int] = self.members[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])].tolist()
        return members

    def _row(self, i: int) -> Row:
        group = self._group(i)
        told: dict[int, Slices] = {}
        for file in group:
            self.found.unchanged(file)
            with _named(self.found.name(file), len(group)):
                told[file] = header(self.found.paths[file], file)
        geometry, scales = _planned(self.found, told, group)
        row = {
            "volume": self._volume(told, group, geometry, scales),
            "spacing": geometry.spacing,
            "orientation": geometry.orientation,
            "origin": geometry.origin,
        }
        if self.labels is not None:
            row["label"] = np.array(self.labels[i])
        return row

    def _volume(
        self, told: dict[int, Slices], group: list[int], geometry: Geometry, scales: Sequence[Rescale]
    ) -> Array:
        dtype = self.schema["volume"].dtype
        shape = told[group[0]].planes[0].shape
        volume = np.empty((len(geometry.order), *shape), dtype)
        where = np.empty(len(geometry.order), np.int64)  # slice of each plane
        where[geometry.order] = np.arange(len(where))
        done = 0
        for file in group:
            with _named(self.found.name(file), len(group)):
                for stored in pixels(self.found.paths[file], told[file]):
                    volume[where[done]] = scales[done].apply(stored, dtype)
                    done += 1
        return np.ascontiguousarray(np.flip(volume, geometry.flips))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.files),
            "bytes": int(self.files.sizes.sum()),
            "series": len(self.ends),
            **told_of(self.label_from, self.labels),
        }


def _listed(paths: Sequence[Path]) -> NamedFiles:
    """Files by their extension; in a folder where none has it, those with DICM where a DICOM file has it."""
    extensions = registry.SOURCES[Dicom.name].extensions
    if not (len(paths) == 1 and paths[0].is_dir()):
        return NamedFiles.of(paths, extensions, "DICOM files")
    files = FileList.below(paths[0], lambda name: name.lower().endswith(extensions))
    if not len(files):
        every = FileList.below(paths[0], lambda name: name.upper() != "DICOMDIR")
        files = every.take(np.array([i for i in range(len(every)) if _is_dicom(every.path(i))], np.int64))
    if not len(files):
        raise InputError(f"{paths[0]}: no DICOM files in it.\nLooked for {' '.join(extensions)}, and for DICM inside")
    return NamedFiles(files, tuple(files.path(i) for i in range(len(files))))


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(MAGIC_AT + 4)[MAGIC_AT:] == b"DICM"
    except OSError:
        return False


def _firsts(found: NamedFiles, groups: Sequence[Sequence[int]]) -> NamedFiles:
    """The first file of each series."""
    firsts = [group[0] for group in groups]
    return NamedFiles(found.files.take(np.array(firsts, np.int64)), tuple(found.paths[i] for i in firsts))


def _series(found: NamedFiles, told: Sequence[Slices | None]) -> list[list[int]]:
    """Numbers of the files of each series, in order.

    A file that can't be read belongs to the one series in its folder, which it spoils: a volume that lacks its last
    slice looks whole. Where there are several or none, it is an input by itself, and becomes a reject.
    """
    by_uid: dict[str, list[int]] = {}
    alone: list[list[int]] = []
    bad: list[int] = []
    in_folder: dict[str, set[str]] = {}
    for i, slices in enumerate(told):
        if slices is None:
            bad.append(i)
        elif slices.series is None:
            alone.append([i])
        else:
            by_uid.setdefault(slices.series, []).append(i)
            in_folder.setdefault(os.path.dirname(found.name(i)), set()).add(slices.series)
    for i in bad:
        near = in_folder.get(os.path.dirname(found.name(i)), set())
        if len(near) == 1:
            by_uid[next(iter(near))].append(i)
        else:
            alone.append([i])
    return sorted([*(sorted(group) for group in by_uid.values()), *alone])


def _planned(
    found: NamedFiles, told: Sequence[Slices | None] | Mapping[int, Slices], group: Sequence[int]
) -> tuple[Geometry, list[Rescale]]:
    """How the planes of a series, file by file, make a volume. Raises `InputError` where they don't."""
    planes: list[Plane] = []
    names: list[str] = []
    for i in group:
        slices = told[i]
        if slices is None:
            raise InputError(f"{found.name(i)} can't be read")
        planes += slices.planes
        many = len(slices.planes) > 1
        names += [f"frame {n} of {found.name(i)}" if many else found.name(i) for n in range(len(slices.planes))]
    height, width = planes[0].shape
    if len(planes) * height * width * 2 > MAX_ROW_BYTES:  # 2 bytes a voxel, mostly
        raise InputError(f"{len(planes)} slices of {height}x{width} pixels are more than {MAX_ROW_BYTES} bytes")
    return arranged(planes, names), _scales(told, group)


def _scales(told: Sequence[Slices | None] | Mapping[int, Slices], group: Sequence[int]) -> list[Rescale]:
    return [scale for i in group if (slices := told[i]) is not None for scale in slices.scales]


def _shape(geometry: Geometry, told: Sequence[Slices | None], group: Sequence[int]) -> tuple[int, ...]:
    slices = told[group[0]]
    assert slices is not None
    return (len(geometry.order), *slices.planes[0].shape)


@contextlib.contextmanager
def _named(name: str, files: int) -> Iterator[None]:
    """Errors of one file of several say which: the reject names the first."""
    try:
        yield
    except (InputError, OSError) as error:
        if files == 1:
            raise
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise (DecodeError if isinstance(error, DecodeError) else InputError)(f"{name}: {why}") from error
