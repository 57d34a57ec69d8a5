"""How many rows each class has: told by the manifests, or else counted. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigconv.class_counts import summed
from bigconv.view.splits import labels_of, view_of


def class_counts(labels: Any, field: str = "label") -> dict[Any, int]:
    """Class → rows, for the classes that have any, in order of their labels.

    `labels`: `[rows]`, or a dataset, `Subset` or view whose `field` holds them. Nothing is read where the
    rows were counted as they were written.
    """
    known = recorded_counts(labels, field)
    if known is None:
        classes, counts = np.unique(labels_of(labels, field), return_counts=True)
        return dict(zip(classes.tolist(), counts.tolist(), strict=True))
    return known


def recorded_counts(labels: Any, field: str) -> dict[int, int] | None:
    """Label → rows, as the manifests of all stores of a dataset or view have it; None where one doesn't."""
    view = view_of(labels)
    if view is None:
        return None
    pairs = summed(root.manifest.counts for root in view.roots).get(field)
    return None if pairs is None else dict(pairs)
