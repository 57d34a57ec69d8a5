"""Loads an LMDB file page by page, without lmdb: row numbers only rise, so the tree is filled from left to right.

    data.mdb = meta pages (2) | leaf | its long values | leaf | its long values | … | branches, level by level

A leaf lies before the values of its rows that have pages of their own. The leaf that isn't full yet is in its place
all the same and is written over as rows are added, which leaves alone the nodes that it has: so a file cut off at a
checkpoint has all that is needed to go on. The pages are a function of the sizes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import fsio
from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore
from bigconv.stores.lmdb_pages import (
    BIG,
    BRANCH,
    HEAD,
    INLINE_BYTES,
    LEAF,
    NODE,
    OVERFLOW,
    OVERFLOW_HEAD,
    PAGE_BYTES,
    meta_pages,
    overflow_pages,
)
from bigconv.stores.lmdb_record import scatter

ROOM_BYTES = 4 << 20  # 4 MiB: room that is kept for the next piece
CHILD = np.dtype([("row", "<u8"), ("page", "<u8")])  # a page of the tree and its first row
FAN = 1 + (PAGE_BYTES - 16 - 2 - 8) // (2 + 16)  # 227 children a branch; the first one's key is left out
FAN_PAGES = 64  # branches at a time: 256 KiB


@dataclass(frozen=True)
class Piece:
    """Some rows laid out: `room`, uint8 `[bytes]`, is the leaf that was open and the pages behind the file's end.

    `places`, int64 `[rows]`: the byte in `room` at which each value is to be put; `offsets`, the same: that in the
    file. `opened`: the new leaves. `slots`, `top`: nodes of the last leaf, and the byte at which they begin.
    """

    room: Array
    places: Index
    offsets: Index
    opened: Array
    slots: int
    top: int


class TreeLoader:
    """The pages of `data.mdb`. First row and page of each leaf go to the file `beside`, for the branches."""

    def __init__(self, path: Path, beside: Path, rows: int = 0, pages: int = 0, leaves: int = 0) -> None:
        """Start, or go on from `rows` rows on `pages` pages with `leaves` leaves; what is behind is cut off."""
        self._data = fsio.AppendFile(path, pages * PAGE_BYTES)
        self._beside = fsio.AppendFile(beside, leaves * CHILD.itemsize)
        self._rows, self._pages, self._count = rows, max(2, pages), leaves
        # without a leaf: one without room
        self._leaf, self._page, self._slots, self._top = np.zeros(PAGE_BYTES, np.uint8), 0, 0, 16
        self._room = np.empty(ROOM_BYTES, np.uint8)
        if not pages:
            self._data.write(bytes(2 * PAGE_BYTES))
            return
        self._data.write_at(0, bytes(2 * PAGE_BYTES))  # no environment before `finish`
        if leaves:
            try:
                self._reopen_leaf()
            except IncompleteStore:
                self.close()
                raise

    def _reopen_leaf(self) -> None:
        """Take up the last leaf; it may have been filled further by the writer that was killed."""
        with open(self._beside.path, "rb") as file:
            file.seek((self._count - 1) * CHILD.itemsize)
            last = np.frombuffer(file.read(CHILD.itemsize), CHILD)[0]
        self._page, self._slots = int(last["page"]), self._rows - int(last["row"])
        with open(self._data.path, "rb") as file:
            file.seek(self._page * PAGE_BYTES)
            self._leaf = np.frombuffer(file.read(PAGE_BYTES), np.uint8).copy()
        begin = 16 + 2 * self._slots
        if not (2 <= self._page < self._pages and 18 <= begin < PAGE_BYTES and len(self._leaf) == PAGE_BYTES):
            raise IncompleteStore(f"{self._beside.path}: does not fit {self._data.path.name}: damaged; start anew")
        self._top = int(self._leaf[begin - 2 : begin].view("<u2")[0])
        if not (begin <= self._top <= PAGE_BYTES - 16 and int(self._leaf[:8].view("<u8")[0]) == self._page):
            raise IncompleteStore(f"{self._data.path}: page {self._page} is damaged; start anew")
        self._leaf[begin : self._top] = 0
        self._leaf[: HEAD.itemsize].view(HEAD)[["lower", "upper"]] = (begin, self._top)
        self._data.write_at(self._page * PAGE_BYTES, self._leaf.data)

    def lay_out(self, sizes: Index) -> Piece:
        """Everything but the values of the next rows, of which there is one at least; `sizes`: their bytes."""
        row = np.arange(len(sizes), dtype=np.int64)
        big = sizes > INLINE_BYTES
        node: Index = 16 + np.where(big, 8, sizes + sizes % 2)
        starts = self._new_leaves(node)
        opens = np.zeros(len(sizes), np.int64)
        opens[starts] = 1
        far_pages = np.where(big, overflow_pages(sizes), 0)
        # pages of the room, which has the open leaf first: of each row's leaf, if it opens one, and of its own pages
        page = 1 + np.cumsum(opens + far_pages) - (opens + far_pages)
        far = page + opens
        behind = self._pages - 1  # page of the file - page of the room
        # of each row, through its leaf (0 is the one that was open): where the leaf is, and the node and pointer in it
        leaf = np.cumsum(opens)
        near = _with(0, page[starts])[leaf] * PAGE_BYTES
        leaf_page = _with(self._page, page[starts] + behind)
        end = np.cumsum(node)
        top = _with(self._top, (end - node)[starts] + PAGE_BYTES)  # as if a leaf's nodes followed those before it
        at = top[leaf] - end
        slot = row - _with(-self._slots, starts)[leaf]

        room = self._cleared(int(page[-1] + opens[-1] + far_pages[-1]))
        room[:PAGE_BYTES] = self._leaf
        low, high = sizes & 0xFFFF, sizes >> 16
        nodes = records(NODE, len(row), low=low, high=high, flags=big * BIG, key_size=8, key=self._rows + row)
        scatter(room, near + at, nodes)
        scatter(room, near + 16 + 2 * slot, at.astype("<u2"))
        last = np.flatnonzero(np.diff(leaf, append=leaf[-1] + 1))  # the last row of each leaf
        lower, upper = 18 + 2 * slot[last], at[last]
        heads = records(HEAD, len(last), pgno=leaf_page[leaf[last]], flags=LEAF, lower=lower, upper=upper)
        scatter(room, near[last], heads)
        if big.any():
            first = (far + behind)[big]
            scatter(room, (near + at + 16)[big], first.astype("<u8"))
            heads = records(OVERFLOW_HEAD, len(first), pgno=first, flags=OVERFLOW, pages=far_pages[big])
            scatter(room, far[big] * PAGE_BYTES, heads)

        opened = records(CHILD, len(starts), row=self._rows + starts, page=leaf_page[1:])
        places = np.where(big, far * PAGE_BYTES, near + at) + 16
        offsets = np.where(big, (far + behind) * PAGE_BYTES, leaf_page[leaf] * PAGE_BYTES + at) + 16
        return Piece(room, places, offsets, opened, int(slot[-1]) + 1, int(at[-1]))

    def _new_leaves(self, node: Index) -> Index:
        """int64 `[new leaves]`: the rows that don't fit where the row before them went."""
        end = np.cumsum(node + 2)
        follows = np.searchsorted(end, end - (node + 2) + PAGE_BYTES - 16, "right").tolist()
        row = int(np.searchsorted(end, self._top - 16 - 2 * self._slots, "right"))
        starts = []
        while row < len(node):
            starts.append(row)
            row = follows[row]
        return np.array(starts, np.int64)

    def _cleared(self, pages: int) -> Array:
        """uint8 `[bytes]`, zeros."""
        if pages * PAGE_BYTES > len(self._room):
            return np.zeros(pages * PAGE_BYTES, np.uint8)
        room = self._room[: pages * PAGE_BYTES]
        room.fill(0)
        return room

    def write(self, piece: Piece) -> None:
        """Write what was laid out, with the values in it."""
        if self._slots:
            self._data.write_at(self._page * PAGE_BYTES, piece.room[:PAGE_BYTES].data)
        self._data.write(piece.room[PAGE_BYTES:].data)
        self._beside.write(piece.opened.tobytes())
        at = 0
        if len(piece.opened):
            self._page = int(piece.opened["page"][-1])
            at = (self._page - self._pages + 1) * PAGE_BYTES
        self._leaf = piece.room[at : at + PAGE_BYTES].copy()
        self._slots, self._top = piece.slots, piece.top
        self._rows += len(piece.places)
        self._pages += len(piece.room) // PAGE_BYTES - 1
        self._count += len(piece.opened)

    def checkpoint(self) -> dict[str, int]:
        """Make the pages durable; the arguments with which to go on."""
        self._data.sync()
        self._beside.sync()
        return {"rows": self._rows, "pages": self._pages, "leaves": self._count}

    def finish(self) -> None:
        """Write the branches, and the meta pages, which make it an environment."""
        # 16 bytes a leaf, of which there may be many millions: mapped; an empty file can't be
        level: Array = np.memmap(self._beside.path, CHILD, "r") if self._count else np.empty(0, CHILD)
        depth, branches = min(1, len(level)), 0
        while len(level) > 1:
            starts = np.arange(0, len(level), FAN)
            if len(level) - starts[-1] == 1:
                starts[-1] -= 1  # a branch has two children at least
            for raw in _branches(level, starts, self._pages):
                self._data.write(raw.data)
            above = records(CHILD, len(starts), row=level["row"][starts], page=self._pages + np.arange(len(starts)))
            depth, branches = depth + 1, branches + len(starts)
            self._pages, level = self._pages + len(starts), above
        root = int(level["page"][0]) if depth else 0
        self._data.write_at(0, meta_pages(self._pages, branches, self._count, self._rows, depth, root))
        self.close()

    def close(self) -> None:
        self._data.close()
        self._beside.close()


