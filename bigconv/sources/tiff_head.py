"""What the first directory of a TIFF tells, without decoding: which of the sources that read TIFFs it is for.

| the file | source |
|---|---|
| has a GeoTIFF directory of keys (tag 34735) | `geotiff` |
| one page of 1 to 8 bits a sample, no floats | `images` |
| several pages, more bits, floats | `tiff` |
"""

from __future__ import annotations

import os
import struct
from typing import IO

from bigconv.decode import DecodeError

GEO_KEYS, BITS, FORMAT, PAGE_KIND = 34735, 258, 339, 254  # tags (TIFF 6.0; OGC 19-008r4)
MAX_TAGS = 4096  # of a directory
SMALLER_COPY = 1  # bit of tag 254: a page that is a thumbnail, or a level of a pyramid


def source_for(path: str) -> str:
    """`images`, `tiff` or `geotiff`; `images`, whose errors are plain, for what is no TIFF."""
    try:
        with open(path, "rb") as file:
            return _told(file)
    except (OSError, struct.error, OverflowError):
        return "images"


def check_pages(path: str, most: int) -> None:
    """Follow all directories to the last: a reader takes one that is missing for the end of the file.

    Raises `DecodeError` for pages that are missing, that form a loop, or that are more than `most`; `OSError`.
    """
    seen: set[int] = set()
    with open(path, "rb") as file:
        try:
            order, big, at = _start(file)
            while at:
                if at in seen:
                    raise DecodeError("its pages form a loop")
                seen.add(at)
                if len(seen) > most:
                    raise DecodeError(f"more than the {most} pages allowed")
                _, at = _directory(file, order, big, at)
        except (struct.error, OverflowError) as error:
            head = (
                "an empty file" if not os.stat(path).st_size else f"cut short or damaged: page {len(seen)} is missing"
            )
            raise DecodeError(head if seen or head == "an empty file" else "not a TIFF file") from error


def _start(file: IO[bytes]) -> tuple[str, bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory is. Raises `struct.error`."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        raise struct.error("no byte order")
    (version,) = struct.unpack_from(order + "H", head, 2)
    if version not in (42, 43):
        raise struct.error("no version")
    big = version == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    return order, big, int(at)


def _told(file: IO[bytes]) -> str:
    order, big, at = _start(file)
    tags, at = _directory(file, order, big, at)
    if GEO_KEYS in tags:
        return "geotiff"
    several = False
    while at and not several:  # copies in other sizes are no pages of their own
        more, after = _directory(file, order, big, at)
        several = not more.get(PAGE_KIND, (0,))[0] & SMALLER_COPY
        at = after if after > at else 0  # who reads it finds a loop
    plain = max(tags.get(BITS, (1,))) <= 8 and set(tags.get(FORMAT, (1,))) <= {1}
    return "images" if plain and not several else "tiff"


def _directory(file: IO[bytes], order: str, big: bool, at: int) -> tuple[dict[int, tuple[int, ...]], int]:
    """Those tags that decide, and the offset of the next directory, or 0."""
    count, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    file.seek(at)
    (n,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
    size = 20 if big else 12
    if n > MAX_TAGS:
        raise struct.error("too many tags")
    raw = file.read(n * size + struct.calcsize(pointer))
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(0, n * size, size):
        tag, kind, values = struct.unpack_from(order + entry, raw, start)
        if tag == GEO_KEYS:
            tags[tag] = ()
        elif tag in (BITS, FORMAT, PAGE_KIND) and kind in (3, 4) and 0 < values <= MAX_TAGS:
            form, where = f"{order}{values}{'H' if kind == 3 else 'I'}", start + size - (8 if big else 4)
            inline = struct.calcsize(form) <= (8 if big else 4)
            if inline:
                tags[tag] = struct.unpack_from(form, raw, where)
            else:
                file.seek(struct.unpack_from(order + pointer, raw, where)[0])
                tags[tag] = struct.unpack(form, file.read(struct.calcsize(form)))
    (after,) = struct.unpack_from(order + pointer, raw, n * size)
    return tags, int(after)
