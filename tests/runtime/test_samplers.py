"""Orders of batches: `BatchOrder` over ranks and restarts, weighted, balanced, and by tokens."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from bigconv.block import Block, Ragged
from bigconv.errors import IncompleteStore, SchemaError, UsageError
from bigconv.runtime import samplers as samplers_module
from bigconv.runtime.dataset import StoreDataset
from bigconv.runtime.order import BatchOrder
from bigconv.runtime.samplers import ClassBalancedSampler, TokenBatchSampler, WeightedSampler
from bigconv.schema import Field, Schema
from bigconv.view import classes as classes_module
from bigconv.view.classes import class_counts
from bigconv.view.splits import k_fold, labels_of

Make = Callable[..., Path]
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*is deprecated, please:UserWarning"),  # torchdata's import of torch
]
LABELS = np.repeat([0, 1, 5], [60, 25, 5])


def rows_of(sampler: object) -> list[int]:
    return [int(row) for batch in sampler for row in batch]  # type: ignore[attr-defined]


def samplers() -> dict[str, Callable[..., BatchOrder]]:
    weights = np.arange(90)
    lengths = np.random.default_rng(0).integers(0, 40, 90)
    return {
        "order": lambda **ranks: BatchOrder(90, 8, seed=3, **ranks),
        "windowed": lambda **ranks: BatchOrder(90, 8, seed=3, window=20, chunk=5, **ranks),
        "weighted": lambda **ranks: WeightedSampler(weights, 8, seed=3, **ranks),
        "weighted once": lambda **ranks: WeightedSampler(weights, 8, seed=3, replacement=False, **ranks),
        "balanced": lambda **ranks: ClassBalancedSampler(LABELS, 8, seed=3, **ranks),
        "tokens": lambda **ranks: TokenBatchSampler(lengths, 100, seed=3, window=32, **ranks),
    }


@pytest.fixture(params=samplers())
def make(request: pytest.FixtureRequest) -> Callable[..., BatchOrder]:
    return samplers()[request.param]


def test_an_epoch_follows_from_its_number(make: Callable[..., BatchOrder]) -> None:
    one, other = make(), make()
    first, second = rows_of(one), rows_of(one)
    assert first != second
    other.set_epoch(1)
    assert rows_of(other) == second
    assert one.order(0).tolist() == first
    assert all(batch.dtype == np.int64 for batch in one)


def test_ranks_share_the_epoch(make: Callable[..., BatchOrder]) -> None:
    whole = rows_of(make())
    for world_size in (2, 3, 8):
        ranks = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
        counts = [len(rank) for rank in ranks]
        read = [list(rank) for rank in ranks]
        assert [len(batches) for batches in read] == counts
        assert sorted(rows_of([b for batches in read for b in batches])) == sorted(whole)
        for how in ("drop_last", "pad"):
            read = [list(make(rank=rank, world_size=world_size, **{how: True})) for rank in range(world_size)]
            assert len({len(batches) for batches in read}) == 1


def test_states_go_on(make: Callable[..., BatchOrder]) -> None:
    """In the middle, at the end, and after the end of an epoch; onto other ranks too."""
    sampler = make()
    whole, following = list(sampler), rows_of(sampler)
    for stop in (1, 3, len(whole)):
        sampler = make()
        reading = iter(sampler)
        first = rows_of([next(reading) for _ in range(stop)])
        state = json.loads(json.dumps(sampler.state_dict()))
        later = make()
        later.load_state_dict(state)
        assert first + rows_of(later) == rows_of(whole)
        assert rows_of(later) == following
        ahead = make()
        list(ahead)  # a loader has fetched everything, the loop has had `stop` batches
        assert ahead.state_dict(batches=stop) == state
        rest = []
        for rank in range(3):
            later = make(rank=rank, world_size=3)
            later.load_state_dict(state)
            rest += rows_of(later)
        assert sorted(first + rest) == sorted(rows_of(whole))
    sampler = make()
    list(sampler)
    later = make()
    later.load_state_dict(sampler.state_dict())
    assert rows_of(later) == following
    older, newer = iter(sampler), iter(sampler)
    next(older), next(newer)
    state = sampler.state_dict()
    list(older)  # the newer one is what counts
    assert sampler.state_dict() == state


def test_groups_are_the_batches(make: Callable[..., BatchOrder]) -> None:
    """Several at once, as a `Loader` asks for them: of any rank, resumed, and also of batches cut in another way."""

    class Halves(BatchOrder):
        def __iter__(self) -> Iterator[np.ndarray]:
            for batch in super().__iter__():
                yield batch[: len(batch) // 2]

    state = make()
    next(iter(state))
    lanes = ({}, {"rank": 1, "world_size": 4, "pad": True}, {"rank": 2, "world_size": 3, "drop_last": True})
    for most in (1, 3, 1000):
        for build in (make, lambda **ranks: Halves(90, 8, **ranks), lambda **_: BatchOrder(40_000, 3000, seed=1)):
            for ranks in lanes:
                plain, grouped = build(**ranks), build(**ranks)
                if build is make:
                    plain.load_state_dict(state.state_dict()), grouped.load_state_dict(state.state_dict())
                batches, groups = [b.tolist() for b in plain], list(grouped.groups(most))
                assert all(0 < len(stops) <= most for _, stops in groups)
                assert [rows[a:b].tolist() for rows, stops in groups for a, b in pairwise([0, *stops])] == batches
                assert grouped.state_dict() == plain.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loader(make_store: Make, make: Callable[..., BatchOrder], workers: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    field = Field("label", "int64", (), "label")
    path = make_store(Block(Schema((field,)), {"label": np.arange(90)}), ".h5")

    def loader() -> StatefulDataLoader:
        context = {"multiprocessing_context": "fork"} if workers else {}
        dataset = StoreDataset(path, fields=("label",))
        return StatefulDataLoader(dataset, sampler=make(), batch_size=None, num_workers=workers, **context)

    one = loader()
    whole, following = rows_of(b for (b,) in one), rows_of(b for (b,) in one)
    assert whole == rows_of(make())
    total = len(make())
    for stop in (1, 2, total):
        one = loader()
        reading = iter(one)
        first = rows_of(b for (b,) in [next(reading) for _ in range(stop)])
        other = loader()
        other.load_state_dict(one.state_dict())
        assert first + rows_of(b for (b,) in other) == whole
        assert rows_of(b for (b,) in other) == following
    one = loader()
    list(one)
    other = loader()
    other.load_state_dict(one.state_dict())
    assert rows_of(b for (b,) in other) == following


def test_batch_order_of_many_rows() -> None:
    order = BatchOrder(100_000_000, 1024)
    assert len(order) == 97_657
    assert next(iter(order)).shape == (1024,)
    state = order.state_dict(batches=97_000)
    order.load_state_dict(state)
    assert sum(map(len, order)) == 100_000_000 - 97_000 * 1024


def test_batch_order_over_stores(make_store: Make) -> None:
    """Windows don't join rows of two stores in one chunk."""
    field = Field("label", "int64", (), "label")
    paths = [make_store(Block(Schema((field,)), {"label": np.arange(n)}), ".h5", f"s{n}") for n in (30, 41)]
    order = BatchOrder(StoreDataset(paths), 10, window=10, chunk=10)
    assert sorted(rows_of(order)) == list(range(71))
    assert all(len({(row < 30, (row - 30 * (row >= 30)) // 10) for row in b.tolist()}) <= 3 for b in order)
    assert rows_of(BatchOrder(71, 10, shuffle=False)) == list(range(71))


def test_refused_orders() -> None:
    with pytest.raises(UsageError, match="batch_size must be positive"):
        BatchOrder(10, 0)
    with pytest.raises(UsageError, match="whole numbers"):
        next(iter(BatchOrder(10, 1, seed=-1)))
    with pytest.raises(UsageError, match="of another order: seed was 0 and is 1"):
        BatchOrder(10, 1, seed=1).load_state_dict(BatchOrder(10, 1).state_dict())
    with pytest.raises(UsageError, match="not a state"):
        BatchOrder(10, 1).load_state_dict({})


# -- weights --------------------------------------------------------------------------------------------------------


def test_weighted_draws_hold_their_weights() -> None:
    """Against the plain formula: counts within chance of num_samples * weight / sum."""
    weights = np.array([0, 1, 2, 3, 0, 4, 0.5, 0])
    drawn = np.bincount(rows_of(WeightedSampler(weights, 1000, num_samples=200_000)), minlength=8)
    expected = 200_000 * weights / weights.sum()
    assert (drawn[weights == 0] == 0).all()
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected)).all()


def test_weighted_without_replacement() -> None:
    """The first draw and the pair, as sequential draws have them; torch.multinomial agrees."""
    weights = np.array([1.0, 2, 3, 0, 4])
    sampler = WeightedSampler(weights, 5, replacement=False)
    assert sampler.num_samples == 4
    orders = np.array([rows_of(sampler) for _ in range(4_000)])
    assert (np.sort(orders, axis=1) == [0, 1, 2, 4]).all()
    first = np.bincount(orders[:, 0], minlength=5) / 4_000
    assert np.allclose(first, weights / 10, atol=0.04)
    torch.manual_seed(0)
    oracle = torch.multinomial(torch.tensor(weights).expand(4_000, -1), 4).numpy()
    for a, b in ((4, 0), (0, 4), (2, 1)):
        ours = ((orders[:, 0] == a) & (orders[:, 1] == b)).mean()
        theirs = ((oracle[:, 0] == a) & (oracle[:, 1] == b)).mean()
        assert abs(ours - theirs) < 0.03
    with pytest.raises(UsageError, match="5 rows without replacement, and 4 have"):
        WeightedSampler(weights, 5, num_samples=5, replacement=False)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1, float("nan")], [[1.0]], [1e308, 1e308]])
