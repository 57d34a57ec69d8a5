"""What `--dry-run` reckons, against what a run then makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bigconv.conversion.estimate import estimate
from bigconv.conversion.plan import Plan
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy
from bigconv.sources.arrays import Arrays


def plan_of(folder: Path, *arrays: np.ndarray, dest: str = "o.lmdb", steps: tuple[tuple[str, str], ...] = ()) -> Plan:
    for i, array in enumerate(arrays):
        np.save(folder / f"x{i}.npy", array)
    paths = tuple(folder / f"x{i}.npy" for i in range(len(arrays)))
    return Request(paths, folder / dest, steps=steps, policy=Policy(0)).plan()[0]


def test_data_of_fixed_rows_is_exact(tmp_path: Path) -> None:
    reckoned = estimate(plan_of(tmp_path, np.zeros((1000, 7), np.int16), np.zeros(1000)), None, False)
    assert (reckoned.rows, reckoned.data) == (1000, 1000 * (14 + 8))


def test_a_store_that_wastes_says_so(tmp_path: Path) -> None:
    """12,288 bytes take four pages of 4 KiB in LMDB, with their header."""
    reckoned = estimate(plan_of(tmp_path, np.zeros((500, 12288), np.uint8)), None, False)
    assert reckoned.stores["lmdb"] == pytest.approx(500 * 16384, rel=0.02)
    assert any(hint.startswith("lmdb needs 1.3") for hint in reckoned.hints)
    assert not estimate(plan_of(tmp_path, np.zeros((500, 12288), np.uint8), dest="o.h5"), None, False).hints


def test_doubles_are_told(tmp_path: Path) -> None:
    hints = estimate(plan_of(tmp_path, np.zeros((50, 64)), dest="o.h5"), None, False).hints
    assert hints == ("x0: float64, twice what most training uses: --dtype float32",)


def test_a_step_that_drops_rows_is_reckoned_with(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def even(row):\n    return row['x0'] % 2 == 0\n")
    steps = (("filter", f"{tmp_path / 'f.py'}:even"),)
    for isolated in (False, True):
        plan = plan_of(tmp_path, np.arange(10_000), dest="o.h5", steps=steps)
        reckoned = estimate(plan, 60.0, isolated)
        assert reckoned.rows == 5000


def test_unknown_stays_unknown(tmp_path: Path) -> None:
    class Stream(Arrays):
        inputs = None

    plan = plan_of(tmp_path, np.zeros((500, 3)))
    source = Stream(**vars(plan.source))
    reckoned = estimate(replace(plan, source=source), None, False)
    assert (reckoned.rows, reckoned.data, reckoned.stores) == (None, None, {})
    assert reckoned.sampled > 0
