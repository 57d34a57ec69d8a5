"""Rows dealt out to parts: by fractions or folds, class by class, groups kept whole. numpy only."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np

from bigconv.block import Array, Index, cell
from bigconv.errors import SchemaError, UsageError
from bigconv.view.order import random_bits
from bigconv.view.table import StoreView

_DEALT = 32  # what the random numbers are for, apart from the uses in view/order.py


def stratified_split(
    labels: Any, fractions: Sequence[float], seed: int = 0, field: str = "label", groups: Any = None
) -> list[Index]:
    """Rows in parts of the given fractions, with each class's share in every part within one row of its fraction.

    `labels`: `[rows]`, or a dataset, `Subset` or view whose `field` holds them. `groups`: `[rows]` or a field's name;
    rows of one group are never split, and classes are shared out as evenly as whole groups allow. The parts are int64
    row numbers, rising, together every row once. Raises `UsageError` for a part that would get no row.
    """
    values = labels_of(labels, field)
    part = dealt(len(values), fractions, values, _of_rows(labels, groups, len(values), "groups"), seed)
    return [np.flatnonzero(part == p) for p in range(len(fractions))]


def k_fold(
    rows: Sized | int, k: int, stratify: Any = None, groups: Any = None, seed: int = 0
) -> list[tuple[Index, Index]]:
    """`k` pairs (train, validation) of int64 row numbers, rising; each row is in one validation part.

    `rows`: their number, or a dataset, `Subset` or view. `stratify`: labels `[rows]` or a field's name, each class then
    within one row of equal in all folds. `groups`: `[rows]` or a field's name; rows of one group are never split.
    Raises `UsageError` for more folds than rows, or than groups.
    """
    count = rows if isinstance(rows, int) else len(rows)
    if k < 2:
        raise UsageError(f"k must be at least 2, got {k}")
    labels = _of_rows(rows, stratify, count, "stratify")
    part = dealt(count, [1 / k] * k, labels, _of_rows(rows, groups, count, "groups"), seed)
    return [(np.flatnonzero(part != p), np.flatnonzero(part == p)) for p in range(k)]


def dealt(
    rows: int, fractions: Sequence[float], labels: Array | None = None, groups: Array | None = None, seed: int = 0
) -> Index:
    """int64 `[rows]`: the part each row belongs to. `labels`, `groups`: `[rows]`, of any type that can be sorted."""
    share = np.asarray(fractions, np.float64)
    if share.ndim != 1 or not len(share) or not (share > 0).all() or abs(float(share.sum()) - 1) > 1e-6:
        raise UsageError(f"fractions must be positive and add up to 1, got {list(fractions)}")
    share = share / share.sum()
    which = np.zeros(rows, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    bits = random_bits(rows, seed, _DEALT)
    part = _by_class(which, share, bits) if groups is None else _by_group(which, groups, share, bits)
    sizes = np.bincount(part, minlength=len(share))
    if (sizes == 0).any():
        p = int(np.argmin(sizes))
        of = f"{rows} rows" if groups is None else f"{rows} rows in {len(np.unique(groups))} groups"
        raise UsageError(f"part {p} ({share[p]:.3g} of {of}) would get no row")
    return part


def _by_class(which: Index, share: Array, bits: Array) -> Index:
    """Each class by itself; whole rows that don't divide go to the parts that have had least for their share."""
    part = np.empty(len(which), np.int64)
    order = np.lexsort((bits, which))
    owed = np.zeros(len(share))
    start = 0
    for count in np.bincount(which).tolist():
        ideal = share * count
        given = np.floor(ideal + 1e-9).astype(np.int64)
        fraction = ideal - given
        candidates = np.where(fraction > 1e-9, owed + fraction, -np.inf)
        given[np.argsort(-candidates, kind="stable")[: count - int(given.sum())]] += 1
        owed += ideal - given
        part[order[start : start + count]] = np.repeat(np.arange(len(share)), given)
        start += count
    return part


