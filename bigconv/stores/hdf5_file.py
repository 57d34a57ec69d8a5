"""HDF5 files: opened, made and filled through the library, whose errors have no fixed type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bigconv.errors import BigconvError, IncompleteStore, NotAStore
from bigconv.schema import Part
from bigconv.sniff import looks_at
from bigconv.stores.hdf5_packed import PackedColumns, lay_out
from bigconv.stores.library_file import library_writing

ALIGNMENT = 4096  # a page
LIBVER = ("v110", "v110")  # the oldest format whose headers carry checksums throughout


def check_end(path: Path) -> None:
    """The file has exactly the bytes its superblock names (HDF5 format, II.A: version 2 and 3)."""
    with open(path, "rb") as file:
        head = file.read(48)
        size = path.stat().st_size
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        raise NotAStore(f"{path}: not an HDF5 file")
    if len(head) < 48:
        raise IncompleteStore(f"{path}: cut short: {size} bytes")
    if head[8] in (2, 3) and head[9] == 8:
        end = int.from_bytes(head[28:36], "little")
        if end != size:
            raise IncompleteStore(f"{path}: has {size} bytes instead of {end}: cut short or changed")


def opened(path: Path) -> h5py.File:
    with damage(path):
        # a file system may have no locks; and a file that the user has open can only be opened with the same flags
        for locking in (None, False, True):
            try:
                return h5py.File(path, "r", locking=locking)
            except OSError as error:
                if "lock" not in str(error):
                    raise
        return h5py.File(path, "r", locking="best-effort")


def in_words(error: BaseException, path: Path | str) -> str:
    """What an error of the HDF5 library means for a file; its own words are what `--debug` shows.

    Never empty: what isn't known is damage, and the usual remedy is another copy.
    """
    said = " ".join(str(error).split())
    if "file signature not found" in said:
        return f"not an HDF5 file: {looks_at(str(path))}"
    if cut := re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", said):
        return f"cut short: {int(cut[1]):,} of {int(cut[2]):,} bytes are there. Copy or download it again"
    if refused := re.search(r"error message = '([^']+)'", said):
        return f"can't be opened: {refused[1]}"
    if "lock" in said:
        return "another program has it open for writing"
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    if "filter returned failure" in said:
        return "damaged: a compressed chunk can't be unpacked"
    return "damaged: the records that describe its contents can't be read. Copy or download it again"


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """What h5py raises on damaged metadata, by no fixed type, as `IncompleteStore`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        if isinstance(error, BigconvError):
            raise
        raise IncompleteStore(f"{path}: {in_words(error, path)}") from error


def allocate(
    path: Path, parts: list[tuple[Part, int]], packed: PackedColumns | None = None
) -> dict[str, tuple[int, int]]:
    """Create a file with all datasets allocated and no data; part name -> (byte offset, bytes).

    Fill time NEVER and early allocation: the file is sparse, and takes no time to make. Parts that are `packed`, and
    not empty, are put in whole, and aren't in what is given back.
    """
    found: dict[str, tuple[int, int]] = {}
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    # frames have any length: aligned, each would leave half a page empty
    aligned = {"alignment_threshold": ALIGNMENT, "alignment_interval": ALIGNMENT} if packed is None else {}
    with library_writing(path, fresh=True) as room, h5py.File(room, "w", libver=LIBVER, **aligned) as file:
        for part, items in parts:
            if packed is not None and part.name in packed.codecs and items:
                lay_out(file, part, items, packed, links)
                continue
            shape = (items, *part.shape)
            dataset = create(file, part.name, shape, part.dtype, links)
            size = items * part.item_bytes
            offset = dataset.get_offset() if size else 0
            if offset is None:
                raise IncompleteStore(f"{path}: HDF5 gave no place to {part.name}")
            found[part.name] = (offset, size)
    return found


def create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, links: Any) -> Any:
    """A contiguous dataset with its place in the file."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(dtype).newbyteorder("<"), logical=True)
    return h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plan, links)
