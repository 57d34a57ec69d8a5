"""Memory for decoded rows."""

from __future__ import annotations

import numpy as np
import pytest

from bigconv.sources.room import Room


@pytest.mark.parametrize("nbytes", [1, 3072, 3073, 786_432])
def test_rows_begin_at_odd_addresses_also_when_it_has_grown(nbytes: int) -> None:
    """At a multiple of 32 libjpeg-turbo would write past the caches."""
    room = Room(nbytes)
    for i in range(3):
        room.place(nbytes)[:] = i
        room.keep()
        assert room.kept.__array_interface__["data"][0] % 2 == 1
    np.testing.assert_array_equal(room.kept, np.repeat([0, 1, 2], nbytes))
