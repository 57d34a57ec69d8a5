"""Orders by arithmetic: true permutations, as random as numpy's, the same for ever, bounded where they promise it."""

import numpy as np
import pytest

from bigconv.errors import UsageError
from bigconv.view.order import CYCLE, SMALL, InOrder, Mixed, Order, Permutation, Windowed, epoch_order, uniform

SIZES = (0, 1, 2, 3, 100, SMALL - 1, SMALL, SMALL + 1, 5003, 65536, 65537, 300_000)


def everything(order: Order) -> np.ndarray:
    return order.at(np.arange(len(order), dtype=np.int64))


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations from what equally likely cells would give."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return float((statistic - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("rows", SIZES)
def test_every_row_once(rows: int) -> None:
    order = epoch_order([rows], True, 3, 0)
    found = everything(order)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(rows))


def test_every_row_once_for_every_seed() -> None:
    """With one, few and many numbers past the last row, among them some that lead nowhere."""
    for rows in (4_097, 4_159, 8_191, 8_200):
        for seed in range(60):
            assert np.array_equal(np.sort(everything(Permutation(rows, seed, 0, 0))), np.arange(rows))


def test_any_slice_in_any_sequence() -> None:
    """What comes at a position depends on the position alone; the argument stays as it is."""
    for order in (epoch_order([70_000], True, 1, 2), Windowed([30_000, 40_000], 5_000, 64, 1, 2)):
        found = everything(order)
        at = np.random.default_rng(0).integers(0, 70_000, 5_000)
        before = at.copy()
        assert np.array_equal(order.at(at), found[at])
        assert np.array_equal(at, before)
        assert np.array_equal(order.at(np.arange(69_990, 70_000)), found[-10:])
        assert order.at(np.empty(0, np.int64)).shape == (0,)


def test_the_order_of_a_seed_stays() -> None:
    """Resuming with a later version, or another numpy, must find the same order."""
    assert everything(epoch_order([10], True, 0, 0)).tolist() == [1, 9, 0, 4, 8, 6, 7, 2, 3, 5]
    assert epoch_order([10**8], True, 42, 7).at(np.arange(5)).tolist() == [
        99531189,
        60955511,
        95268405,
        47564545,
        28328502,
    ]
    assert Windowed([1000, 500], 256, 32, 1, 0).at(np.arange(5)).tolist() == [324, 385, 475, 1395, 399]


def test_seeds_and_epochs_differ() -> None:
    """Also (1, 0) and (0, 1), and seeds beyond 32 bits."""
    found = {tuple(everything(epoch_order([50], True, *key)).tolist()) for key in SEEDS}
    assert len(found) == len(SEEDS)


SEEDS = [
    (0, 0),
    (1, 0),
    (0, 1),
    (2**32, 0),
    (0, 2**32),
    (2**64, 0),
    (2**32 + 1, 0),
    (0, 0, 1),
    (0, 0, 0, 0),
    (0, 0, 0, 1),
]


