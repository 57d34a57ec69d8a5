"""Which rows an epoch has, and how many a batch: weighted, balanced over classes, by tokens.

The first two are a `BatchOrder` of another order and have all that it has: ranks, `set_epoch`, states. Used alike:
`DataLoader(dataset, sampler=..., batch_size=None)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore, SchemaError, UsageError
from bigconv.runtime.order import BatchOrder
from bigconv.view.classes import class_counts, recorded_counts
from bigconv.view.order import InOrder, Order, Permutation, epoch_order, random_bits, uniform
from bigconv.view.splits import labels_of, picked, view_of

# what random numbers are for, apart from the uses in view/order.py
_DRAWS, _RACE, _DEALT, _WITHIN, _BATCHES = range(16, 21)


class WeightedSampler(BatchOrder):
    """Rows drawn with probability in proportion to their weight.

    `weights`: `[rows]`, not negative. `num_samples`: rows of an epoch over all ranks, else the number of rows.
    Without `replacement` no row comes twice in an epoch (each draw is among those left; Efraimidis and Spirakis
    2006), and rows of weight 0 never come.
    """

    def __init__(
        self,
        weights: Sequence[float] | Array,
        batch_size: int,
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        pad: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.weights = np.asarray(weights, np.float64)
        if self.weights.ndim != 1 or not np.isfinite(self.weights).all() or (self.weights < 0).any():
            raise UsageError("weights must be one finite number a row, none of them negative")
        candidates = int(np.count_nonzero(self.weights))
        if not candidates:
            raise UsageError("no row has a weight above 0")
        self.num_samples = _samples(num_samples, len(self.weights) if replacement else candidates)
        if not replacement and self.num_samples > candidates:
            raise UsageError(f"{self.num_samples} rows without replacement, and {candidates} have a weight above 0")
        self.replacement = replacement
        with np.errstate(over="ignore"):
            self._sums = np.cumsum(self.weights)
        if not np.isfinite(self._sums[-1]):
            raise UsageError("the weights' sum is too large")
        ranks: Any = {"pad": pad, "rank": rank, "world_size": world_size}
        super().__init__(len(self.weights), batch_size, True, seed, drop_last, **ranks)

    def epoch_order(self, epoch: int) -> Order:
        if self.replacement:
            return _Drawn(self._sums, self.num_samples, self.seed, epoch)
        positive = np.flatnonzero(self.weights)
        # the earliest arrivals of a race in which each row runs at the speed of its weight; 1 - u is never 0
        arrival = -np.log1p(-uniform(positive, self.seed, _RACE, epoch)) / self.weights[positive]
        return _Listed(positive[np.argsort(arrival, kind="stable")[: self.num_samples]])

    def _positions(self) -> int:
        return self.num_samples

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "num_samples": self.num_samples, "replacement": self.replacement}


class ClassBalancedSampler(BatchOrder):
    """Every class equally often (to within one row an epoch), in random order.

    `labels`: `[rows]`, or a dataset or `Subset` whose `field` holds them: where its manifest counts the classes, they
    are read when the first batch is asked for. `num_samples`: rows of an epoch over all ranks, else the number of rows.
    The rows of a class all come before any of them comes again, also from epoch to epoch: of a large class each epoch
    sees the next part. Without `replacement` no row comes twice in an epoch, which then has at most the smallest
    class's rows of each class.
    """

    def __init__(
        self,
        labels: Any,
        batch_size: int,
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        field: str = "label",
        pad: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        known = recorded_counts(labels, field)
        self._labels, self._field = (labels_of(labels, field) if known is None else labels), field
        found = class_counts(self._labels, field) if known is None else known
        if not found:
            raise UsageError("no rows to sample from")
        self.classes = np.array(list(found))
        self._counts = np.array(list(found.values()), np.int64)
        rows, most = int(self._counts.sum()), len(found) * int(self._counts.min())
        self.num_samples = _samples(num_samples, rows if replacement else most)
        if not replacement and self.num_samples > most:
            raise UsageError(f"{self.num_samples} rows without replacement: balanced classes have no more than {most}")
        self.replacement = replacement
        ranks: Any = {"pad": pad, "rank": rank, "world_size": world_size}
        super().__init__(rows, batch_size, True, seed, drop_last, **ranks)

    @cached_property
    def _by_class(self) -> Index:
        """int64 `[rows]`: the rows of one class after those of another, each class's in random order."""
        values = labels_of(self._labels, self._field)
        self._labels = None  # not needed again
        _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
        if not np.array_equal(counts, self._counts):
            raise IncompleteStore(
                f"field {self._field}: its classes have other rows than the manifest counts.\n"
                "Which ones are damaged: bigconv inspect STORE --verify"
            )
        return np.lexsort((random_bits(self.rows, self.seed, _WITHIN), which))

    def epoch_order(self, epoch: int) -> Order:
        return _Balanced(self._by_class, self._counts, self.num_samples, self.seed, epoch)

    def _positions(self) -> int:
        return self.num_samples

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "num_samples": self.num_samples, "replacement": self.replacement}


