"""Which of many segments a number lies in: documents of items, or of windows."""

from __future__ import annotations

import numpy as np

from bigconv.block import Index

_BUCKETS = 16  # of numbers, for each segment: 7 of 8 or more then lie in one segment
_MOST_BUCKETS = 1 << 22  # 16 MiB


class Segments:
    """Segments that follow on one another: number `s` has the numbers `bounds[s]` to `bounds[s + 1]`, if any.

    `bounds`: int64 `[segments + 1]`, rising from 0.
    """

    def __init__(self, bounds: Index) -> None:
        self._bounds, count = bounds, int(bounds[-1])
        buckets = min(_BUCKETS * len(bounds), _MOST_BUCKETS)
        self._shift = (count // buckets).bit_length()
        edges = np.arange((count >> self._shift) + 2) << self._shift
        segment = np.searchsorted(bounds, edges, side="right") - 1
        # of each bucket; -1: several. Half as wide as numbers are, as it is looked up at random
        narrow = np.int32 if len(bounds) < 1 << 31 else np.int64
        self._segment = np.where(segment[:-1] == segment[1:], segment[:-1], -1).astype(narrow)

    def of(self, numbers: Index) -> Index:
        """int64 `[n]`: the segment that holds each of these numbers, all of which are in one."""
        # a search among a million documents takes as long as the copy; most buckets lie in one document
        segment = self._segment.take(numbers >> self._shift).astype(np.int64)
        several = (segment < 0).nonzero()[0]
        segment[several] = self._bounds.searchsorted(numbers[several], "right") - 1
        return segment


def split(first: Index, counts: Index, bounds: Index) -> tuple[Index, Index, Index, Index]:
    """Cut runs `first` to `first + counts` (none empty) at rising bounds.

    int64 `[pieces]` each, in order: number of the run, of the segment (`bounds[s]` to `bounds[s + 1]`) it lies in,
    its first item and how many items it has.
    """
    low = np.searchsorted(bounds, first, side="right") - 1
    high = np.searchsorted(bounds, first + (counts - 1), side="right") - 1
    if (low == high).all():
        return np.arange(len(first)), low, first, counts
    pieces = high - low + 1
    run = np.repeat(np.arange(len(first)), pieces)
    segment = np.repeat(low - np.cumsum(pieces) + pieces, pieces) + np.arange(len(run))
    start = np.maximum(first[run], bounds[segment])
    held = np.minimum((first + counts)[run], bounds[segment + 1]) - start
    some = held > 0  # segments without items lie between others
    return run[some], segment[some], start[some], held[some]
