"""Splits and folds, and scikit-learn's own on a `StoreDataset`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.block import Block, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.runtime.dataset import StoreDataset
from bigconv.schema import Field, Schema
from bigconv.view.splits import k_fold, stratified_split

Make = Callable[..., Path]
SCHEMA = Schema(
    (Field("x", "float32", (4,)), Field("label", "int64", (), "label"), Field("subject", "uint8", (None,), "text"))
)


@pytest.fixture
def dataset(make_store: Make) -> StoreDataset:
    """Two classes that a line parts, and ten subjects."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 120)
    x = (rng.standard_normal((120, 4)) + label[:, None] * 3).astype(np.float32)
    names = [f"s{i % 10}".encode() for i in range(120)]
    subject = Ragged.of([np.frombuffer(n, np.uint8) for n in names], SCHEMA["subject"])
    return StoreDataset(make_store(Block(SCHEMA, {"x": x, "label": label, "subject": subject}), ".h5"))


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 2**70),
)
def test_every_class_within_one_row(counts: list[int], weights: list[int], seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)) * 7, counts))
    fractions = np.array(weights) / sum(weights)
    try:
        parts = stratified_split(labels, fractions, seed)
    except UsageError as error:
        assert "would get no row" in str(error)
        assert fractions.min() * len(labels) < len(counts)
        return
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, fraction in zip(parts, fractions, strict=True):
        assert (np.diff(part) > 0).all()
        for c, count in enumerate(counts):
            assert abs((labels[part] == c * 7).sum() - fraction * count) < 1 + 1e-6


def test_rare_classes_are_shared_out() -> None:
    """A hundred classes of one row each: the small part isn't left without."""
    train, val = stratified_split(np.arange(100), [0.9, 0.1])
    assert (len(train), len(val)) == (90, 10)


def test_seeds() -> None:
    labels = np.arange(40) % 2
    one = stratified_split(labels, [0.5, 0.5], seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(one, stratified_split(labels, [0.5, 0.5], seed=1), strict=True))
    assert not np.array_equal(one[0], stratified_split(labels, [0.5, 0.5], seed=2)[0])


def test_splits_of_a_dataset(dataset: StoreDataset) -> None:
    labels = dataset.view.take(np.arange(120))["label"]
    for ours, theirs in zip(stratified_split(dataset, [0.8, 0.2]), stratified_split(labels, [0.8, 0.2]), strict=True):
        assert np.array_equal(ours, theirs)
    train, val = stratified_split(dataset.view, [0.7, 0.3], groups="subject")
    assert not set(train % 10) & set(val % 10)
    assert len(val) == 36
    with pytest.raises(SchemaError, match="unknown field 'lable'"):
        stratified_split(dataset, [0.5, 0.5], field="lable")


@pytest.mark.parametrize("fractions", [[], [0.5, 0.4], [1.5, -0.5], [1, 0], [float("nan")]])
def test_refused_fractions(fractions: list[float]) -> None:
    with pytest.raises(UsageError, match="fractions must be positive and add up to 1"):
        stratified_split(np.zeros(10), fractions)


def test_folds() -> None:
    folds = k_fold(103, 5, seed=3)
    assert sorted(len(val) for _, val in folds) == [20, 20, 21, 21, 21]
    assert sorted(np.concatenate([val for _, val in folds]).tolist()) == list(range(103))
    for train, val in folds:
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(103))
    assert folds[0][1].tolist() != list(range(21))


def test_stratified_folds() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 20, 7]))
    for _, val in k_fold(77, 5, stratify=labels):
        assert (np.abs(np.bincount(labels[val], minlength=3) - [10, 4, 1.4]) < 1).all()
        assert abs(len(val) - 77 / 5) < 1


@pytest.mark.parametrize("stratify", [False, True])
def test_group_folds(stratify: bool) -> None:
    """As even as scikit-learn makes them, or nearly; no group in two folds."""
    from sklearn.model_selection import GroupKFold

    rng = np.random.default_rng(1)
    groups = rng.zipf(1.7, 600) % 40
    labels = (rng.random(600) < 0.1 + 0.8 * (groups % 2)).astype(int)
    folds = k_fold(600, 4, stratify=labels if stratify else None, groups=groups)
    for train, val in folds:
        assert not set(groups[train]) & set(groups[val])
    assert sorted(np.concatenate([val for _, val in folds]).tolist()) == list(range(600))
    spread = np.ptp([len(val) for _, val in folds])
    theirs = np.ptp([len(val) for _, val in GroupKFold(4).split(groups, groups=groups)])
    assert spread <= theirs + 60