def _with(first: int, rest: Index) -> Index:
    """int64 `[1 + n]`."""
    return np.concatenate([np.array([first], np.int64), rest])


def records(dtype: np.dtype[Any], rows: int, **columns: Any) -> Array:
    """`[rows]` of a structured type, with zeros in the columns that aren't given."""
    found: Array = np.zeros(rows, dtype)
    for name, column in columns.items():
        found[name] = column
    return found


def _branches(level: Array, starts: Index, page: int) -> Iterator[Array]:
    """uint8 `[bytes]`: branches from page `page` on, above the pages of `level`; `starts`: their first children."""
    counts = np.diff(starts, append=len(level))
    slot = np.arange(FAN)
    at = PAGE_BYTES - 8 - 16 * slot
    for a in range(0, len(starts), FAN_PAGES):
        first, count = starts[a : a + FAN_PAGES], counts[a : a + FAN_PAGES]
        pages = np.arange(len(first))
        room = np.zeros(len(first) * PAGE_BYTES, np.uint8)
        lower, upper = 16 + 2 * count, at[count - 1]
        heads = records(HEAD, len(first), pgno=page + a + pages, flags=BRANCH, lower=lower, upper=upper)
        scatter(room, pages * PAGE_BYTES, heads)
        used = slot < count[:, None]
        room.view("<u2").reshape(-1, PAGE_BYTES // 2)[:, 8 : 8 + FAN] = np.where(used, at, 0)
        places = pages[:, None] * PAGE_BYTES + at
        child = level[int(first[0]) : int(first[-1] + count[-1])]
        low, high, higher = (child["page"] >> shift & 0xFFFF for shift in (0, 16, 32))
        nodes = records(NODE, len(child), low=low, high=high, flags=higher, key_size=8, key=child["row"])
        nodes["key_size"][first - first[0]] = 0
        scatter(room, places[:, 0], nodes.view("<u8")[::2][first - first[0]])
        keyed = np.ones(len(child), bool)
        keyed[first - first[0]] = False
        scatter(room, places[:, 1:][used[:, 1:]], nodes[keyed])
        yield room
