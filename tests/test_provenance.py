"""Runs of rows, joined: against the same rule followed run by run."""

from __future__ import annotations

import numpy as np

from bigconv.provenance import RUN_COLUMNS, expanded, joined, runs_of


def one_by_one(runs: np.ndarray) -> np.ndarray:
    out: list[list[int]] = []
    for count, file, file_step, row, row_step in runs.tolist():
        if out:
            last = out[-1]
            steps = (last[2], last[4]) if last[0] > 1 else (file - last[1], row - last[3])
            fits = count == 1 or steps == (file_step, row_step)
            if fits and (last[1] + last[0] * steps[0], last[3] + last[0] * steps[1]) == (file, row):
                last[0] += count
                last[2], last[4] = steps
                continue
        out.append([count, file, file_step, row, row_step])
    return np.array(out, np.int64).reshape(-1, RUN_COLUMNS)


def some(rng: np.random.Generator, kind: int) -> np.ndarray:
    if kind == 0:  # of few numbers, so that much fits by chance
        runs = rng.integers(0, 3, (rng.integers(0, 9), RUN_COLUMNS))
        runs[:, 0] = rng.integers(1, 4, len(runs))
        runs[runs[:, 0] == 1, 2::2] = 0
        return runs
    pieces = [np.cumsum(rng.integers(0, 2, (n, 2)), 0) for n in rng.integers(1, 7, 4)]
    return np.concatenate([runs_of(piece) for piece in pieces])


def test_joined_as_run_by_run() -> None:
    rng = np.random.default_rng(0)
    for number in range(4000):
        runs = some(rng, number % 2)
        assert np.array_equal(joined(runs), one_by_one(runs)), runs


def test_joined_keeps_the_rows() -> None:
    rng = np.random.default_rng(1)
    rows = np.column_stack([np.zeros(500, np.int64), rng.permutation(500)])
    runs = joined(np.concatenate([runs_of(rows[:200]), runs_of(rows[200:])]))
    assert len(runs) < 300
    assert np.array_equal(expanded(runs, 0, 500), rows)