def test_no_fold_is_left_without_a_group() -> None:
    """Few groups of sorted classes: what balances the classes best would give the last fold none."""
    labels = np.repeat([0, 1, 2, 3], 10)
    folds = k_fold(40, 5, stratify=labels, groups=np.arange(40) // 3, seed=1)
    assert min(len(val) for _, val in folds) >= 3


def test_stratified_groups_keep_classes_even() -> None:
    """Groups of one class each: only where they go can balance the classes."""
    groups = np.repeat(np.arange(40), 5)
    labels = np.repeat(np.arange(40) % 2, 5)
    for _, val in k_fold(200, 4, stratify=labels, groups=groups):
        assert np.bincount(labels[val]).tolist() == [25, 25]


def test_groups_of_one_class_fill_every_fold() -> None:
    """Groups that lie class by class: no fold gets one group of every class while another gets none."""
    labels, groups = np.repeat(np.arange(4), 10), np.arange(40) // 3
    for seed in range(20):
        sizes = [len(validation) for _, validation in k_fold(40, 5, labels, groups, seed)]
        assert min(sizes) >= 5
        assert max(sizes) <= 12


def test_refused_folds(dataset: StoreDataset) -> None:
    with pytest.raises(UsageError, match="k must be at least 2"):
        k_fold(10, 1)
    with pytest.raises(UsageError, match=r"part 2 \(0.25 of 2 rows\) would get no row|would get no row"):
        k_fold(2, 4)
    with pytest.raises(UsageError, match="in 3 groups"):
        k_fold(9, 4, groups=np.arange(9) % 3)
    with pytest.raises(UsageError, match="stratify: 3 values for 10 rows"):
        k_fold(10, 2, stratify=[1, 2, 3])
    with pytest.raises(SchemaError, match="one value a row"):
        k_fold(dataset, 2, groups="x")


def test_scikit_learn_splits_a_dataset(dataset: StoreDataset) -> None:
    """Its splitters see a sequence, and what they give indexes a dataset."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, train_test_split

    view = dataset.view.take(np.arange(120))
    labels, subjects = view["label"], np.arange(120) % 10
    folds = {
        "plain": KFold(4, shuffle=True, random_state=0).split(dataset),
        "stratified": StratifiedKFold(4).split(dataset, labels),
        "grouped": GroupKFold(5).split(dataset, labels, subjects),
    }
    for pairs in folds.values():
        seen = []
        for train, val in pairs:
            assert np.array_equal(dataset[train]["x"].numpy(), view["x"][train])
            assert dataset[val]["label"].tolist() == labels[val].tolist()
            seen += val.tolist()
        assert sorted(seen) == list(range(120))
    train, val = train_test_split(np.arange(len(dataset)), stratify=labels, random_state=0)
    assert len(dataset[train]["label"]) == 90


def test_scikit_learn_cross_validates(dataset: StoreDataset) -> None:
    """`cross_val_score` on the dataset itself, and by indexing; ours as `cv`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    x, labels = (dataset.view.take(np.arange(120))[name] for name in ("x", "label"))
    folds = k_fold(dataset, 4, stratify="label", groups="subject")
    stack = FunctionTransformer(lambda rows: np.stack([row["x"].numpy() for row in rows]))
    of_rows = cross_val_score(make_pipeline(stack, LogisticRegression()), dataset, labels, cv=folds)
    assert np.allclose(of_rows, cross_val_score(LogisticRegression(), x, labels, cv=folds))
    assert of_rows.mean() > 0.9
    scores = []
    for train, val in folds:
        fitted = LogisticRegression().fit(dataset[train]["x"].numpy(), dataset[train]["label"].numpy())
        scores.append(fitted.score(dataset[val]["x"].numpy(), dataset[val]["label"].numpy()))
    assert np.allclose(scores, of_rows)
