"""Volumes in NIfTI-1 and NIfTI-2 files, `.nii` and `.nii.gz`: headers by nibabel, voxels read in pieces.

A volume has the axes of the file, `[x, y, z]` or `[x, y, z, t]`, and its affine takes indices to mm, in the orientation
that the header names best (sform, else qform). Slope and intercept are applied; `rescale.Rescale` has the rule for
the dtype. With `axis`, each index along that axis is a row of its own: the images of a time series, or the slices of a
volume. Extensions and descriptions, which may name a patient, are dropped. Pairs of `.hdr` and `.img` are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Block
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span
from bigconv.sources.filerows import FileRows, Labelling, OfFileRows, alike, common_shape, first_of, heads
from bigconv.sources.labels import Classes
from bigconv.sources.named import NamedFiles
from bigconv.sources.nifti_file import Voxels, fits, head_of, library
from bigconv.sources.rescale import common_dtype
from bigconv.sources.rowwise import SPAN_INPUTS


@dataclass(frozen=True, eq=False)
class Nifti(OfFileRows):
    """Each file is a row, or each index along `axis` of it, in bytewise order of the paths.

    Fields: `volume`, `[x, y, z, …]`, `affine`, float64 `[4, 4]`, from indices of the whole file to mm, and `label`,
    int64, where labels were asked for.
    """

    name: ClassVar[str] = "nifti"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "classes", "axis")
    hints: ClassVar[tuple[str, ...]] = ("workers",)

    rows: FileRows
    schema: Schema
    axis: int | None

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        label_from: str | None = None,
        classes: Classes | None = None,
        axis: int | None = None,
        workers: int = 1,
    ) -> Nifti:
        """List the files and read their headers.

        `label_from`, `classes`: see `labels`; none by default. `axis`: of the volumes, along which rows lie; -1 is
        the last. Raises `InputError`, `UsageError`, `MissingPackage`.
        """
        library()
        found = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "NIfTI files")
        told = heads(found, lambda path: fits(head_of(path), path, axis), "NIfTI files", workers)
        alike(found, told, "numbers of axes", lambda head: len(head.shape))
        axes = len(first_of(told).shape)
        if axis is not None:
            if not -axes <= axis < axes:
                raise UsageError(f"--axis {axis}: these volumes have {axes} axes")
            axis %= axes
        good = [head for head in told if head is not None]
        dtype = common_dtype([head.scale for head in good])
        shape = common_shape([head.row_shape(axis) for head in good])
        counts = [1 if head is None or axis is None else head.shape[axis] for head in told]
        sizes = [0 if head is None else math.prod(head.row_shape(axis)) * np.dtype(dtype).itemsize for head in told]
        rows = FileRows.of(found, counts, sizes, paths, Labelling(label_from, classes, "NIfTI files", "none"))
        fields = (
            Field("volume", dtype, shape, kind="volume"),
            Field("affine", "float64", (4, 4), "label"),  # numbers about the row: steps leave them alone
            *rows.label_fields,
        )
        return cls(rows, Schema(fields), axis)

    def plan(self) -> Sequence[Span]:
        packed = any(path.lower().endswith(".gz") for path in self.rows.found.paths)
        return self.rows.plan(least=SPAN_INPUTS if packed else 1)  # as each span unpacks from the beginning

    def read(self, span: Span) -> Iterator[Block | Reject]:
        with Voxels(self.axis, self.schema["volume"].dtype) as reader:

            def row(file: int, number: int) -> dict[str, Any]:
                head, volume = reader.row(self.rows.found.paths[file], number)
                return {"volume": volume, "affine": np.array(head.affine)}

            yield from self.rows.read(self.schema, span, row)

    def describe(self) -> dict[str, Any]:
        told = {"kind": self.name, **self.rows.told()}
        return told if self.axis is None else {**told, "axis": self.axis}
