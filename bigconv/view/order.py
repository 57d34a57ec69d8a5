"""The order of an epoch as a pure function of (seed, epoch, position): nothing to hold, nothing to shuffle ahead.

An order maps positions (int64 `[n]`, each from 0 to `len(order) - 1`) to row numbers (int64 `[n]`), any slice of
them at once and in any sequence, so ranks, workers and resumed runs need to agree on nothing but a seed.
The numbers behind it are raw 64-bit output of PCG64 seeded by numpy's SeedSequence, both of which numpy promises
to keep as they are: the order of a seed stays the same for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bigconv.block import Index
from bigconv.errors import UsageError

SMALL = 4096  # rows: up to here a sorted table takes less than the network's setup, and reaches every permutation
ROUNDS = 6  # of the network; 4 are indistinguishable from random until about sqrt(n) rows have been seen, 6 far beyond
CHUNK = 256  # rows read together by a windowed order, where nothing else is said
CYCLE = 16384  # positions in which a mixture holds its weights exactly; an error of 0.006 % in each weight

# what the random numbers are for; part of their key, so that no two uses share them
_ROWS, _CHUNKS, _TAILS, _WINDOW, _MIX = range(5)


class Order(Protocol):
    """Rows of an epoch by position."""

    def __len__(self) -> int: ...

    def at(self, positions: Index) -> Index:
        """int64 `[n]`: the rows at these positions (int64 `[n]`, in range)."""


def random_bits(count: int, seed: int, *key: int) -> npt.NDArray[np.uint64]:
    """uint64 `[count]` that follow from seed and key alone. Raises `UsageError` for a negative or fractional seed."""
    try:
        # each part of the key in two words of its own, so that no two keys spell the same words
        words = tuple(word for part in key for word in (part & 0xFFFFFFFF, part >> 32))
        sequence = np.random.SeedSequence(seed, spawn_key=words)
    except (TypeError, ValueError):
        raise UsageError(f"seed and epoch must be whole numbers from 0 on, got {seed!r} and {key[1:2]}") from None
    return np.random.PCG64(sequence).random_raw(count)


def uniform(positions: Index, seed: int, *key: int) -> npt.NDArray[np.float64]:
    """float64 `[n]` in [0, 1): a random number for each position, by SplitMix64 (Steele, Lea, Flood 2014)."""
    x = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + random_bits(1, seed, *key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: npt.NDArray[np.uint64], n: int) -> Index:
    """Random bits as int64 numbers from 0 to `n - 1`, `n` at most 2**32."""
    return ((bits >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True)
class InOrder:
    """Rows as they are stored."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    def at(self, positions: Index) -> Index:
        return positions


