"""What is HDF5's own."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import bigconv
from bigconv.stores.hdf5 import Hdf5
from bigconv.testing import cases
from bigconv.testing.store_suite import SCHEMAS, write


@pytest.mark.parametrize("locking", [None, True, False])
def test_opens_while_the_user_has_it_open(tmp_path: Path, locking: bool | None) -> None:
    """HDF5 refuses a second handle with other locking flags; bigconv takes those that are there."""
    block = cases.block(SCHEMAS["image and label"], 5)
    write(tmp_path / "a.h5", Hdf5(), block, 5)
    with h5py.File(tmp_path / "a.h5", "r", locking=locking) as file:
        view = bigconv.open(tmp_path / "a.h5")
        assert np.array_equal(file["image"][:], view[:]["image"])


def test_datasets_are_contiguous_and_aligned(tmp_path: Path) -> None:
    block = cases.block(SCHEMAS["rows of pages"], 5)
    write(tmp_path / "a.h5", Hdf5(), block, 5)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["x"].chunks is None
        assert file["x"].id.get_offset() % 4096 == 0
