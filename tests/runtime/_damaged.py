"""A row that the disk can't read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigconv.runtime import StoreDataset


def row_20(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, reading row 20 of any dataset fails."""
    whole = StoreDataset._take

    def take(self: StoreDataset, rows: Any) -> Any:
        if 20 in np.asarray(rows):
            raise OSError("the disk can't read this")
        return whole(self, rows)

    monkeypatch.setattr(StoreDataset, "_take", take)
