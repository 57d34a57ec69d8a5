"""Numbers as colours: images of any dtype and layout, masks, volumes, matrices. All give uint8 `[height, width, 3]`."""

from __future__ import annotations

import math

import numpy as np

from bigconv.block import Array

# Okabe and Ito's colours, which all eyes tell apart; the first is that of nothing
CLASSES = (
    (24, 26, 32), (0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (86, 180, 233),
    (240, 228, 66), (150, 150, 150), (120, 80, 200), (170, 60, 60), (90, 140, 40),
)  # fmt: skip
# viridis at five places: dark is low, and every step is as large to the eye
_SCALE = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
_LOOK_AT = 1 << 16  # values that set the range
_SQUARE = 8  # pixels of a field of the board behind what is transparent


def image(array: Array, layout: str | None) -> Array | None:
    """An image in `layout`, or in that which its shape suggests; None where it is no image.

    One channel is grey, three are RGB, four RGB and alpha, over a board; of two the first and of more than four
    the first three are shown. Bool and integers of 8 bits are taken as they are, floats from 0 to 1 or 255 too; all
    others are stretched.
    """
    if array.ndim == 2:
        array, layout = array[..., None], "hwc"
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "biuf":
        return None
    layout = layout or suggested(array.shape)
    if layout is None:
        return None
    pixels = np.moveaxis(array, 0, -1) if layout == "chw" else array
    channels = pixels.shape[-1]
    pixels = as_bytes(pixels[..., : 4 if channels == 4 else 3 if channels > 2 else 1])
    if channels == 4:
        return _over_board(pixels)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def suggested(shape: tuple[int, ...]) -> str | None:
    """Layout of an array that could be an image."""
    if len(shape) != 3:
        return None
    if shape[-1] in (1, 3, 4) and min(shape[:2]) > 4:
        return "hwc"
    if shape[0] in (1, 3, 4) and min(shape[1:]) > 4:
        return "chw"
    return None


def as_bytes(array: Array) -> Array:
    """Values as uint8, by their range; NaN is black."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    wide = array.astype(np.float64)
    low, high = _range(wide)
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255 and (array.dtype.kind == "f" or array.dtype.itemsize == 1):
        low, high = 0.0, 255.0
    else:
        low, high = _range(wide, 1, 99)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (wide - low) * (255.0 / (high - low)) if high > low else np.full(wide.shape, 127.0)
    return np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).astype(np.uint8)


def _range(wide: Array, low: float = 0, high: float = 100) -> tuple[float, float]:
    """Two percentiles of the finite values, from a part of them where there are many."""
    flat = wide.reshape(-1)
    if (low, high) != (0, 100):
        flat = flat[:: max(1, len(flat) // _LOOK_AT)]
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return 0.0, 0.0
    if (low, high) == (0, 100):
        return float(flat.min()), float(flat.max())
    a, b = np.percentile(flat, (low, high))
    return float(a), float(b)


def _over_board(pixels: Array) -> Array:
    """RGB and alpha over light and dark squares."""
    height, width = pixels.shape[:2]
    rows, columns = np.arange(height)[:, None] // _SQUARE, np.arange(width)[None, :] // _SQUARE
    board = np.where((rows + columns) % 2, 204, 236)[..., None]
    alpha = pixels[..., 3:].astype(np.float64) / 255
    mixed: Array = (pixels[..., :3] * alpha + board * (1 - alpha)).round().astype(np.uint8)
    return mixed


def mask(array: Array) -> Array:
    """Whole numbers as colours: 0 is dark, the others come round after the last of `CLASSES`."""
    values = array.astype(np.int64)
    colours = np.array(CLASSES, np.uint8)
    shown: Array = colours[np.where(values == 0, 0, 1 + (values - 1) % (len(CLASSES) - 1))]
    return shown


def matrix(array: Array) -> Array:
    """Numbers from low (dark) to high (light)."""
    at = as_bytes(array.astype(np.float64) if array.dtype != np.bool_ else array) / 255 * (len(_SCALE) - 1)
    low = np.minimum(at.astype(np.int64), len(_SCALE) - 2)
    part = (at - low)[..., None]
    shown: Array = (_SCALE[low] * (1 - part) + _SCALE[low + 1] * part).round().astype(np.uint8)
    return shown


def slices(volume: Array, classes: bool = False) -> tuple[Array, Array, Array]:
    """The middle slices across the three axes of `[depth, height, width]`: in one grey scale for all, or as masks."""
    depth, height, width = volume.shape
    cuts = (volume[depth // 2], volume[:, height // 2], volume[:, :, width // 2])
    if classes:
        return mask(cuts[0]), mask(cuts[1]), mask(cuts[2])
    edges = np.cumsum([cut.size for cut in cuts])[:-1]
    grey = as_bytes(np.concatenate([np.asarray(cut).reshape(-1) for cut in cuts]))
    made = [
        np.repeat(part.reshape(cut.shape)[..., None], 3, axis=-1)
        for part, cut in zip(np.split(grey, edges), cuts, strict=True)
    ]
    return made[0], made[1], made[2]


def is_mask(array: Array) -> bool:
    """Whether a matrix of whole numbers has so few that they name things."""
    if array.ndim != 2 or array.dtype.kind not in "biu" or min(array.shape) < 8:
        return False
    return len(np.unique(array)) <= min(32, math.isqrt(array.size))
