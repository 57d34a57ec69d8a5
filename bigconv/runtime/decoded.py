"""Columns of encoded images as pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bigconv.block import Array, Ragged
from bigconv.decode import DecodeError, decode, into, probe
from bigconv.runtime import buffers


def decoded(name: str, column: Ragged, whence: Callable[[int], str]) -> Array | list[Array]:
    """Pixels of a column of image files.

    uint8 `[rows, 3, height, width]` if all have one size, else a list of `[3, height, width]`. They lie in memory as
    decoders write them and as convolutions like them, channels last: only the axes are permuted.
    `whence(i)` names row `i` of the column in errors. Raises `DecodeError`.
    """
    room = _room(name, column)
    if room is not None:
        for i in range(len(column)):
            try:
                decode(column[i].tobytes(), into(room[i]))
            except DecodeError:  # damaged, which is told below, or the first of another size
                return [_axes(pixels) for pixels in room[:i]] + _one_by_one(name, column, whence, i)
        return room.transpose(0, 3, 1, 2)
    return _one_by_one(name, column, whence, 0)


def _room(name: str, column: Ragged) -> Array | None:
    """Memory for all images `[rows, height, width, 3]`; None where three headers tell that sizes differ."""
    rows = len(column)
    if rows == 0:
        return np.empty((0, 0, 0, 3), np.uint8)
    try:
        sizes = {probe(column[i].tobytes()) for i in {0, rows // 2, rows - 1}}
    except DecodeError:
        return None
    if len(sizes) > 1:
        return None
    shape = (rows, *sizes.pop(), 3)
    memory = buffers.room(name, int(np.prod(shape)))
    return np.empty(shape, np.uint8) if memory is None else memory.reshape(shape)


def _one_by_one(name: str, column: Ragged, whence: Callable[[int], str], start: int) -> list[Array]:
    images = []
    for i in range(start, len(column)):
        try:
            images.append(_axes(decode(column[i].tobytes())))
        except DecodeError as error:
            raise DecodeError(f"{whence(i)}, field {name}: {error}") from error
    return images


def _axes(pixels: Array) -> Array:
    """`[height, width, 3]` as `[3, height, width]`."""
    return pixels.transpose(2, 0, 1)