def test_refused_weights(weights: list) -> None:
    with pytest.raises(UsageError, match="weight"):
        WeightedSampler(weights, 4)


# -- classes --------------------------------------------------------------------------------------------------------


def test_classes_come_equally_often() -> None:
    sampler = ClassBalancedSampler(LABELS, 10, num_samples=92)
    for _ in range(3):
        rows = np.array(rows_of(sampler))
        counts = np.array([(LABELS[rows] == c).sum() for c in (0, 1, 5)])
        assert counts.sum() == 92
        assert counts.max() - counts.min() <= 1
        for c in (0, 1, 5):  # within a class, each row as often as any other
            each = np.bincount(rows[LABELS[rows] == c], minlength=90)[c == LABELS]
            assert each.max() - each.min() <= 1
    # a class isn't done in one go: labels follow each other as in a shuffle
    assert (np.diff(LABELS[rows]) != 0).mean() > 0.5


def test_large_classes_are_seen_over_epochs() -> None:
    sampler = ClassBalancedSampler(LABELS, 10, replacement=False)
    assert sampler.num_samples == 15
    epochs = [rows_of(sampler) for _ in range(12)]
    assert all(len(set(epoch)) == 15 for epoch in epochs)
    seen = np.bincount([row for epoch in epochs for row in epoch], minlength=90)
    assert (seen[:60] == 1).all()
    assert (seen[85:] == 12).all()
    with pytest.raises(UsageError, match="no more than 15"):
        ClassBalancedSampler(LABELS, 10, num_samples=16, replacement=False)