class Permutation:
    """A random permutation of the numbers 0 to `rows - 1`, in O(sqrt(rows)) memory and evaluated at any position.

    A Feistel network: a number is split in two, `high` of about sqrt(rows) values and `low` of a power of two near
    that, and each half in turn is moved by a random function of the other, held as a table. Every step can be undone,
    so the whole is a permutation; numbers past the last row (at most one in sqrt(rows)) walk on until they are in
    range. (Luby and Rackoff 1988; Black and Rogaway 2002 for the walk.)
    """

    def __init__(self, rows: int, seed: int, *key: int) -> None:
        self._rows = rows
        self._table: Index | None = None
        if rows <= SMALL:
            self._table = np.argsort(random_bits(rows, seed, *key), kind="stable")
            return
        self._bits = (rows - 1).bit_length() + 1 >> 1
        low = 1 << self._bits
        high = -(-rows // low)
        raw = random_bits(ROUNDS // 2 * (low + high), seed, *key)
        self._rounds: list[tuple[Index, Index]] = []
        for turn in range(ROUNDS // 2):
            moves_low, moves_high, raw = raw[:high], raw[high : high + low], raw[high + low :]
            # `high` is counted modulo its size, which is taken at the end only: until then tables repeat themselves
            self._rounds.append((np.concatenate([below(moves_low, low)] * (turn + 1)), below(moves_high, high)))
        self._lifted = np.concatenate([np.arange(high) << self._bits] * (ROUNDS // 2 + 1))
        # where the few numbers past the last row end up. Each round doubles the steps looked ahead; what is still
        # outside when no way can be longer goes round in a circle out there, which no row ever enters
        self._walked = self._through(np.arange(rows, low * high))
        for _ in range(len(self._walked).bit_length()):
            outside = np.flatnonzero(self._walked >= rows)
            if not outside.size:
                break
            self._walked[outside] = self._walked[self._walked[outside] - rows]

    def __len__(self) -> int:
        return self._rows

    def at(self, positions: Index) -> Index:
        if self._table is not None:
            return self._table[positions]
        found = self._through(positions)
        outside = np.flatnonzero(found >= self._rows)
        if outside.size:
            found[outside] = self._walked[found[outside] - self._rows]
        return found

    def _through(self, numbers: Index) -> Index:
        high, low = numbers >> self._bits, numbers & ((1 << self._bits) - 1)
        spare = np.empty_like(high)
        for moves_low, moves_high in self._rounds:
            low ^= moves_low.take(high, 0, spare, "clip")
            high += moves_high.take(low, 0, spare, "clip")
        found = self._lifted.take(high, 0, spare, "clip")
        found |= low
        return found


class Windowed:
    """Chunks of rows in random order, and rows shuffled within windows of several chunks.

    `runs`: rows of each store, in order; no chunk spans two of them. A reader that keeps the chunks it has touched
    needs no more than `window` rows in memory (rounded to whole chunks, at least one) and reads each chunk once an
    epoch. Of a store sorted by class, the hardest case, the class counts of batches then vary
    `1 + batch * chunk / window` times as much as in an exact shuffle (tests/benchmarks/order.py): where that matters,
    a window should hold at least as many chunks as a batch has rows.
    """

    def __init__(self, runs: Sequence[int], window: int, chunk: int, seed: int, *key: int) -> None:
        sizes = np.asarray(runs, np.int64)
        self._chunk, self._seed, self._key = chunk, seed, key
        self._slots = max(1, window // chunk)  # of a window; a slot holds a chunk
        self._run_start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        full, tail = sizes // chunk, sizes % chunk
        self._first_full = np.concatenate([[0], np.cumsum(full)]).astype(np.int64)
        self._full = Permutation(int(full.sum()), seed, _CHUNKS, *key)
        # a run's last chunk may be short. These few get slots of their own, so that all arithmetic can be done as if
        # every slot were full, and what is missing is added back by how many short slots have passed
        short = np.flatnonzero(tail)
        places = Permutation(int(full.sum()) + len(short), seed, _TAILS, *key).at(np.arange(len(short)))
        by_place = np.argsort(places)
        self._short_slot, self._short_run = places[by_place], short[by_place]
        self._short_row = self._run_start[self._short_run] + full[self._short_run] * chunk
        missing = chunk - tail[self._short_run]
        self._missing = np.concatenate([[0], np.cumsum(missing)]).astype(np.int64)
        self._short_end = (self._short_slot + 1) * chunk - self._missing[1:]  # as a position
        self._windows: dict[int, Permutation] = {}

    def __len__(self) -> int:
        return int(self._run_start[-1])

    def at(self, positions: Index) -> Index:
        window = self._padded(positions) // (self._chunk * self._slots)
        shuffled = np.empty_like(positions)
        present = np.unique(window).tolist()
        self._windows = {w: self._windows.get(w) or self._window(w) for w in present}
        for w in present:
            here = np.flatnonzero(window == w) if len(present) > 1 else slice(None)
            start = self._start(w)
            shuffled[here] = self._windows[w].at(positions[here] - start) + start
        slot, inside = np.divmod(self._padded(shuffled), self._chunk)
        before = np.searchsorted(self._short_slot, slot)
        is_short = before < np.searchsorted(self._short_slot, slot, side="right")
        rows = np.empty_like(positions)
        chunk = self._full.at((slot - before)[~is_short])
        run = np.searchsorted(self._first_full, chunk, side="right") - 1
        rows[~is_short] = self._run_start[run] + (chunk - self._first_full[run]) * self._chunk
        rows[is_short] = self._short_row[before[is_short]]
        return rows + inside

    def _padded(self, positions: Index) -> Index:
        padded: Index = positions + self._missing[np.searchsorted(self._short_end, positions, side="right")]
        return padded

    def _start(self, window: int) -> int:
        """Position at which a window starts."""
        slot = window * self._slots
        return min(len(self), slot * self._chunk - int(self._missing[np.searchsorted(self._short_slot, slot)]))

    def _window(self, w: int) -> Permutation:
        return Permutation(self._start(w + 1) - self._start(w), self._seed, _WINDOW, *self._key, w)


class Mixed:
    """Several sources at once, in proportion to their weights; a source that is used up starts over, in a new order.

    Every `CYCLE` positions hold each source as often as its weight says (to the nearest whole number, at least once).
    `order(source, turn)`: the order of a source's rows when it is gone through for the `turn`-th time; `starts`: row
    number at which each source begins.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        rows: int,
        order: Callable[[int, int], Order],
        seed: int,
        epoch: int,
    ) -> None:
        self._sizes, self._rows, self._order, self._seed, self._epoch = list(sizes), rows, order, seed, epoch
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        self._share = _shares(weights)
        if 0 in self._sizes:
            raise UsageError(f"source {self._sizes.index(0)} of the mixture has no rows")
        self._source_of = np.repeat(np.arange(len(self._share), dtype=np.int16), self._share)
        self._orders: dict[tuple[int, int], Order] = {}
        self._cycles: dict[int, tuple[npt.NDArray[np.int16], Index]] = {}

    def __len__(self) -> int:
        return self._rows

    def at(self, positions: Index) -> Index:
        cycle, inside = np.divmod(positions, CYCLE)
        present = np.unique(cycle).tolist()
        self._cycles = {c: self._cycles.get(c) or self._cycle(c) for c in present}
        source = np.empty(len(positions), np.int16)
        number = np.empty(len(positions), np.int64)
        for c in present:
            here = cycle == c
            sources, numbers = self._cycles[c]
            source[here], number[here] = sources[inside[here]], numbers[inside[here]]
        rows = np.empty(len(positions), np.int64)
        used: dict[tuple[int, int], Order] = {}
        together = np.argsort(source, kind="stable")
        stops = np.searchsorted(source[together], np.arange(len(self._sizes)), side="right").tolist()
        for s, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)):
            of_source = together[start:stop]
            turn, place = np.divmod(number[of_source], self._sizes[s])
            for t in np.unique(turn).tolist():
                here = turn == t
                used[s, t] = order = self._orders.get((s, t)) or self._order(s, t)
                rows[of_source[here]] = order.at(place[here]) + self._starts[s]
        self._orders = used
        return rows

    def _cycle(self, c: int) -> tuple[npt.NDArray[np.int16], Index]:
        """Source of each position of a cycle, and how often the source has come before in the epoch."""
        dealt = Permutation(CYCLE, self._seed, _MIX, self._epoch, c).at(np.arange(CYCLE))
        source = self._source_of[dealt]
        number = np.empty(CYCLE, np.int64)
        first = np.cumsum(self._share) - self._share
        number[np.argsort(source, kind="stable")] = np.arange(CYCLE) - np.repeat(first, self._share)
        return source, number + c * self._share[source]


def _shares(weights: Sequence[float]) -> Index:
    """int64 `[sources]`, of sum `CYCLE`: positions of a cycle that each source gets."""
    given = np.asarray(weights, np.float64)
    if given.ndim != 1 or not given.size or not np.isfinite(given).all() or given.min() <= 0 or given.size > CYCLE // 2:
        raise UsageError(f"weights must be 1 to {CYCLE // 2} positive numbers, got {weights!r:.80}")
    ideal = given / given.sum() * CYCLE
    share: Index = np.maximum(1, ideal.astype(np.int64))
    while (lacking := CYCLE - int(share.sum())) > 0:
        share[np.argsort(share - ideal)[:lacking]] += 1
    while (over := int(share.sum()) - CYCLE) > 0:  # many sources that had to be lifted to 1
        richest = np.argsort(np.where(share > 1, ideal - share, np.inf))[: min(over, int((share > 1).sum()))]
        share[richest] -= 1
    return share


def epoch_order(
    runs: Sequence[int],
    shuffle: bool,
    seed: int,
    *key: int,
    window: int | None = None,
    chunk: int = CHUNK,
) -> Order:
    """The order of an epoch of stores with so many rows each; `key`: the epoch, and what else tells orders apart.

    Not shuffled, shuffled exactly, or, with `window` (in rows), by chunks within windows.
    """
    rows = sum(runs)
    if not shuffle:
        return InOrder(rows)
    if window is None or window >= rows:
        return Permutation(rows, seed, _ROWS, *key)
    return Windowed(runs, window, chunk, seed, *key)
