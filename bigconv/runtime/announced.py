"""Small batches that an order has announced: gathered several at once when the first of them is asked for.

The way to a batch of 512 KiB costs more than its copy, and a DataLoader asks for one batch after the other. An order
that was made for a dataset tells it which rows come next. What was gathered ahead is given only to who asks for those
very rows, number by number, and once: so nothing depends on whether, when or where an announcement is followed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from bigconv.block import Array, Index

TOGETHER_BYTES = 8 << 20  # 8 MiB
MOST_TOGETHER = 16  # batches


class Announced:
    """What one reading of an order announces.

    `several(rows, stops)`: makes the batches of rows, each up to one of `stops`, all at once.
    """

    def __init__(self, together: int, several: Callable[[Index, Sequence[int]], list[Any]]) -> None:
        self.together, self._several = together, several
        self._batches: Sequence[Index] = ()  # announced, and not gathered yet
        self._made: deque[tuple[bytes, Any]] = deque()  # the row numbers of each, and what was gathered of them

    def follow(self, batches: Sequence[Index]) -> bool:
        """Announce the next batches, `together` at most. False if those before were gathered and not asked for."""
        heeded = 2 * len(self._made) <= self.together
        if not heeded:
            self._made.clear()
        self._batches = batches if heeded else ()
        return heeded

    def take(self, rows: Array) -> Any:
        """The batch of these rows if it is the next one, else None."""
        if rows.dtype != np.int64 or rows.ndim != 1:
            return None
        numbers = rows.tobytes()
        batch = self._next(numbers)
        batches = self._batches
        if batch is None and len(batches) and numbers == batches[0].tobytes():
            self._batches = ()
            whole = np.concatenate(batches)  # a copy: whoever is given an array of numbers may change it
            stops = list(accumulate(map(len, batches)))
            each = [whole[a:b].tobytes() for a, b in pairwise([0, *stops])]
            self._made = deque(zip(each, self._several(whole, stops), strict=True))
            batch = self._next(numbers)
        return batch

    def _next(self, numbers: bytes) -> Any:
        try:
            made = self._made.popleft()  # first of all, so that two threads never have the same one
        except IndexError:
            return None
        if made[0] == numbers:
            return made[1]
        self._made.appendleft(made)
        return None