def test_small_orders_reach_every_permutation() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(6_000):
        key = tuple(everything(epoch_order([4], True, 5, epoch)).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert abs(chi_square(np.array(list(counts.values())))) < 4


def test_network_is_as_random_as_a_shuffle() -> None:
    """Where rows land, how neighbours part, fixed points and cycles: each within what chance allows."""
    rows, epochs, bins = 5_003, 200, 16
    where = np.zeros((bins, bins))
    steps = np.zeros(64)
    fixed, cycles, serial = 0, 0, []
    position = np.arange(rows)
    for epoch in range(epochs):
        found = everything(Permutation(rows, 11, 0, epoch))
        np.add.at(where, (position * bins // rows, found * bins // rows), 1)
        np.add.at(steps, (np.diff(found) % rows) * 64 // rows, 1)
        fixed += int((found == position).sum())
        serial.append(np.corrcoef(found[:-1], found[1:])[0, 1])
        if epoch < 40:
            cycles += count_cycles(found)
    assert abs(chi_square(where)) < 5
    assert abs(chi_square(steps)) < 5
    assert abs(fixed - epochs) < 5 * np.sqrt(epochs)  # Poisson of mean 1 an epoch
    assert abs(np.mean(serial)) < 5 / np.sqrt(rows * epochs)
    assert abs(cycles / 40 - (np.log(rows) + 0.577)) < 5 * np.sqrt(np.log(rows) / 40)


def test_network_scatters_a_run_of_positions() -> None:
    """The first batches of a large epoch spread over all rows like draws of numpy's, and so do rows of one stride."""
    order = epoch_order([100_000_000], True, 0, 0)
    for stride in (1, 437, 8192):
        at = np.arange(200_000) * stride % 100_000_000
        found = order.at(at)
        assert len(np.unique(found)) == 200_000
        counts = np.bincount(found * 1000 // 100_000_000, minlength=1000)
        assert abs(chi_square(counts)) < 5
        low = np.bincount(found % 1024, minlength=1024)
        assert abs(chi_square(low)) < 5
        pairs = np.bincount((found[:-1] * 32 // 10**8) * 32 + found[1:] * 32 // 10**8, minlength=1024)
        assert abs(chi_square(pairs)) < 5


def count_cycles(permutation: np.ndarray) -> int:
    following, seen, found = permutation.tolist(), [False] * len(permutation), 0
    for start in range(len(following)):
        if not seen[start]:
            found += 1
        while not seen[start]:
            seen[start] = True
            start = following[start]
    return found


def test_no_memory_a_row() -> None:
    import tracemalloc

    tracemalloc.start()
    order = epoch_order([10**10], True, 0, 0)
    order.at(np.arange(1024))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize("runs", [[10_000], [5_000, 1, 777, 0, 3], [3, 2, 1], [1024], [255], [0, 0, 7]])
@pytest.mark.parametrize(("window", "chunk"), [(1, 1), (10, 7), (300, 64), (2_000, 256), (2_000, 999)])
def test_windowed_keeps_its_bound(runs: list[int], window: int, chunk: int) -> None:
    """Every row once; a window holds whole chunks, so each chunk is read once and no more than a window is held."""
    order = Windowed(runs, window, chunk, 3, 0)
    rows = everything(order)
    assert np.array_equal(np.sort(rows), np.arange(sum(runs)))
    starts = np.concatenate([[0], np.cumsum(runs)])
    run = np.searchsorted(starts, rows, side="right") - 1
    chunk_of = run * 10_000 + (rows - starts[run]) // chunk
    slots = max(1, window // chunk)
    position, seen = 0, set()
    while position < len(rows):
        here: set[int] = set()
        while position < len(rows) and (chunk_of[position] in here or len(here) < slots):
            here.add(int(chunk_of[position]))
            position += 1
        # greedily: a new window starts where a chunk comes that no longer fits
        assert not here & seen
        seen |= here


def test_windowed_shuffles_within_and_between() -> None:
    order = Windowed([100_000], 10_000, 100, 0, 0)
    rows = everything(order)
    assert np.abs(rows - np.arange(100_000)).mean() == pytest.approx(100_000 / 3, rel=0.2)
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.03
    assert not np.array_equal(rows, everything(Windowed([100_000], 10_000, 100, 0, 1)))


def test_short_chunks_come_anywhere() -> None:
    """The rows at a store's end aren't always the last of the epoch."""
    places = [int(np.flatnonzero(everything(Windowed([1_001], 100, 50, 0, e)) == 1_000)[0]) for e in range(60)]
    assert min(places) < 200
    assert max(places) > 800


def of_source(sizes: list[int], shuffle: bool = True):
    return lambda source, turn: epoch_order([sizes[source]], shuffle, 0, 0, source, turn)


def test_mixed_holds_its_weights() -> None:
    sizes = [100, 50_000, 7]
    order = Mixed(sizes, [7, 2, 1], 4 * CYCLE, of_source(sizes), 0, 0)
    rows = everything(order)
    for c in range(4):
        cycle = rows[c * CYCLE : (c + 1) * CYCLE]
        counts = [(cycle < 100).sum(), ((cycle >= 100) & (cycle < 50_100)).sum(), (cycle >= 50_100).sum()]
        assert np.allclose(np.array(counts) / CYCLE, [0.7, 0.2, 0.1], atol=1 / CYCLE)
    # a small source is gone through evenly, a large one without repeats
    small = np.bincount(rows[rows < 100])
    assert small.max() - small.min() <= 1
    large = rows[(rows >= 100) & (rows < 50_100)]
    assert len(np.unique(large)) == len(large)
    first, second = rows[rows < 100][:100], rows[rows < 100][100:200]
    assert first.tolist() != second.tolist()
    at = np.random.default_rng(0).integers(0, len(rows), 3_000)
    assert np.array_equal(order.at(at), rows[at])


def test_mixed_in_order() -> None:
    """Sources that aren't shuffled come each in its own order."""
    sizes = [1_000_000, 1_000_000]
    rows = everything(Mixed(sizes, [0.5, 0.5], 40_000, of_source(sizes, shuffle=False), 0, 0))
    assert rows[rows < 1_000_000].tolist() == list(range((rows < 1_000_000).sum()))


def test_mixed_with_many_or_tiny_sources() -> None:
    sizes = [1] * 3_000
    rows = everything(Mixed(sizes, [1e9] + [1e-9] * 2_999, CYCLE, of_source(sizes), 0, 0))
    assert set(rows.tolist()) == set(range(3_000))


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, float("nan")], [float("inf"), 1]])
def test_mixed_refuses(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="weights must be"):
        Mixed([1] * len(weights), weights, 1, of_source([1] * len(weights)), 0, 0)


def test_mixed_needs_rows() -> None:
    with pytest.raises(UsageError, match="source 1 of the mixture has no rows"):
        Mixed([5, 0], [1, 1], 1, of_source([5, 0]), 0, 0)


@pytest.mark.parametrize("seed", [-1, 1.5, "x"])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(UsageError, match="whole numbers"):
        epoch_order([5], True, seed, 0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="whole numbers"):
        epoch_order([5], True, 0, -1)


def test_in_order_and_wide_windows() -> None:
    assert everything(InOrder(5)).tolist() == [0, 1, 2, 3, 4]
    exact = everything(epoch_order([3_000, 2_000], True, 1, 1))
    assert np.array_equal(exact, everything(epoch_order([3_000, 2_000], True, 1, 1, window=5_000)))


def test_uniform() -> None:
    drawn = uniform(np.arange(100_000), 4, 1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(chi_square(np.bincount((drawn * 100).astype(int), minlength=100))) < 5
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    assert np.array_equal(uniform(np.array([5, 99_999]), 4, 1), drawn[[5, 99_999]])