class TokenBatchSampler(BatchOrder):
    """Batches of as many rows as `max_tokens` allow, of rows of similar length; each an int64 array of row numbers.

    `lengths`: `[rows]`, or a dataset or `Subset` whose ragged `field` (its only one, if not given) has them. A batch
    costs its rows times the longest of them (`padded`), or their sum. Rows are shuffled, sorted by length within
    `window` rows and cut; the batches of a window come in random order. Without `shuffle` rows stay in order and are
    only cut.

    Every row comes once an epoch over all ranks; with `drop_last` and `pad`, which leave out or repeat whole batches,
    all ranks have equally many. Raises `UsageError` for a row longer than `max_tokens`.
    """

    def __init__(
        self,
        lengths: Any,
        max_tokens: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        field: str | None = None,
        padded: bool = True,
        max_rows: int | None = None,
        window: int = 16384,
        pad: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.lengths = lengths_of(lengths, field)
        if max_tokens < 1 or window < 1 or (max_rows is not None and max_rows < 1):
            raise UsageError("max_tokens, max_rows and window must be positive")
        if len(self.lengths) and int(self.lengths.max()) > max_tokens:
            row = int(self.lengths.argmax())
            raise UsageError(
                f"row {row} has {int(self.lengths[row])} tokens, more than max_tokens={max_tokens}.\n"
                "Raise it, or sample from the rows that fit with Subset"
            )
        self.max_tokens, self.max_rows, self.padded = max_tokens, max_rows, padded
        self._cut: tuple[int, list[Index]] | None = None
        ranks: Any = {"pad": pad, "rank": rank, "world_size": world_size, "window": window}
        super().__init__(len(self.lengths), 1, shuffle, seed, drop_last, **ranks)

    def epoch_order(self, epoch: int) -> Order:
        """Numbers of batches, which are dealt out as other orders' rows are."""
        return InOrder(len(self.batches(epoch)))

    def order(self, epoch: int) -> Index:
        return np.concatenate([np.empty(0, np.int64), *self.batches(epoch)])

    def __iter__(self) -> Iterator[Index]:
        batches: list[Index] | None = None
        for number in super().__iter__():
            if batches is None:
                batches = self.batches(self.epoch - 1)  # the first number has moved the epoch on
            yield batches[int(number[0])]

    def batches(self, epoch: int) -> list[Index]:
        """int64 row numbers of each batch of an epoch, over all ranks."""
        if self._cut is None or self._cut[0] != epoch:
            order = epoch_order([self.rows], self.shuffle, self.seed, epoch)
            step = self.window if self.shuffle and self.window else max(1, self.rows)
            cut: list[Index] = []
            for start in range(0, self.rows, step):
                rows = order.at(np.arange(start, min(start + step, self.rows), dtype=np.int64))
                cut += self._cut_window(rows, epoch, start)
            self._cut = epoch, cut
        return self._cut[1]

    def _positions(self) -> int:
        return len(self.batches(self.epoch))

    def _identity(self) -> dict[str, Any]:
        return {
            **super()._identity(),
            "max_tokens": self.max_tokens,
            "max_rows": self.max_rows,
            "padded": self.padded,
        }

    def _cut_window(self, rows: Index, epoch: int, start: int) -> list[Index]:
        if self.shuffle:
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        lengths = self.lengths[rows]
        sums, longest = np.concatenate([[0], np.cumsum(lengths)]), np.maximum(lengths, 1)
        cuts = [0]
        while (a := cuts[-1]) < len(rows):
            if not self.padded:
                most = int(np.searchsorted(sums, sums[a] + self.max_tokens, side="right")) - 1 - a
            elif self.shuffle:
                most = self.max_tokens // int(longest[a])  # sorted, so the first is the longest
            else:
                most = self._fitting(longest[a:])
            cuts.append(a + min(most, self.max_rows or most, len(rows) - a))
        batches = [rows[a:b] for a, b in pairwise(cuts)]
        if not self.shuffle:
            return batches
        mixed = Permutation(len(batches), self.seed, _BATCHES, epoch, start).at(np.arange(len(batches)))
        return [batches[i] for i in mixed.tolist()]

    def _fitting(self, longest: Index) -> int:
        """How many rows from the first on fit one padded batch."""
        ahead = longest[: self.max_tokens // int(longest[0])]
        cost = np.maximum.accumulate(ahead) * np.arange(1, len(ahead) + 1)
        return int(np.searchsorted(cost, self.max_tokens, side="right"))


def lengths_of(lengths: Any, field: str | None) -> Index:
    """int64 `[rows]`: lengths as given, or the items in each row of a dataset's ragged field."""
    whole, rows = picked(lengths)
    if rows is not None:
        return lengths_of(whole, field)[rows]
    view = view_of(lengths)
    if view is None:
        values = np.asarray(lengths)
        if values.ndim != 1 or (values.size and (values.dtype.kind not in "iu" or values.min() < 0)):
            raise UsageError("lengths must be one whole number a row, none of them negative")
        return values.astype(np.int64)
    ragged = [f.name for f in view.schema if f.ragged]
    if field is None and len(ragged) != 1:
        raise UsageError(f"field: say which one's lengths count. Of varying length are: {', '.join(ragged) or 'none'}")
    name = field or ragged[0]
    if not view.schema[name].ragged:
        raise SchemaError(f"field {name}: all rows have the same length {view.schema[name].shape}")
    step = 1 << 16
    pieces = [view.lengths(name, np.arange(a, min(a + step, len(view)))) for a in range(0, len(view), step)]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _samples(asked: int | None, default: int) -> int:
    if asked is not None and asked < 1:
        raise UsageError(f"num_samples must be positive, got {asked}")
    return default if asked is None else asked


@dataclass(frozen=True, eq=False)
class _Listed:
    """Rows as a list has them."""

    rows: Index

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, positions: Index) -> Index:
        return self.rows[positions]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Independent draws by weight: where a random number falls among the weights' sums."""

    sums: Array
    samples: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return self.samples

    def at(self, positions: Index) -> Index:
        drawn = uniform(positions, self.seed, _DRAWS, self.epoch) * np.nextafter(self.sums[-1], 0)
        # searching in sorted order stays in the cache: half the time of a random one for a million rows
        order = np.argsort(drawn)
        rows = np.empty(len(positions), np.int64)
        rows[order] = np.searchsorted(self.sums, drawn[order], side="right")
        return rows


class _Balanced:
    """Position -> class and number within the class, by a permutation of all of an epoch's (number, class)."""

    def __init__(self, by_class: Index, counts: Index, samples: int, seed: int, epoch: int) -> None:
        self._by_class, self._counts, self._first = by_class, counts, np.cumsum(counts) - counts
        self._dealt = Permutation(samples, seed, _DEALT, epoch)
        self._before = epoch * samples  # each class goes on where the epoch before has stopped

    def __len__(self) -> int:
        return len(self._dealt)

    def at(self, positions: Index) -> Index:
        number, which = np.divmod(self._dealt.at(positions) + self._before, len(self._counts))
        rows: Index = self._by_class[self._first[which] + number % self._counts[which]]
        return rows
