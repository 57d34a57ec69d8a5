"""Which file, and which row in it, made each row of a store: a compact table beside the manifest.

Rows come in runs: `count` rows from file `file`, `file + file_step`, … and row `row`, `row + row_step`, … of it. A
folder of images is one run, a table of a million lines another. Layout in docs/format.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from bigconv.block import Index
from bigconv.errors import IncompleteStore, RowError

NAME = "provenance"  # of the attachment
_MAGIC = b"bigconv provenance 1\n"
RUN_COLUMNS = 5  # count, file, file_step, row, row_step


def runs_of(origin: Index) -> Index:
    """int64 `[runs, 5]` that stand for `origin`, int64 `[rows, 2]` (file, row)."""
    n = len(origin)
    if n == 0:
        return np.empty((0, RUN_COLUMNS), np.int64)
    step = np.diff(origin, axis=0)
    # a run goes on while the step stays; the first row of a run has no step of its own
    new = np.zeros(n, bool)
    new[0] = True
    if n > 2:
        changed = np.flatnonzero((step[1:] != step[:-1]).any(axis=1)) + 2
        new[changed] = True
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, n))
    steps = np.zeros((len(starts), 2), np.int64)
    longer = counts > 1
    steps[longer] = step[starts[longer]]
    first = origin[starts]
    return np.column_stack([counts, first[:, 0], steps[:, 0], first[:, 1], steps[:, 1]]).astype(np.int64)


def joined(runs: Index) -> Index:
    """The same runs with neighbours that continue each other made one, from the first on.

    A lone row takes any row that follows it as its second. So which runs are joined depends on where the one before
    began: that is walked, a step for each run that comes out; all else is worked out at once.
    """
    n = len(runs)
    if n < 2:
        return runs.astype(np.int64).reshape(-1, RUN_COLUMNS)
    count, first, step = runs[:, 0], runs[:, 1::2], runs[:, 2::2]
    gap = first[1:] - (first + (count - 1)[:, None] * step)[:-1]  # from the last row of a run to the next run's first
    alone = count == 1
    takes = alone[1:] | (step[1:] == gap).all(axis=1)  # whether a run goes on behind a gap in steps of it
    held = np.where(alone[:, None], np.vstack([np.zeros((1, 2), np.int64), gap]), step)  # the step of what a run is in
    broken = np.append(np.flatnonzero(~(takes & (gap == held[:-1]).all(axis=1))), n - 1)
    # for each run, the last that is one with it, if it is not a lone first row
    last = broken[np.searchsorted(broken, np.arange(n))].tolist()
    lone, second = alone.tolist(), [*takes.tolist(), False]
    starts, at = [], 0
    while at < n:
        starts.append(at)
        at = (last[at + 1] if second[at] else at) + 1 if lone[at] else last[at] + 1
    begin = np.array(starts, np.int64)
    out: Index = runs[begin].astype(np.int64)
    out[:, 0] = np.add.reduceat(count, begin)
    grown = alone[begin] & (out[:, 0] > 1)
    out[grown, 2::2] = gap[begin[grown]]
    return out


def expanded(runs: Index, start: int, stop: int) -> Index:
    """int64 `[stop - start, 2]`: file and row in it of rows `start` to `stop`."""
    ends = np.cumsum(runs[:, 0])
    rows = np.arange(start, stop)
    run = np.searchsorted(ends, rows, side="right")
    count, file, file_step, first, row_step = runs[run].T
    inside = rows - (ends[run] - count)
    return np.column_stack([file + inside * file_step, first + inside * row_step])


@dataclass(frozen=True, eq=False)
class Provenance:
    """The files that were read and the rows that they made.

    `names`: relative paths, joined; `ends`: int64 `[files]`, where each ends in it; `sizes`: int64 `[files]`, bytes;
    `mtimes`: int64 `[files]`, ns; `runs`: int64 `[runs, 5]`; `digests`: int64 `[files, 2]`, xxh3-128 of each file's
    bytes, upper half first, 0 where it isn't known; `[0, 2]` where none is: files that are read in pieces have none.
    """

    names: bytes
    ends: Index
    sizes: Index
    mtimes: Index
    runs: Index
    digests: Index = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def to_bytes(self) -> bytes:
        head = np.array([len(self.ends), len(self.names), len(self.runs)], "<i8")
        tables = (head, self.ends, self.sizes, self.mtimes, self.runs, self.digests)
        return _MAGIC + b"".join(np.ascontiguousarray(t, "<i8").tobytes() for t in tables) + self.names

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Provenance:
        """Raises `IncompleteStore` for a table that is damaged."""
        at = len(_MAGIC)
        if raw[:at] != _MAGIC or len(raw) < at + 24:
            raise IncompleteStore(f"{where}: the provenance table can't be read")
        files, names, runs = (int(n) for n in np.frombuffer(raw, "<i8", 3, at))
        at += 24
        rest = len(raw) - at - 8 * (3 * files + RUN_COLUMNS * runs) - names  # digests of all files, or none
        if min(files, names, runs) < 0 or rest not in (0, 16 * files):
            raise IncompleteStore(f"{where}: the provenance table is cut short or damaged")
        numbers = np.frombuffer(raw, "<i8", 3 * files + RUN_COLUMNS * runs, at)
        digests = np.frombuffer(raw, "<i8", rest // 8, at + numbers.nbytes).reshape(-1, 2)
        ends, sizes, mtimes = numbers[: 3 * files].reshape(3, files)
        table = numbers[3 * files :].reshape(runs, RUN_COLUMNS)
        found = cls(raw[len(raw) - names :], ends, sizes, mtimes, table, digests)
        low = found.runs[:, 1] + np.minimum(0, (found.runs[:, 0] - 1) * found.runs[:, 2])
        high = found.runs[:, 1] + np.maximum(0, (found.runs[:, 0] - 1) * found.runs[:, 2])
        rising = files == 0 or (ends[0] >= 0 and (np.diff(ends) >= 0).all() and ends[-1] == names)
        if not rising or (runs and (low.min() < 0 or high.max() >= files or found.runs[:, 0].min() < 1)):
            raise IncompleteStore(f"{where}: the provenance table is damaged")
        return found

    def narrowed(self, first: int, last: int) -> Provenance:
        """The same with fewer files: `first` to `last` (exclusive), and those between files that made rows."""
        low, high = first, last
        if len(self.runs):
            ends = self.runs[:, 1] + (self.runs[:, 0] - 1) * self.runs[:, 2]
            used = int(min(self.runs[:, 1].min(), ends.min())), int(max(self.runs[:, 1].max(), ends.max())) + 1
            low, high = (min(low, used[0]), max(high, used[1])) if last > first else used
        if high <= low or not len(self.ends):
            return self
        begin = int(self.ends[low - 1]) if low else 0
        runs = self.runs.copy()
        runs[:, 1] -= low
        names = self.names[begin : int(self.ends[high - 1])]
        some = slice(low, high)
        return Provenance(names, self.ends[some] - begin, self.sizes[some], self.mtimes[some], runs, self.digests[some])

    def digest(self, file: int) -> str | None:
        """xxh3-128 of a file's bytes, hex; None where it isn't known."""
        if not len(self.digests) or not self.digests[file].any():
            return None
        raw: bytes = self.digests[file].astype(">i8").tobytes()
        return raw.hex()

    def name(self, file: int) -> str:
        """Relative path of a file, with /."""
        start = int(self.ends[file - 1]) if file else 0
        return os.fsdecode(self.names[start : int(self.ends[file])])

    def whence(self, row: int) -> tuple[int, int]:
        """Number of the file, and of the row in it, that made a row. Raises `RowError`."""
        ends = np.cumsum(self.runs[:, 0])
        if not 0 <= row < (int(ends[-1]) if len(ends) else 0):
            raise RowError(f"row {row} has no provenance")
        file, inside = expanded(self.runs, row, row + 1)[0].tolist()
        return int(file), int(inside)
