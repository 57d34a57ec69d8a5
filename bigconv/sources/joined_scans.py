"""NIfTI files among those that are joined: volumes, and masks of volumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigconv import registry
from bigconv.block import Array
from bigconv.errors import InputError
from bigconv.schema import Field, Schema
from bigconv.sources.filerows import common_shape
from bigconv.sources.nifti_file import Head, Voxels, fits, head_of, library
from bigconv.sources.rescale import common_dtype
from bigconv.sources.rowwise import Row

AFFINE = "affine"  # of the first such field
MASK_OF_FLOATS = "int16"  # dtype of masks that others save as floats


def are_scans(names: Sequence[str], kind: str | None) -> bool:
    """Whether a field is of NIfTI files, which are no bytes unless that is asked for. Raises `InputError`."""
    extensions = registry.SOURCES["nifti"].extensions
    other = next((name for name in names if not name.lower().endswith(extensions)), None)
    if kind == "volume" and other is not None:
        raise InputError(f"{other!r:.80}: volumes that are joined are NIfTI files, {' '.join(extensions)}")
    return other is None and kind in ("volume", "mask", None)


def is_scan(field: Field) -> bool:
    return field.kind == "volume" or (field.kind == "mask" and len(field.shape) > 2)


def scan_field(paths: Sequence[str], name: str, kind: str) -> Field:
    """A dtype that holds the voxels of all, and their extents, as far as they are alike.

    Raises `InputError`, `MissingPackage`.
    """
    library()
    found: list[Head] = []
    failed = ""
    for path in paths:
        try:
            found.append(fits(head_of(path), path))
        except (InputError, OSError) as error:
            failed = f"{path}: {error}"  # becomes a reject when it is read
    if not found:
        raise InputError(f"--field {name}: none of {len(paths)} volumes can be read. {failed}")
    if len({len(head.shape) for head in found}) > 1 or len(found[0].shape) < 3:
        raise InputError(f"--field {name}: volumes need three axes or more, all of them as many")
    dtype = common_dtype([head.scale for head in found])
    if kind == "mask" and np.dtype(dtype).kind not in "iub":
        dtype = MASK_OF_FLOATS
    return Field(name, dtype, common_shape([head.shape for head in found]), kind=kind)


def scan(path: str, field: Field) -> tuple[Array, Array]:
    """Voxels, `field.dtype`, and the affine, float64 `[4, 4]`. Raises `InputError`, `OSError`."""
    own = common_dtype([head_of(path).scale]) if field.kind == "mask" else field.dtype
    with Voxels(None, own) as voxels:
        head, values = voxels.row(path, 0)
    if values.dtype != field.dtype:
        with np.errstate(invalid="ignore"):
            whole = values.astype(field.dtype)
        if not (whole == values).all():
            raise InputError(f"{field.name} has voxels that are no whole numbers of {field.dtype}, so no classes")
        values = whole
    return values, np.array(head.affine)


def lie_alike(row: Row, schema: Schema) -> None:
    """Raise `InputError` for a mask of another shape than its volume."""
    for volume in (f for f in schema if f.kind == "volume" and f.name in row):
        for mask in (f for f in schema if f.kind == "mask" and f.name in row):
            if row[mask.name].shape != row[volume.name].shape:
                told = [" x ".join(map(str, row[name].shape)) for name in (mask.name, volume.name)]
                raise InputError(f"{mask.name} has {told[0]} voxels, {volume.name} {told[1]}")
