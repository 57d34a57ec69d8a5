"""TIFF files of any depth and any number of pages: microscopy, OME-TIFF, ImageJ stacks, floats; read by tifffile.

Values come as they are stored, in native byte order: palettes as indices, MINISWHITE not inverted, orientation not
applied (what is to be seen as a picture is read by the source `images`). A file of one page is `image`
`[height, width, channels]`, which a conversion turns to channels first; one of several is `volume`, whose axes are
those that tifffile finds, such as `ZYX` or `TCYX`: the manifest keeps their names. Levels of a pyramid are left out;
a file with several pictures that make no volume is refused, and so are the planes that other files hold.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block
from bigconv.decode import DecodeError
from bigconv.errors import InputError
from bigconv.schema import DTYPES, Field, Schema
from bigconv.sources.base import Reject, Span
from bigconv.sources.filerows import (
    MAX_ROW_BYTES,
    FileRows,
    Labelling,
    OfFileRows,
    alike,
    common_shape,
    first_of,
    heads,
    reason,
)
from bigconv.sources.labels import Classes
from bigconv.sources.named import NamedFiles
from bigconv.sources.tiff_head import check_pages

MAX_PAGES = 1 << 20
IMAGE_AXES = ("YX", "YXS", "SYX")  # S: samples of a pixel, where they lie in one page


@dataclass(frozen=True)
class Head:
    """Axes as tifffile names them, their extents, and the dtype in native byte order."""

    axes: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Tiff(OfFileRows):
    """Each file is a row, in bytewise order of the paths.

    Fields: `image` or `volume`, of the files' dtype, and `label`, int64, where there are labels.
    """

    name: ClassVar[str] = "tiff"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "classes")
    hints: ClassVar[tuple[str, ...]] = ("workers",)

    rows: FileRows
    schema: Schema
    axes: str

    @classmethod
    def find(
        cls, paths: Sequence[Path], *, label_from: str | None = None, classes: Classes | None = None, workers: int = 1
    ) -> Tiff:
        """List the files, find their labels and read their headers.

        `label_from`, `classes`: see `labels`. Raises `InputError`, also when files differ in axes or dtype,
        `UsageError`, `MissingPackage`.
        """
        _library("tifffile")
        _library("imagecodecs")
        found = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "TIFF files")
        told = heads(found, _head, "TIFF files", workers)
        alike(found, told, "axes", lambda head: head.axes)
        alike(found, told, "dtypes", lambda head: head.dtype)
        first = first_of(told)
        shape = common_shape([head.shape for head in told if head is not None])
        sizes = [0 if head is None else math.prod(head.shape) * np.dtype(head.dtype).itemsize for head in told]
        rows = FileRows.of(found, [1] * len(found), sizes, paths, Labelling(label_from, classes, "TIFF files"))
        if first.axes == "YXS":
            field = Field("image", first.dtype, shape, kind="image", layout="hwc")
        else:
            field = Field("volume", first.dtype, shape, kind="volume")
        return cls(rows, Schema((field, *rows.label_fields)), first.axes)

    def read(self, span: Span) -> Iterator[Block | Reject]:
        yield from self.rows.read(self.schema, span, lambda file, _: self._row(self.rows.found.paths[file]))

    def _row(self, path: str) -> dict[str, Any]:
        field = self.schema.fields[0]
        with _opened(path) as series:
            head = _told(series)
            if (head.axes, head.dtype) != (self.axes, field.dtype):
                raise InputError(f"has axes {head.axes} of {head.dtype} instead of {self.axes} of {field.dtype}")
            _whole(series, os.stat(path).st_size)
            array = np.asarray(series.asarray(maxworkers=1))
        return {field.name: _native(array, head)}

    def describe(self) -> dict[str, Any]:
        return {"kind": self.name, **self.rows.told(), "axes": self.axes}


@functools.cache
def _library(name: str) -> Any:
    try:
        library = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise registry.missing(name, "tiff", "tiff") from error
    if name == "tifffile":  # or what it logs of odd tags goes to the terminal
        logging.getLogger("tifffile").addHandler(logging.NullHandler())
    return library


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The one series of pages in a file. Errors of tifffile and its codecs become `DecodeError`."""
    tifffile = _library("tifffile")
    check_pages(path, MAX_PAGES)
    try:
        with tifffile.TiffFile(path, _multifile=False) as file:  # opens no files that its XML names
            series = [one for one in file.series if one.kind != "thumbnail"]
            if len(series) != 1:
                sizes = ", ".join("x".join(map(str, one.shape)) for one in series[:4])
                what = f"{len(series)} pictures that make no volume ({sizes})" if series else "no picture"
                raise InputError(f"holds {what}")
            yield series[0]
    except (InputError, OSError):
        raise
    except MemoryError as error:
        raise DecodeError("does not fit in memory") from error
    except Exception as error:  # codecs raise whatever the damage leads to
        raise DecodeError(f"can't be decoded: {reason(error, path)}") from error


def _head(path: str) -> Head:
    """Raises `InputError`, `OSError`."""
    with _opened(path) as series:
        return _told(series)


def _told(series: Any) -> Head:
    axes, shape = str(series.axes), tuple(int(n) for n in series.shape)
    name = np.dtype(series.dtype).newbyteorder("=").name
    if name not in DTYPES:
        raise InputError(f"values of type {name} can't be stored")
    if not shape or any(n < 1 for n in shape):
        raise DecodeError(f"pages of shape {list(shape)}")
    nbytes = math.prod(shape) * np.dtype(name).itemsize
    if nbytes > MAX_ROW_BYTES:
        raise DecodeError(f"{nbytes} bytes of values are more than the {MAX_ROW_BYTES} that one row may have")
    if axes in IMAGE_AXES:
        height, width = shape[axes.index("Y")], shape[axes.index("X")]
        return Head("YXS", (height, width, shape[axes.index("S")] if "S" in axes else 1), name)
    return Head(axes, shape, name)


def _native(array: Array, head: Head) -> Array:
    """C-contiguous, of the shape and dtype that `head` says."""
    if head.axes == "YXS" and array.shape != head.shape:
        array = array[..., None] if array.ndim == 2 else np.moveaxis(array, 0, -1)
    if array.shape != head.shape:
        raise DecodeError(f"pages of shape {list(array.shape)} instead of {list(head.shape)}")
    return np.ascontiguousarray(array, head.dtype)


def _whole(series: Any, total: int) -> None:
    """Raise `DecodeError` where pixels lie behind the end of the file: some codecs fill them in."""
    for page in series.pages:
        if page is None:
            raise InputError("some of its planes are in other files")
        for offset, nbytes in zip(page.dataoffsets, page.databytecounts, strict=False):
            if offset + nbytes > total:
                raise DecodeError(f"cut short: pixels at byte {offset + nbytes} of {total}")