def test_classes_of_a_store(make_store: Make, suffix: str) -> None:
    schema = Schema((Field("x", "uint8", (3,)), Field("label", "int16", (), "label")))
    block = Block(schema, {"x": np.zeros((90, 3), np.uint8), "label": LABELS.astype(np.int16)})
    dataset = StoreDataset(make_store(block, suffix), fields=("x",))  # which doesn't read the label
    assert rows_of(ClassBalancedSampler(dataset, 10, seed=1)) == rows_of(ClassBalancedSampler(LABELS, 10, seed=1))
    with pytest.raises(SchemaError, match=r"unknown field 'lable'. Did you mean 'label'"):
        ClassBalancedSampler(dataset, 10, field="lable")
    with pytest.raises(SchemaError, match="one value a row"):
        ClassBalancedSampler(dataset, 10, field="x")
    with pytest.raises(UsageError, match="no rows"):
        ClassBalancedSampler([], 10)


def test_balanced_within_a_fold(make_store: Make) -> None:
    """A `Subset`, and one of that: the classes of its rows, whatever a transform makes of a row."""
    schema = Schema((Field("x", "uint8", (3,)), Field("label", "int64", (), "label")))
    path = make_store(Block(schema, {"x": np.zeros((90, 3), np.uint8), "label": LABELS}), ".h5")
    dataset = StoreDataset(path, fields=("x", "label"), transform=lambda row: (row[0].float(), row[1]))
    train, _ = k_fold(dataset, 5, stratify="label", seed=1)[0]
    fold = Subset(dataset, train)
    assert class_counts(fold) == {0: 48, 1: 20, 5: 4}
    inner, held = k_fold(fold, 4, stratify="label")[0]
    assert class_counts(Subset(fold, held.tolist())) == {0: 12, 1: 5, 5: 1}
    for rows, part in ((train, fold), (train[inner], Subset(fold, inner))):
        sampler = ClassBalancedSampler(part, 9, seed=1)
        assert rows_of(sampler) == rows_of(ClassBalancedSampler(LABELS[rows], 9, seed=1))
        labels = torch.cat([label for _, label in DataLoader(part, batch_sampler=sampler)])
        assert set(np.unique(labels, return_counts=True)[1]) <= {len(rows) // 3}


# -- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("max_rows", [None, 5])
def test_token_batches_fit(padded: bool, shuffle: bool, max_rows: int | None) -> None:
    """Every row once, no batch over the budget, and none that the next row would still have fitted in a window."""
    lengths = np.random.default_rng(1).integers(0, 50, 1_000)
    sampler = TokenBatchSampler(lengths, 200, shuffle, padded=padded, window=128, max_rows=max_rows)
    batches = list(sampler)
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(1_000))
    assert len(TokenBatchSampler(lengths, 200, shuffle, padded=padded, window=128, max_rows=max_rows)) == len(batches)

    def cost(of: list[int]) -> int:
        here = lengths[of]
        return int(max(1, here.max()) * len(here)) if padded else int(here.sum())

    assert max(cost(batch.tolist()) for batch in batches) <= 200
    if max_rows:
        assert max(map(len, batches)) <= max_rows
    if not shuffle:
        assert rows == list(range(1_000))
        for batch, after in pairwise(batches):
            assert cost([*batch.tolist(), int(after[0])]) > 200 or len(batch) == max_rows
    elif padded and not max_rows:
        wasted = 1 - lengths.sum() / sum(cost(b.tolist()) for b in batches)
        assert wasted < 0.15
        sizes = [len(b) for b in batches]
        assert sizes != sorted(sizes)