def _by_group(which: Index, groups: Array, share: Array, bits: Array) -> Index:
    """Whole groups, largest first, each to the part that it brings nearest to its share of classes and rows."""
    names, group = np.unique(groups, return_inverse=True)
    classes = np.bincount(which) if len(which) else np.zeros(1, np.int64)
    pairs, counts = np.unique(group * len(classes) + which, return_counts=True)
    pair_group, pair_class = np.divmod(pairs, len(classes))
    first = np.searchsorted(pair_group, np.arange(len(names) + 1))
    target = share[:, None] * classes
    have = np.zeros_like(target)
    sizes, rows = share * len(which), np.zeros(len(share))
    part_of = np.empty(len(names), np.int64)
    order = np.lexsort((bits[: len(names)], -np.bincount(group, minlength=len(names))))
    for left, g in zip(range(len(names), 0, -1), order.tolist(), strict=True):
        of = slice(first[g], first[g + 1])
        c, n = pair_class[of], counts[of]
        # growth of the squared distance from the target, each class counted in units of its own size
        growth = (n * (2 * (have[:, c] - target[:, c]) + n) / classes[c]).sum(axis=1)
        # rows in all count as a class of their own: among parts that lack a class alike, the emptiest
        growth += n.sum() * (2 * (rows - sizes) + n.sum()) / len(which)
        if left <= np.count_nonzero(rows == 0):  # a group for each part that has none yet
            growth = np.where(rows == 0, growth, np.inf)
        part_of[g] = p = int(np.argmin(growth))
        have[p, c] += n
        rows[p] += n.sum()
    return part_of[group]


def labels_of(labels: Any, field: str) -> Array:
    """One value a row, `[rows]`: as given, or as the field of a dataset or view has them; text as `str`.

    Raises `UsageError` or `SchemaError` where that isn't one value a row.
    """
    whole, rows = picked(labels)
    if rows is not None:
        return labels_of(whole, field)[rows]
    view = view_of(labels)
    if view is None:
        values = np.asarray(labels)
        if values.ndim != 1:
            raise UsageError(f"expected one value a row, got an array of shape {values.shape}")
        return values
    found = StoreView.of(view.roots, [field])
    f = found.schema[field]
    if f.kind == "text":
        texts = [cell(f, block.columns[field], i) for block in found.blocks() for i in range(len(block))]
        return np.array(texts, np.str_)
    if f.shape != ():
        raise SchemaError(f"field {field}: expected one value a row, got shape {f.shape}")
    return np.concatenate([np.empty(0, f.dtype), *(block.columns[field] for block in found.blocks())])


def _of_rows(rows: Any, given: Any, count: int, what: str) -> Array | None:
    if given is None:
        return None
    stored = isinstance(given, str) and view_of(picked(rows)[0]) is not None
    values = labels_of(rows, given) if stored else labels_of(given, "")
    if len(values) != count:
        raise UsageError(f"{what}: {len(values)} values for {count} rows")
    return values


def picked(rows: Any) -> tuple[Any, Index | None]:
    """The dataset behind a `Subset` of torch's, or several in one another, and its int64 row numbers, else None."""
    numbers: Index | None = None
    while hasattr(rows, "dataset") and hasattr(rows, "indices"):
        of = np.asarray(rows.indices, np.int64)
        rows, numbers = rows.dataset, of if numbers is None else of[numbers]
    return rows, numbers


def view_of(rows: Any) -> StoreView | None:
    """The rows of a dataset as stored, or a view as it is; None of anything else.

    Raises `UsageError` for a dataset that has something else than the store's rows, as windows are.
    """
    view = rows if isinstance(rows, StoreView) else getattr(rows, "view", None)
    if not isinstance(view, StoreView):
        return None
    if len(rows) != len(view):
        raise UsageError(
            f"{rows!r} has {len(rows)} samples, and its store {len(view)} rows: what the store holds of rows\n"
            "says nothing of them. Give an array with one value for each sample"
            + ("; windows.locate tells the group of each window" if hasattr(rows, "windows") else "")
        )
    return view
