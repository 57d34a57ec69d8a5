"""Every row once over any ranks and workers, also when their number changes on the way."""

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.errors import UsageError
from bigconv.view.order import epoch_order
from bigconv.view.partition import Lane, Walk, merge

LAYOUTS = list(product((1, 2, 3, 8), (1, 2, 4)))


def lanes(world_size: int, workers: int) -> list[Lane]:
    return [Lane(r, world_size, w, workers) for r in range(world_size) for w in range(workers)]


def read(rows: int, batch: int, lane: Lane, **how: bool) -> list[np.ndarray]:
    return list(Walk.start(rows, batch, lane, **how).batches(epoch_order([rows], True, 0, 0)))


@pytest.mark.parametrize(("world_size", "workers"), LAYOUTS)
@pytest.mark.parametrize("rows", [0, 1, 5, 96, 103])
@pytest.mark.parametrize("batch", [1, 3, 16, 200])
def test_every_row_once(rows: int, batch: int, world_size: int, workers: int) -> None:
    found = {lane: read(rows, batch, lane) for lane in lanes(world_size, workers)}
    assert sorted(r for batches in found.values() for b in batches for r in b) == list(range(rows))
    assert all(0 < len(b) <= batch for batches in found.values() for b in batches)
    of_rank = [sum(len(found[lane]) for lane in found if lane.rank == r) for r in range(world_size)]
    assert max(of_rank) - min(of_rank) <= 1
    for lane, batches in found.items():
        assert len(Walk.start(rows, batch, lane)) == len(batches)


@pytest.mark.parametrize(("world_size", "workers"), LAYOUTS)
@pytest.mark.parametrize("rows", [1, 5, 96, 103])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_ranks_are_equal_with_drop_last_or_pad(rows: int, batch: int, world_size: int, workers: int) -> None:
    for how in ("drop_last", "pad"):
        ranks = []
        for rank in range(world_size):
            mine = [read(rows, batch, Lane(rank, world_size, w, workers), **{how: True}) for w in range(workers)]
            ranks.append(mine)
        shapes = {str([[len(b) for b in worker] for worker in rank]) for rank in ranks}
        assert len(shapes) == 1
        counts = np.bincount([r for rank in ranks for worker in rank for b in worker for r in b], minlength=rows)
        total = int(counts.sum())
        if how == "drop_last":
            assert counts.max() <= 1
            assert total == rows // (batch * world_size) * batch * world_size
        else:
            assert counts.min() >= 1
            assert total - rows < world_size


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_in_turn_give_the_sequence_of_one(workers: int) -> None:
    """What a DataLoader makes of it doesn't depend on their number."""
    alone = read(1000, 16, Lane(1, 3))
    turns = [read(1000, 16, Lane(1, 3, w, workers)) for w in range(workers)]
    assert len(alone) == sum(map(len, turns))
    for i, batch in enumerate(alone):
        assert np.array_equal(batch, turns[i % workers][i // workers])


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 300),
    runs=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 20), st.booleans(), st.randoms()), max_size=5
    ),
)
def test_any_layout_goes_on_from_any_other(rows: int, runs: list) -> None:
    """A chain of runs, each with its own ranks, workers and batch, each lane stopped anywhere: every row once."""
    order = epoch_order([rows], True, 1, 0)
    seen: list[int] = []
    state = None
    for world_size, workers, batch, through_json, random in runs:
        states = []
        for lane in lanes(world_size, workers):
            walk = Walk.start(rows, batch, lane)
            walk = walk if state is None else walk.resumed(state)
            stop = random.randint(walk.taken, len(walk))
            for taken, read_rows in enumerate(walk.batches(order), walk.taken + 1):
                if taken > stop:
                    break
                seen += read_rows.tolist()
            states.append(walk.moved(stop).state())
        state = merge(states)
        state = json.loads(json.dumps(state)) if through_json else state
    for lane in lanes(2, 2):
        walk = Walk.start(rows, 4, lane)
        walk = walk if state is None else walk.resumed(state)
        for read_rows in walk.batches(order):
            seen += read_rows.tolist()
    assert sorted(seen) == list(range(rows))


@pytest.mark.parametrize("steps", [0, 1, 5, 8])
def test_one_rank_speaks_for_all(steps: int) -> None:
    """Ranks that step together need only one of them to save."""
    rows, order = 103, epoch_order([103], True, 0, 0)
    seen: list[int] = []
    for rank in range(3):
        walk = Walk.start(rows, 4, Lane(rank, 3))
        seen += [int(r) for batch in list(walk.batches(order))[:steps] for r in batch]
    state = Walk.start(rows, 4, Lane(1, 3)).moved(steps).state()
    for rank in range(5):
        walk = Walk.start(rows, 7, Lane(rank, 5)).resumed(state)
        seen += [int(r) for batch in walk.batches(order) for r in batch]
    assert sorted(seen) == list(range(rows))


def test_the_same_layout_goes_on_exactly() -> None:
    order = epoch_order([500], True, 0, 0)
    for lane in lanes(2, 3):
        whole = Walk.start(500, 8, lane)
        later = Walk.start(500, 8, lane).resumed(whole.moved(4).state())
        expected = list(whole.batches(order))[4:]
        assert [b.tolist() for b in later.batches(order)] == [b.tolist() for b in expected]


def test_one_of_several_workers_cannot_speak_for_all() -> None:
    state = Walk.start(100, 4, Lane(0, 1, 1, 2)).moved(3).state()
    with pytest.raises(UsageError, match="worker 1's of 2"):
        Walk.start(100, 4, Lane(0, 1, 0, 3)).resumed(state)
    with pytest.raises(UsageError, match="no state of rank 0, worker 0"):
        merge([state])
    with pytest.raises(UsageError, match="two states of one worker"):
        merge([Walk.start(100, 4, Lane()).state()] * 2)
    with pytest.raises(UsageError, match="different epochs"):
        merge([Walk.start(100, 4, Lane()).state(), Walk.start(100, 5, Lane()).state()])
    with pytest.raises(UsageError, match="no state"):
        merge([{}])


@pytest.mark.parametrize("state", [{}, {"left": 3}, {"left": [[0]], "rank": 0}])
def test_what_is_no_state(state: dict) -> None:
    with pytest.raises(UsageError, match="not a state"):
        Walk.start(10, 2, Lane()).resumed(state)


def test_refused() -> None:
    with pytest.raises(UsageError, match="rank 3 of 3"):
        Lane(3, 3)
    with pytest.raises(UsageError, match="batch_size must be positive"):
        Walk.start(10, 0, Lane())
    with pytest.raises(UsageError, match="exclude each other"):
        Walk.start(10, 1, Lane(), drop_last=True, pad=True)
