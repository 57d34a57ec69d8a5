"""How much of some files lies in the page cache, and how to get it out."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLD = 0.05  # resident share up to which reading is called cold
MOST_FILES = 2000  # that are looked at: more, evenly picked, tell no more


@dataclass(frozen=True)
class Residency:
    """`share` of the bytes of `files` files that lies in the page cache."""

    share: float
    bytes: int
    files: int

    @property
    def cold(self) -> bool:
        return self.share <= COLD


def resident(paths: Sequence[Path]) -> Residency | None:
    """By mincore(2), which tells the truth of files that one owns or may write; None where it can't be told."""
    step = -(-len(paths) // MOST_FILES)
    looked, cached, size = paths[:: step or 1], 0, 0
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError, TypeError):  # no Unix
        return None
    for path in looked:
        try:
            pages = _pages(path, mincore)
        except OSError:
            return None
        if pages is None:
            return None
        cached, size = cached + pages[0], size + pages[1]
    return Residency(cached / size if size else 0.0, size, len(looked))


def _pages(path: Path, mincore: ctypes._NamedFuncPointer) -> tuple[int, int] | None:
    """Bytes of a file in the cache, and all of them. The file is mapped for it, and not touched."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not status.st_size:
            return 0, 0
        if status.st_uid != os.geteuid() and os.geteuid() and not os.access(path, os.W_OK):
            return None  # since Linux 5.2 all pages of somebody else's file look resident
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as map_:
            flat = np.frombuffer(map_, np.uint8)
            pages = np.empty(-(-len(flat) // mmap.PAGESIZE), np.uint8)
            address, size = ctypes.c_void_p(flat.ctypes.data), ctypes.c_size_t(len(flat))
            failed = mincore(address, size, ctypes.c_void_p(pages.ctypes.data))
            del flat
            if failed:
                return None
            return min(int((pages & 1).sum()) * mmap.PAGESIZE, status.st_size), status.st_size


def drop(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the files: no root needed, and pages that are mapped or not yet written stay."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with open(path, "rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