def test_token_lengths_of_a_store(make_store: Make, suffix: str) -> None:
    field, other = Field("t", "int32", (None,)), Field("label", "int64", (), "label")
    lengths = [3, 0, 5, 2, 9, 1]
    ragged = Ragged.of([np.arange(n, dtype=np.int32) for n in lengths], field)
    path = make_store(Block(Schema((field, other)), {"t": ragged, "label": np.arange(6)}), suffix)
    dataset = StoreDataset(path)
    for source in (dataset, dataset.view):
        assert TokenBatchSampler(source, 10).lengths.tolist() == lengths
    assert TokenBatchSampler(dataset, 10, field="t").lengths.tolist() == lengths
    loader = DataLoader(dataset, batch_sampler=TokenBatchSampler(dataset, 10), collate_fn=len)
    assert sum(loader) == 6
    with pytest.raises(SchemaError, match="same length"):
        TokenBatchSampler(dataset, 10, field="label")
    with pytest.raises(UsageError, match=r"say which one's lengths count. Of varying length are: none"):
        TokenBatchSampler(StoreDataset(path, fields=("label",)), 10)
    with pytest.raises(UsageError, match="row 4 has 9 tokens, more than max_tokens=8"):
        TokenBatchSampler(dataset, 8)


@pytest.mark.parametrize("lengths", [[-1], [1.5], [[1]]])
def test_refused_lengths(lengths: list) -> None:
    with pytest.raises(UsageError, match="whole number a row"):
        TokenBatchSampler(lengths, 10)


def test_no_lengths() -> None:
    assert list(TokenBatchSampler([], 10)) == []
    with pytest.raises(UsageError, match="positive"):
        TokenBatchSampler([1], 0)


def test_classes_from_the_manifest(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts come without the labels, and the order is the one that the labels give."""
    schema = Schema((Field("label", "int64", (), "label", classes=tuple("abcdef")),))
    path = make_store(Block(schema, {"label": LABELS}), ".h5")
    old = make_store(Block(Schema((Field("label", "int64"),)), {"label": LABELS}), ".h5", "old")  # nobody counted
    read: list[str] = []

    def reading(labels: object, field: str) -> object:
        read.append(field)
        return labels_of(labels, field)

    monkeypatch.setattr(samplers_module, "labels_of", reading)
    monkeypatch.setattr(classes_module, "labels_of", reading)
    dataset = StoreDataset([path, path])
    assert class_counts(dataset) == {0: 120, 1: 50, 5: 10}
    sampler = ClassBalancedSampler(dataset, 8, seed=3)
    assert len(sampler) == 23
    assert sampler.classes.tolist() == [0, 1, 5]
    assert read == []
    epochs = rows_of(sampler), rows_of(sampler)
    assert read == ["label"]
    given = ClassBalancedSampler(np.concatenate([LABELS, LABELS]), 8, seed=3)
    assert epochs == (rows_of(given), rows_of(given))
    assert class_counts(StoreDataset([old, old])) == {0: 120, 1: 50, 5: 10}
    mixed = ClassBalancedSampler(StoreDataset([old]), 8, seed=3, replacement=False)
    assert rows_of(mixed) == rows_of(ClassBalancedSampler(LABELS, 8, seed=3, replacement=False))
    with pytest.raises(UsageError, match="no more than 30"):
        ClassBalancedSampler(dataset, 8, num_samples=31, replacement=False)


def test_labels_that_are_not_those_counted(make_store: Make) -> None:
    schema = Schema((Field("label", "int64", (), "label"),))
    path = make_store(Block(schema, {"label": LABELS}), ".mmap")
    values = np.load(path / "label.npy", mmap_mode="r+")
    values[0] = 5
    values.flush()
    sampler = ClassBalancedSampler(StoreDataset(path), 8)
    with pytest.raises(IncompleteStore, match="--verify"):
        next(iter(sampler))
