"""Keys and places of all values in an LMDB file of anybody's, read without lmdb and with every number checked.

Source: mdb.c of LMDB 0.9. lmdb itself follows page numbers and pointers unchecked: a damaged file crashes the
process, and a hostile one may do worse.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bigconv.errors import InputError
from bigconv.stores.lmdb_pages import BIG, BRANCH, LEAF, MAGIC, META, OVERFLOW, VERSION

SUBDATA, DUPDATA = 2, 4  # F_SUBDATA, F_DUPDATA
DUPSORT = 4  # MDB_DUPSORT
HEAD_BYTES = 16
MAX_DEPTH = 32  # CURSOR_STACK
MAX_KEYS = 2 << 30  # 2 GiB of keys are held in memory
_NO_PAGE = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """One record: its key, and where its value lies in the file."""

    key: bytes
    at: int
    size: int


class Tree:
    """The main database of a `data.mdb`. Raises `InputError` for a file that is damaged or of another format."""

    def __init__(self, path: str, where: str) -> None:
        self.path, self.where = path, where
        try:
            self.size = os.stat(path).st_size
            with open(path, "rb") as file:
                head = file.read(META.itemsize)
                page = self._page_bytes(head)
                file.seek(page)
                metas = [self._meta(raw) for raw in (head, file.read(META.itemsize))]
        except OSError as error:
            raise InputError(f"{where}: {error.strerror}") from error
        meta = max(metas, key=lambda m: int(m["txnid"]))  # the newer one is in force
        main = meta["main"]
        self.page_bytes, self.pages = page, self.size // page
        self.entries, self.depth, self.root = int(main["entries"]), int(main["depth"]), int(main["root"])
        if int(main["flags"]) & DUPSORT:
            raise InputError(f"{where}: a database with several values a key (DUPSORT), which is not read")
        whole = self.root == _NO_PAGE if not self.entries else 2 <= self.root < self.pages
        if not whole or self.depth > MAX_DEPTH or int(meta["last"]) >= self.pages:
            raise InputError(f"{where}: damaged, or cut short: its meta page doesn't fit {self.size} bytes")

    def _page_bytes(self, raw: bytes) -> int:
        """The host's page size, which LMDB takes, stands in the free list's record."""
        size = int(self._meta(raw)["free"]["pad"])
        if size < 512 or size > 65536 or size & (size - 1):
            raise InputError(f"{self.where}: damaged: pages of {size} bytes")
        return size

    def _meta(self, raw: bytes) -> np.void:
        if len(raw) < META.itemsize:
            raise InputError(f"{self.where}: cut short")
        meta: np.void = np.frombuffer(raw, META)[0]
        if meta["magic"] != MAGIC or meta["version"] != VERSION:
            raise InputError(
                f"{self.where}: not in LMDB's classic format: expected magic {MAGIC:#x}, version {VERSION}, "
                f"got {int(meta['magic']):#x}, {int(meta['version'])}"
            )
        return meta

    def walk(self) -> Iterator[Entry]:
        """All records in the order of the tree, which is that of their keys."""
        if not self.entries:
            return
        rows = visited = 0
        with open(self.path, "rb") as file:
            stack = [(self.root, 1)]
            while stack:
                number, depth = stack.pop()
                visited += 1
                if visited > self.pages:  # pages that lead in a circle
                    self._damaged(number)
                page = self._page(file.fileno(), number)
                if depth < self.depth:
                    stack += [(child, depth + 1) for child in reversed(self._children(page, number))]
                    continue
                for entry in self._leaf(file.fileno(), page, number):
                    yield entry
                    rows += 1
        if rows != self.entries:
            raise InputError(f"{self.where}: damaged: {rows} records in its pages, {self.entries} in its meta page")

    def _page(self, fd: int, number: int) -> bytes:
        page = os.pread(fd, self.page_bytes, number * self.page_bytes)
        if len(page) != self.page_bytes or struct.unpack_from("<Q", page)[0] != number:
            self._damaged(number)
        return page

    def _nodes(self, page: bytes, number: int, kind: int) -> tuple[int, ...]:
        """The bytes at which nodes start."""
        flags, lower, upper = struct.unpack_from("<HHH", page, 10)
        if (
            flags & (BRANCH | LEAF | OVERFLOW) != kind
            or not HEAD_BYTES <= lower <= upper <= self.page_bytes
            or lower % 2
        ):
            self._damaged(number)
        at = struct.unpack_from(f"<{(lower - HEAD_BYTES) // 2}H", page, HEAD_BYTES)
        if any(n < upper or n > self.page_bytes - 8 for n in at):
            self._damaged(number)
        return at

    def _children(self, page: bytes, number: int) -> list[int]:
        children = []
        for at in self._nodes(page, number, BRANCH):
            low, high, top, _ = struct.unpack_from("<HHHH", page, at)
            child = low | high << 16 | top << 32
            if not 2 <= child < self.pages:
                self._damaged(number)
            children.append(child)
        return children

    def _leaf(self, fd: int, page: bytes, number: int) -> Iterator[Entry]:
        for at in self._nodes(page, number, LEAF):
            low, high, flags, key_size = struct.unpack_from("<HHHH", page, at)
            size, start = low | high << 16, at + 8 + key_size
            if start + (8 if flags & BIG else size) > self.page_bytes:
                self._damaged(number)
            key = page[at + 8 : start]
            if flags & (SUBDATA | DUPDATA):
                raise InputError(f"{self.where}: holds named databases, such as {key!r:.60}; only the main one is read")
            place = number * self.page_bytes + start
            if flags & BIG:
                (first,) = struct.unpack_from("<Q", page, start)
                place = first * self.page_bytes + HEAD_BYTES
                head = os.pread(fd, HEAD_BYTES, first * self.page_bytes) if 2 <= first < self.pages else b""
                if len(head) < HEAD_BYTES or struct.unpack_from("<QHH", head)[0] != first:
                    self._damaged(number)
                if struct.unpack_from("<H", head, 10)[0] != OVERFLOW:
                    self._damaged(number)
            if place + size > self.size:
                self._damaged(number)
            yield Entry(key, place, size)

    def _damaged(self, number: int) -> None:
        raise InputError(f"{self.where}: page {number} is damaged, or cut short")
