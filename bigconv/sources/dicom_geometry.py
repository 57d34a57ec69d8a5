"""Where slices lie in the patient: their order, their distances, and axes that run the same way in every series.

Patient coordinates are those of DICOM (PS3.3, C.7.6.2): mm towards the left, the back and the head. An axis of a
volume is turned so that it runs towards the one of these that it is closest to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import InputError

TOLERANCE = 0.01  # of the distance of two slices: positions are written in decimals
PARALLEL = 1e-4  # how much direction cosines of one series may differ


@dataclass(frozen=True)
class Plane:
    """One slice as its header tells: mm, and unit vectors of rows and columns in patient coordinates.

    `position`: of the centre of the first pixel; `along_row`: the way that the column index grows; `along_column`: the
    way that the row index grows; `pixel`: distance of rows, and of columns; `thickness`: None where nothing tells.
    The first three are None for an image that has no place in the patient.
    """

    file: int
    frame: int
    shape: tuple[int, int]
    pixel: tuple[float, float] | None
    position: tuple[float, ...] | None
    along_row: tuple[float, ...] | None
    along_column: tuple[float, ...] | None
    thickness: float | None


@dataclass(frozen=True, eq=False)
class Geometry:
    """`order`: int64 `[slices]`, the planes from the first slice to the last; `flips`: the axes that are turned.

    `spacing`: float64 `[3]`, mm between slices, rows and columns, NaN where nothing tells; `orientation`: float64
    `[3, 3]`, a unit vector for each axis of the volume; `origin`: float64 `[3]`, mm, of the first voxel.
    """

    order: Index
    flips: tuple[int, ...]
    spacing: Array
    orientation: Array
    origin: Array


def arranged(planes: Sequence[Plane], names: Sequence[str]) -> Geometry:
    """How planes make a volume. `names`: of each, for messages. Raises `InputError` where they don't."""
    first = planes[0]
    for plane, name in zip(planes, names, strict=True):
        if plane.shape != first.shape:
            raise InputError(f"{name} has {_by(plane.shape)} pixels, {names[0]} {_by(first.shape)}")
        if not _close(plane.pixel, first.pixel):
            raise InputError(f"{name} has a pixel spacing of {plane.pixel} mm, {names[0]} of {first.pixel} mm")
        if not (_close(plane.along_row, first.along_row) and _close(plane.along_column, first.along_column)):
            raise InputError(f"{name} lies in another direction than {names[0]}")
    pixel = first.pixel or (math.nan, math.nan)
    if first.position is None or first.along_row is None or first.along_column is None:
        spacing = np.array([first.thickness or math.nan, *pixel])
        unknown = np.full((3, 3), math.nan)
        return Geometry(np.arange(len(planes)), (), spacing, unknown, unknown[0].copy())
    row, column = np.array(first.along_row), np.array(first.along_column)
    if abs(row @ row - 1) > TOLERANCE or abs(column @ column - 1) > TOLERANCE or abs(row @ column) > TOLERANCE:
        raise InputError(f"{names[0]}: rows and columns are not at right angles")
    normal = np.cross(row, column)
    positions = np.array([plane.position for plane in planes])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    between = _distance(along[order], [names[i] for i in order], first.thickness)
    if len(planes) > 1:
        _straight(positions[order], along[order], normal, between)
    axes = np.stack([normal, column, row])  # of slices, rows and columns
    spacing = np.array([between, *pixel])
    origin = positions[order[0]]
    flips = tuple(axis for axis in range(3) if axes[axis][np.abs(axes[axis]).argmax()] < 0)
    for axis in flips:
        extent = (len(planes), *first.shape)[axis] - 1
        origin = origin + (axes[axis] * spacing[axis] * extent if extent else 0)
        axes[axis] = -axes[axis]
    return Geometry(order, flips, spacing, axes + 0.0, origin + 0.0)  # + 0.0: no -0.0


def _distance(along: Array, names: Sequence[str], thickness: float | None) -> float:
    """mm between neighbours. Raises `InputError` unless it is the same for all."""
    if len(along) == 1:
        return thickness or math.nan
    steps = np.diff(along)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # the median, or the lower one of two: a gap is larger
    least = int(steps.argmin())
    if steps[least] <= TOLERANCE * max(usual, float(steps.max())):
        raise InputError(f"{names[least]} and {names[least + 1]} lie at the same place: are these several volumes?")
    odd = int(np.abs(steps - usual).argmax())
    if abs(steps[odd] - usual) > TOLERANCE * usual:
        gap = f"{names[odd]} and {names[odd + 1]} are {steps[odd]:.4g} mm apart, most slices {usual:.4g} mm"
        raise InputError(f"a gap or uneven spacing: {gap}")
    return float((along[-1] - along[0]) / (len(along) - 1))


def _straight(positions: Array, along: Array, normal: Array, between: float) -> None:
    aside = positions - positions[0] - np.outer(along - along[0], normal)
    shift = float(np.abs(aside).max())
    if shift > max(TOLERANCE * between, 1e-3) * (len(positions) - 1):
        raise InputError(f"slices are shifted sideways, {shift:.4g} mm from first to last: a tilted gantry?")


def _close(a: Sequence[float] | None, b: Sequence[float] | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(x - y) <= PARALLEL for x, y in zip(a, b, strict=True))


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
