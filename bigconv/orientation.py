"""How an image file says it is to be turned: EXIF orientation, 1 to 8 (TIFF 6.0, tag 274), as a viewer applies it."""

from __future__ import annotations

import os
import struct
from typing import IO

import numpy as np

from bigconv.block import Array


def of_jpeg(data: bytes) -> int:
    """EXIF orientation 1 to 8 of a JPEG; 1 where it has none. Walks the segments, never the pixels."""
    at, end = 2, len(data) - 4
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # pixels start, or the file ends
            break
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return of_exif(data[at + 10 : at + 2 + (data[at + 2] << 8 | data[at + 3])])
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return 1


def exif_of_png(file: IO[bytes]) -> bytes:
    """The `eXIf` chunk, which may stand behind the pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"eXIf":
            return file.read(length)
        if name == b"IEND":
            break
        file.seek(length + 4, os.SEEK_CUR)
    return b""


def of_exif(exif: bytes) -> int:
    """Orientation 1 to 8 from EXIF data (TIFF 6.0, tag 274 of the first directory); 1 where there is none."""
    if exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 274 and kind in (1, 3, 4):  # byte, short, long
                (value,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], exif, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass  # damaged EXIF is no reason to refuse the pixels
    return 1


def turned(pixels: Array, turn: int) -> Array:
    """Pixels as they are to be seen (EXIF 2.3, 4.6.4 A: orientation is where row 0 and column 0 lie)."""
    if turn == 1:
        return pixels
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
