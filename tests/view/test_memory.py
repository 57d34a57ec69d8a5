"""Copies from addresses, against slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.view.memory import LOOP_ITEMS, copy_runs, overlay_runs


@pytest.mark.parametrize("item", [1, 2, 3, 12])
@settings(derandomize=True, deadline=None, database=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 3, LOOP_ITEMS - 1, LOOP_ITEMS, 400]), min_size=1, max_size=30),
    seed=st.integers(0, 9),
)
def test_runs_of_all_lengths(item: int, lengths: list[int], seed: int) -> None:
    """Many short runs or few long ones, at odd addresses: put where they belong, and nothing beside them touched."""
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, 9000, np.uint8)
    base = source.__array_interface__["data"][0]
    nbytes = np.array(lengths, np.int64) * item
    first = rng.integers(0, len(source) - nbytes)
    gaps = rng.integers(0, 5, len(nbytes))
    at = np.cumsum(nbytes + gaps) - nbytes
    expected = np.zeros(int(at[-1] + nbytes[-1]) + 16, np.uint8)
    for place, start, n in zip(at, first, nbytes, strict=True):
        expected[place : place + n] = source[start : start + n]
    out = np.zeros_like(expected).reshape(1, -1)
    overlay_runs(out, at, first + base, nbytes, item)
    assert np.array_equal(out[0], expected)
    joined = [source[start : start + n] for start, n in zip(first, nbytes, strict=True)]
    assert np.array_equal(copy_runs(first + base, nbytes, item), np.concatenate(joined))
