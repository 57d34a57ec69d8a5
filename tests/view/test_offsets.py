"""Offsets that lead out of a field's values, from a damaged store, are an error and never an address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigconv.errors import IncompleteStore
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.view.table import open_view

Make = Callable[..., Path]
LOWEST, HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@pytest.mark.parametrize("wrong", [-1, 1 << 40, HIGHEST, LOWEST, LOWEST + 3, -(1 << 40)])
@pytest.mark.parametrize("which", [0, 5, 20])
def test_wild_offsets(make_store: Make, wrong: int, which: int) -> None:
    """One wrong end of a row, or start of the next; at the edges their difference overflows to a good number."""
    block = cases.block(Schema((Field("a", "int32", (None,)),)), 20, seed=1)
    path = make_store(block, ".mmap")
    offsets = np.load(path / "a.offsets.npy", mmap_mode="r+")
    offsets[which] = wrong
    offsets.flush()
    view = open_view(path)
    with pytest.raises(IncompleteStore, match="field a: offsets point out of the values; run inspect --verify"):
        view.take(np.arange(20))
    for row in {max(0, which - 1), min(19, which)}:
        with pytest.raises(IncompleteStore, match="offsets point out"):
            view[row]
    with pytest.raises(IncompleteStore, match="offsets point out"):
        list(view.blocks())
