"""Pages of LMDB's classic file format: their layout, and a checked walk over the tree.

Source: mdb.c of LMDB 0.9. lmdb itself follows pointers unchecked, so a damaged file must not reach it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore

# Pages of the classic format (mdb.c of LMDB 0.9): a page header of 16 bytes, then pointers to nodes, then a gap, then
# the nodes. A node is 8 bytes (size or child, flags, key size), key, data; an odd one is padded.
HEAD = np.dtype([("pgno", "<u8"), ("pad", "<u2"), ("flags", "<u2"), ("lower", "<u2"), ("upper", "<u2")])
OVERFLOW_HEAD = np.dtype([("pgno", "<u8"), ("pad", "<u2"), ("flags", "<u2"), ("pages", "<u4")])
NODE = np.dtype([("low", "<u2"), ("high", "<u2"), ("flags", "<u2"), ("key_size", "<u2"), ("key", ">u8")])
_DB = np.dtype(
    [("pad", "<u4"), ("flags", "<u2"), ("depth", "<u2")]
    + [(name, "<u8") for name in ("branches", "leaves", "overflows", "entries", "root")]
)
META = np.dtype(
    [
        *HEAD.descr,
        *(("magic", "<u4"), ("version", "<u4"), ("address", "<u8"), ("map_size", "<u8")),
        *(("free", _DB), ("main", _DB), ("last", "<u8"), ("txnid", "<u8")),
    ]
)
MAGIC, VERSION = 0xBEEFC0DE, 1  # version 1 is 0.9, 3 is 1.0, whose page header is 24 bytes long
PAGE_BYTES = 4096  # LMDB takes the host's, which differs; every LMDB reads any
INLINE_BYTES = (PAGE_BYTES - 16) // 2 - 2 - 8 - 8  # 2022: the largest value that stays in its node (me_nodemax)
BRANCH, LEAF, OVERFLOW, _META, BIG, _INTEGERKEY = 1, 2, 4, 8, 1, 8  # P_BRANCH … P_META, F_BIGDATA, MDB_INTEGERKEY
_NO_PAGE = 0xFFFFFFFFFFFFFFFF
_MAX_DEPTH = 32  # CURSOR_STACK
WALK_PAGES = 1024  # 4 MiB at a time: stays in the cache, and memory is bounded


def overflow_pages(value_bytes: Index) -> Index:
    """How many pages values take that don't stay in their nodes: one header of 16 bytes, then the value."""
    return -(-(value_bytes + 16) // PAGE_BYTES)


def meta_pages(pages: int, branches: int, leaves: int, rows: int, depth: int, root: int) -> bytes:
    """The two first pages of a file of `pages` pages, as after its first transaction: the later one is in force.

    The map size is that of the file, since lmdb takes it as the smallest one in any case.
    """
    raw = np.zeros((2, PAGE_BYTES), np.uint8)
    metas = raw[:, : META.itemsize].view(META)[:, 0]
    metas["pgno"] = metas["txnid"] = (0, 1)
    metas["flags"], metas["magic"], metas["version"] = _META, MAGIC, VERSION
    metas["map_size"], metas["last"] = pages * PAGE_BYTES, (1, pages - 1)
    metas["free"]["pad"], metas["free"]["flags"] = PAGE_BYTES, _INTEGERKEY
    metas["free"]["root"] = metas["main"]["root"] = _NO_PAGE
    if rows:
        metas["main"][1] = (0, 0, depth, branches, leaves, pages - 2 - branches - leaves, rows, root)
    return raw.tobytes()


class Tree:
    """The B+tree of a `data.mdb`, read without lmdb and with every number checked before it is followed.

    Raises `IncompleteStore` for a file that is cut short, damaged or not in the classic format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                raw = file.read(2 * PAGE_BYTES)
            size = path.stat().st_size
        except OSError:
            raise IncompleteStore(f"{path.parent}: {path.name} is missing") from None
        if len(raw) < 2 * PAGE_BYTES:
            raise IncompleteStore(f"{path}: has {size} bytes: cut short")
        metas = np.frombuffer(raw, np.uint8).reshape(2, PAGE_BYTES)[:, : META.itemsize].copy().view(META)[:, 0]
        if (metas["magic"] != MAGIC).any() or (metas["version"] != VERSION).any():
            raise IncompleteStore(
                f"{path}: not in LMDB's classic format with pages of {PAGE_BYTES} bytes: expected magic {MAGIC:#x}, "
                f"version {VERSION}, got {int(metas['magic'][0]):#x}, {metas['version'].tolist()}"
            )
        meta = metas[int(metas["txnid"].argmax())]  # the newer one is in force
        main = meta["main"]
        self.pages = int(meta["last"]) + 1
        self.entries, self.depth, self.root = int(main["entries"]), int(main["depth"]), int(main["root"])
        if size != self.pages * PAGE_BYTES:
            raise IncompleteStore(
                f"{path}: has {size} bytes instead of {self.pages * PAGE_BYTES}: cut short or changed"
            )
        whole = self.depth <= _MAX_DEPTH and (self.root < self.pages if self.entries else self.root == _NO_PAGE)
        whole &= not main["flags"] and bool((metas["free"]["flags"] == _INTEGERKEY).all())
        if (metas["free"]["pad"] != PAGE_BYTES).any() or not whole:
            raise IncompleteStore(f"{path}: its meta page is damaged")

    def value_offsets(self) -> Iterator[Index]:
        """int64 `[rows of some leaves]`: the byte at which each value starts, of all rows in order."""
        if not self.entries:
            return
        pages = np.memmap(self.path, np.uint8, "r").reshape(-1, PAGE_BYTES)
        level, row = np.array([self.root], np.int64), 0
        for depth in range(self.depth):
            leaf, below = depth == self.depth - 1, []
            for start in range(0, len(level), WALK_PAGES):
                numbers = level[start : start + WALK_PAGES]
                nodes = _Nodes(pages[numbers], numbers, LEAF if leaf else BRANCH, self)
                if not leaf:
                    below.append(nodes.children())
                    continue
                yield nodes.values(row)
                row += len(nodes.at)
            if not leaf:
                level = np.concatenate(below)
        if row != self.entries:
            raise IncompleteStore(f"{self.path}: {row} rows in its pages, {self.entries} in its meta page")

    def damaged(self, numbers: Index, bad: Array) -> None:
        """Raise if any of the pages `numbers` is `bad`, bool of the same shape."""
        if bad.any():
            raise IncompleteStore(f"{self.path}: page {int(numbers[bad][0])} is damaged")


class _Nodes:
    """All nodes of some pages of one level: `of` (index of the page) and `at` (byte in it), int64 `[nodes]`."""

    def __init__(self, pages: Array, numbers: Index, kind: int, tree: Tree) -> None:
        self.numbers, self.tree = numbers, tree
        head = pages[:, : HEAD.itemsize].copy().view(HEAD)[:, 0]
        lower, upper = head["lower"].astype(np.int64), head["upper"].astype(np.int64)
        tree.damaged(numbers, (head["pgno"] != numbers) | (head["flags"] != kind))
        tree.damaged(numbers, (lower < 18) | (lower > upper) | (upper > PAGE_BYTES))
        tree.damaged(numbers, lower % 2 != 0)
        self._words = pages.view("<u2")
        counts = (lower - 16) // 2
        if kind == BRANCH:
            tree.damaged(numbers, counts < 2)  # lmdb aborts the process over it
        used = np.arange(counts.max()) < counts[:, None]
        self.of = np.nonzero(used)[0]
        self.at = self._words[:, 8 : 8 + used.shape[1]][used].astype(np.int64)
        self._check((self.at < upper[self.of]) | (self.at > PAGE_BYTES - 8) | (self.at % 2 != 0))
        self._head = self._read(self.at, 8).view("<u2").astype(np.int64)  # [nodes, 4]: low, high, flags, key size
        self._key = self._head[:, 3]
        if kind == LEAF:
            self._size = self._head[:, 0] | self._head[:, 1] << 16
            self._big = self._head[:, 2] == BIG
            self._check((self._key != 8) | (self._head[:, 2] & ~BIG != 0))
            end = self.at + 16 + np.where(self._big, 8, self._size)
        else:
            end = self.at + 8 + self._key
        self._check(end > PAGE_BYTES)

    def _check(self, bad: Array) -> None:
        self.tree.damaged(self.numbers[self.of], bad)

    def _read(self, at: Index, nbytes: int, some: Array | slice = slice(None)) -> Array:
        """uint8 `[nodes, nbytes]` from the even bytes `at` of the pages."""
        words: Array = self._words[self.of[some][:, None], (at >> 1)[:, None] + np.arange(nbytes // 2)]
        return words.view(np.uint8)

    def children(self) -> Index:
        """int64 `[nodes]`: page numbers."""
        child: Index = self._head[:, 0] | self._head[:, 1] << 16 | self._head[:, 2] << 32
        self._check((child < 2) | (child >= self.tree.pages))
        return child

    def values(self, row: int) -> Index:
        """int64 `[nodes]`: the byte of the file at which each value starts; keys must count on from `row`."""
        keys = self._read(self.at + 8, 8).view(">u8")[:, 0]
        self._check(keys != np.arange(row, row + len(keys), dtype=np.uint64))
        offsets: Index = self.numbers[self.of] * PAGE_BYTES + self.at + 16
        offsets[self._big] = self._overflows() * PAGE_BYTES + 16
        return offsets

    def _overflows(self) -> Index:
        """int64 `[big nodes]`: the first overflow page."""
        first = self._read(self.at[self._big] + 16, 8, self._big).view("<u8")[:, 0]
        pages = overflow_pages(self._size[self._big]).astype(np.uint64)
        inside = (first >= 2) & (first < self.tree.pages) & (first + pages <= self.tree.pages)
        self.tree.damaged(self.numbers[self.of[self._big]], ~inside)
        return first.astype(np.int64)
