"""Segments against a search of numpy's."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.view.segments import Segments


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from([0, 0, 1, 2, 7, 1000, 100_000]), max_size=200), st.integers(0, 9))
def test_segments_of_all_sizes(lengths: list[int], seed: int) -> None:
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count = int(bounds[-1])
    edges = np.concatenate([bounds, bounds - 1, np.random.default_rng(seed).integers(0, max(1, count), 50)])
    numbers = edges[(edges >= 0) & (edges < count)]
    found = Segments(bounds).of(numbers)
    assert found.dtype == np.int64
    assert np.array_equal(found, np.searchsorted(bounds, numbers, side="right") - 1)


def test_no_segments() -> None:
    assert len(Segments(np.zeros(1, np.int64)).of(np.empty(0, np.int64))) == 0
