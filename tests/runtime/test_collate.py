"""Collate functions against torch's own pad_sequence, scipy-like sums and plain loops."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, DataLoader, default_collate

from bigconv.block import Block, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.runtime import StoreDataset
from bigconv.runtime.collate import NestedCollate, PackedCollate, PadCollate, SparseCollate
from bigconv.runtime.rows import StackedBatch
from bigconv.schema import Field, Schema
from bigconv.testing import cases

Make = Callable[..., Path]
SCHEMA = Schema(
    (
        Field("tokens", "int32", (None,), "tokens"),
        Field("points", "float64", (None, 3)),
        Field("text", "uint8", (None,), "text"),
        Field("image", "uint8", (None, None, 3), "image", "hwc"),
        Field("x", "float32", (4,)),
        Field("label", "int64", (), "label"),
    )
)
BLOCK = cases.block(SCHEMA, 40, seed=3)


def column(name: str) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(row)) for row in BLOCK[name]]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def in_memory(columns: dict[str, tuple[Field, Any]], as_tuple: bool = False) -> StackedBatch:
    schema = Schema(tuple(field for field, _ in columns.values()))
    made = {name: Ragged.of(c, f) if f.ragged else np.array(c, f.dtype) for name, (f, c) in columns.items()}
    return StackedBatch(schema, made, len(next(iter(made.values()))), as_tuple)


# -- padding -------------------------------------------------------------------------------------------------------


def test_padding_is_torchs(make_store: Make, suffix: str) -> None:
    """Through a stock loader: values, lengths, mask; what doesn't vary as without a collate function."""
    dataset = StoreDataset(make_store(BLOCK, suffix))
    batches = list(DataLoader(dataset, batch_size=16, collate_fn=PadCollate(mask=True)))
    for number, batch in enumerate(batches):
        rows = slice(16 * number, 16 * number + 16)
        for name in ("tokens", "points"):
            expected = column(name)[rows]
            assert same(batch[name], pad_sequence(expected, batch_first=True))
            assert batch[f"{name}_lengths"].tolist() == [len(row) for row in expected]
            longest = batch[name].shape[1]
            assert batch[f"{name}_mask"].tolist() == [[i < len(row) for i in range(longest)] for row in expected]
        assert batch["text"] == [dataset[i]["text"] for i in range(40)[rows]]
        assert same(batch["x"], torch.from_numpy(np.asarray(BLOCK["x"])[rows]))
        assert batch["label"].tolist() == np.asarray(BLOCK["label"])[rows].tolist()
        batch["tokens"].zero_()
    assert list(batches[0]) == [
        *("tokens", "tokens_lengths", "tokens_mask", "points", "points_lengths", "points_mask", "text"),
        *("image", "image_shapes", "image_mask", "x", "label"),
    ]


@settings(derandomize=True, deadline=None, database=None)
@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=6),
    dtype=st.sampled_from(["uint8", "int16", "float32", "complex64", "bool", "uint16"]),
    item=st.sampled_from([(), (2,), (1, 3)]),
    to=st.sampled_from([None, 1, 7, 64]),
    plain=st.booleans(),
)
def test_any_rows(lengths: list[int], dtype: str, item: tuple[int, ...], to: int | None, plain: bool) -> None:
    """Short and long rows, items of any shape, stacked or row by row: exactly a loop's outcome."""
    rng = np.random.default_rng(1)
    rows = [cases.values(dtype, (n, *item), rng) for n in lengths]
    field = Field("a", dtype, (None, *item))
    batch: Any = [{"a": torch.from_numpy(row)} for row in rows] if plain else in_memory({"a": (field, rows)})
    got = PadCollate(value=1, to=to, mask=True)(batch)
    longest = -(-max(lengths) // (to or 1)) * (to or 1)
    if plain and item:  # without a schema every axis may vary
        item = tuple(-(-n // (to or 1)) * (to or 1) for n in item)
        assert got["a_shapes"].tolist() == [list(row.shape) for row in rows]
    else:
        assert got["a_lengths"].tolist() == lengths
        assert got["a_mask"].sum(1).tolist() == lengths
    expected = np.ones((len(rows), longest, *item), dtype)
    for place, row in zip(expected, rows, strict=True):
        place[tuple(map(slice, row.shape))] = row
    assert got["a"].shape == expected.shape
    assert got["a"].numpy().tobytes() == expected.tobytes()


def test_values_by_field() -> None:
    batch = in_memory(
        {
            "ids": (Field("ids", "int64", (None,)), [np.arange(3), np.arange(1)]),
            "labels": (Field("labels", "int64", (None,)), [np.arange(2), np.arange(3)]),
            "w": (Field("w", "float32", (None,)), [np.ones(1, np.float32), np.ones(2, np.float32)]),
        }
    )
    got = PadCollate({"labels": -100, "w": float("nan")}, lengths=False)(batch)
    assert list(got) == ["ids", "labels", "w"]
    assert got["ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert got["labels"].tolist() == [[0, 1, -100], [0, 1, 2]]
    assert got["w"].isnan().tolist() == [[False, True], [False, False]]


def test_images_of_all_sizes(make_store: Make, suffix: str) -> None:
    dataset = StoreDataset(make_store(BLOCK, suffix), fields=["image"])
    (batch,) = DataLoader(dataset, batch_size=40, collate_fn=PadCollate(255, to=4, mask=True))
    images = column("image")
    shape = (40, *(-(-max(i.shape[axis] for i in images) // 4) * 4 for axis in (0, 1)), 3)
    expected = torch.full(shape, 255, dtype=torch.uint8)
    mask = torch.zeros(shape[:3], dtype=torch.bool)
    for i, image in enumerate(images):
        expected[i, : image.shape[0], : image.shape[1]] = image
        mask[i, : image.shape[0], : image.shape[1]] = True
    assert same(batch["image"], expected)
    assert same(batch["image_mask"], mask)
    assert batch["image_shapes"].tolist() == [list(image.shape) for image in images]


def test_decoded_images(make_store: Make) -> None:
    """Keys and layout are the same, whether the images of a batch happen to have one size or several."""

    def png(height: int, width: int) -> np.ndarray[Any, Any]:
        file = io.BytesIO()
        Image.fromarray(np.full((height, width, 3), height, np.uint8)).save(file, "png")
        return np.frombuffer(file.getvalue(), np.uint8)

    field = Field("image", "uint8", (None,), "encoded")
    rows = Ragged.of([png(5, 7), png(5, 7), png(9, 2)], field)
    dataset = StoreDataset(make_store(Block(Schema((field,)), {"image": rows}), ".h5"))
    one, several = (PadCollate(mask=True)(dataset.__getitems__(list(range(n)))) for n in (2, 3))
    assert list(one) == list(several) == ["image", "image_shapes", "image_mask"]
    assert one["image"].shape == (2, 3, 5, 7)
    assert several["image"].shape == (3, 3, 9, 7)
    assert several["image_shapes"].tolist() == [[3, 5, 7], [3, 5, 7], [3, 9, 2]]
    assert several["image"].sum((1, 2, 3)).tolist() == [5 * 105, 5 * 105, 9 * 54]
    assert several["image_mask"].sum((1, 2)).tolist() == [35, 35, 18]
    for batch in (one, several):
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    packed = PackedCollate()(dataset.__getitems__([0, 2]))
    assert packed["image_shapes"].tolist() == [[3, 5, 7], [3, 9, 2]]
    assert packed["image"].tolist() == [5] * 105 + [9] * 54


# -- packed and nested ---------------------------------------------------------------------------------------------


def test_packed(make_store: Make, suffix: str) -> None:
    dataset = StoreDataset(make_store(BLOCK, suffix), fields=("tokens", "image", "label"))
    for collate in (PackedCollate(), PackedCollate("int32")):
        (batch,) = DataLoader(dataset, batch_size=40, collate_fn=collate)
        tokens, offsets, longest, image, _, _, shapes, label = batch
        assert same(tokens, torch.cat(column("tokens")))
        assert offsets.dtype == getattr(torch, collate.offsets)
        assert offsets.diff().tolist() == [len(row) for row in column("tokens")]
        assert longest == max(map(len, column("tokens")))
        assert same(image, torch.cat([i.reshape(-1) for i in column("image")]))
        assert shapes.tolist() == [list(i.shape) for i in column("image")]
        assert len(label) == 40


def test_nested(make_store: Make, suffix: str) -> None:
    dataset = StoreDataset(make_store(BLOCK, suffix), fields=["tokens", "points"])
    (batch,) = DataLoader(dataset, batch_size=40, collate_fn=NestedCollate())
    for name in ("tokens", "points"):
        assert batch[name].layout == torch.jagged
        assert all(same(a, b) for a, b in zip(batch[name].unbind(), column(name), strict=True))
    assert (batch["points"] * 2).unbind()[3].shape == column("points")[3].shape
    rows = [{"p": torch.ones(n, 2)} for n in (3, 0, 5)]
    assert [len(r) for r in NestedCollate()(rows)["p"].unbind()] == [3, 0, 5]
    with pytest.raises(SchemaError, match="image: a nested tensor's rows can differ in the first axis only"):
        NestedCollate()(StoreDataset(make_store(BLOCK, suffix, "i"), fields=["image"]).__getitems__(range(9)))


# -- sparse --------------------------------------------------------------------------------------------------------


def sparse_batch(rows: list[dict[int, float]], as_tuple: bool = False) -> StackedBatch:
    return in_memory(
        {
            "label": (Field("label", "int64"), range(len(rows))),
            "indices": (Field("indices", "uint16", (None,)), [np.array(list(r), np.uint16) for r in rows]),
            "values": (Field("values", "float32", (None,)), [np.array(list(r.values()), np.float32) for r in rows]),
        },
        as_tuple,
    )


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.dictionaries(st.integers(0, 19), st.integers(-9, 9).map(float), max_size=9), min_size=1, max_size=8))
def test_sparse_rows(rows: list[dict[int, float]]) -> None:
    expected = torch.zeros(len(rows), 20)
    for i, row in enumerate(rows):
        for at, value in row.items():
            expected[i, at] = value
    dense = SparseCollate(length=20)(sparse_batch(rows))
    assert list(dense) == ["label", "values"]
    assert torch.equal(dense["values"], expected)
    label, csr = SparseCollate(length=20, layout="csr", name="x")(sparse_batch(rows, as_tuple=True))
    assert csr.layout == torch.sparse_csr
    assert torch.equal(csr.to_dense(), expected)
    assert len(csr.values()) == sum(map(len, rows))
    torch._validate_sparse_csr_tensor_args(csr.crow_indices(), csr.col_indices(), csr.values(), csr.shape)
    assert label.tolist() == list(range(len(rows)))


def test_entries_at_one_place_are_added() -> None:
    """As scipy's coo does, in either layout and for every dtype."""
    for dtype, expected in (("float32", 6.0), ("uint8", 6), ("bool", True)):
        field = Field("values", dtype, (None,))
        batch = in_memory(
            {
                "indices": (Field("indices", "int64", (None,)), [np.array([4, 1, 4, 4]), np.array([], np.int64)]),
                "values": (field, [np.array([1, 1, 2, 3]).astype(dtype), np.array([], dtype)]),
            }
        )
        for layout in ("dense", "csr"):
            made = SparseCollate(length=5, layout=layout)(batch)["values"]
            assert made.dtype == getattr(torch, dtype)
            assert made.to_dense().tolist()[0][4] == expected
            assert made.to_dense().tolist()[0][1] == 1
            assert not made.to_dense()[1].any()


def test_sparse_from_every_store(make_store: Make, suffix: str) -> None:
    rows = [{3: 1.0, 17: -2.0}, {}, {0: 5.0}]
    batch = sparse_batch(rows)
    path = make_store(Block(batch._schema, batch._columns), suffix)  # type: ignore[arg-type]
    for layout in ("dense", "csr"):
        loader = DataLoader(StoreDataset(path), batch_size=2, collate_fn=SparseCollate(length=18, layout=layout))
        whole = torch.cat([b["values"].to_dense() for b in loader])
        assert whole.nonzero().tolist() == [[0, 3], [0, 17], [2, 0]]


@pytest.mark.parametrize(
    ("collate", "error", "message"),
    [
        ({"length": 17}, SchemaError, "row 2 of the batch: indices has 17, outside of 17 columns"),
        ({"length": 20, "values": "value"}, UsageError, "Did you mean 'values'"),
        ({"length": 20, "values": "label"}, SchemaError, "field label: rows of a sparse matrix"),
        ({"length": 20, "indices": "values", "values": "indices"}, SchemaError, "values: indices must be whole"),
        ({"length": 20, "name": "label"}, UsageError, "makes a column label, but there is a field of that name"),
    ],
)
def test_sparse_mistakes(collate: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SparseCollate(**collate)(sparse_batch([{1: 1.0}, {}, {16: 1.0, 17: 1.0}]))


def test_sparse_columns_of_different_lengths() -> None:
    batch = in_memory(
        {
            "indices": (Field("indices", "int64", (None,)), [np.arange(2), np.arange(3)]),
            "values": (Field("values", "int64", (None,)), [np.arange(2), np.arange(2)]),
        }
    )
    with pytest.raises(SchemaError, match="row 1 of the batch: indices and values differ in length"):
        SparseCollate(length=9)(batch)


# -- rows that others made -------------------------------------------------------------------------------------------


def test_after_a_transform_and_from_concatenated_datasets(make_store: Make, suffix: str) -> None:
    """The same batch from rows as from columns; tuples and single tensors too."""
    path = make_store(BLOCK, suffix)
    plain = StoreDataset(path, fields=["tokens", "text", "label"])
    (expected,) = DataLoader(plain, batch_size=40, collate_fn=PadCollate())
    changed = StoreDataset(path, fields=["tokens", "text", "label"], transform=dict)
    joined = ConcatDataset([StoreDataset(path, fields=["tokens", "text", "label"]), plain])
    for dataset in (changed, joined):
        batch = next(iter(DataLoader(dataset, batch_size=40, collate_fn=PadCollate())))
        assert list(batch) == list(expected)
        assert same(batch["tokens"], expected["tokens"])
        assert same(batch["tokens_lengths"], expected["tokens_lengths"])
        assert same(batch["label"], expected["label"])
        assert batch["text"] == expected["text"]
    tuples = StoreDataset(path, fields=("tokens", "label"), transform=tuple)
    for batch in (
        next(iter(DataLoader(tuples, batch_size=40, collate_fn=PadCollate()))),
        next(iter(DataLoader(StoreDataset(path, fields=("tokens", "label")), batch_size=40, collate_fn=PadCollate()))),
    ):
        assert all(map(same, batch, (expected["tokens"], expected["tokens_lengths"], expected["label"])))
    single = StoreDataset(path, transform=lambda row: row["tokens"])
    batch = next(iter(DataLoader(single, batch_size=40, collate_fn=PadCollate(lengths=False))))
    assert same(batch, expected["tokens"])
    lists = [{"ids": [1, 2, 3]}, {"ids": []}]
    assert PadCollate()(lists)["ids"].tolist() == [[1, 2, 3], [0, 0, 0]]
    packed = next(iter(DataLoader(changed, batch_size=40, collate_fn=PackedCollate())))
    assert same(packed["tokens"], torch.cat(column("tokens")))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], UsageError, "at least one row"),
        ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], SchemaError, "row 1 of the batch has no a"),
        ([{"a": torch.ones(2)}, (1,)], SchemaError, "row 1 of the batch has no a"),
        ([(1, 2), (1,)], SchemaError, "tuples of different lengths, 1 and 2"),
        (
            [{"a": torch.ones(2)}, {"a": torch.ones(2).int()}],
            SchemaError,
            "a: rows of the batch are of different kinds",
        ),
        ([{"a": torch.ones(2)}, {"a": torch.ones(2, 2)}], SchemaError, "float32 with 1 axes, and float32 with 2"),
        ([{"a": torch.ones(2).bfloat16()}], SchemaError, "a: rows can't be made arrays"),
        ([{"a": ["x"]}], SchemaError, "can't be stored"),
    ],
)
def test_rows_that_do_not_fit(rows: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PadCollate()(rows)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PadCollate("0"), "value must be a number"),
        (lambda: PadCollate({"a": None}), "value must be a number"),
        (lambda: PadCollate(to=0), "to must be a whole number of at least 1, got 0"),
        (lambda: PadCollate(to=True), "to must be a whole number"),
        (lambda: PackedCollate("int16"), "offsets must be int64 or int32, got 'int16'"),
        (lambda: SparseCollate(), "length is the number of columns"),
        (lambda: SparseCollate(length=3, layout="coo"), "layout must be dense or csr, got 'coo'"),
        (lambda: SparseCollate("a", "a", 3), "can't be the same field"),
    ],
)
def test_options_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("value", "dtype"), [(-1, "uint8"), (256, "uint8"), (0.5, "int64"), (1j, "float32"), (2, "bool"), (np.nan, "int8")]
)
def test_a_value_that_the_dtype_can_not_hold(value: complex, dtype: str) -> None:
    batch = in_memory({"a": (Field("a", dtype, (None,)), [np.ones(2, dtype), np.ones(3, dtype)])})
    with pytest.raises(UsageError, match=f"field a: {dtype} can't hold the value"):
        PadCollate(value)(batch)


def test_names_that_are_taken() -> None:
    batch = in_memory(
        {
            "a": (Field("a", "int64", (None,)), [np.arange(2)]),
            "a_lengths": (Field("a_lengths", "int64"), [2]),
        }
    )
    with pytest.raises(UsageError, match="makes a column a_lengths, but there is a field of that name"):
        PadCollate()(batch)
    assert PadCollate(lengths=False)(batch)["a_lengths"].tolist() == [2]
    with pytest.raises(UsageError, match="unknown field 'b'"):
        PadCollate({"b": 1})(batch)


def test_after_a_batch_transform(make_store: Make) -> None:
    dataset = StoreDataset(make_store(BLOCK, ".h5"), fields=["x"], batch_transform=lambda batch: batch)
    with pytest.raises(UsageError, match="batch_transform has made the batch already"):
        next(iter(DataLoader(dataset, batch_size=4, collate_fn=PadCollate())))
    assert default_collate(dataset.__getitems__([1]))["x"].shape == (1, 4)


IN_WORKERS = [
    ("fork", PadCollate(mask=True)),
    ("forkserver", PadCollate(mask=True)),
    ("fork", PackedCollate()),
    ("fork", NestedCollate()),
    ("fork", SparseCollate("i", "v", 50, "csr")),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch, when it rebuilds a CSR tensor
@pytest.mark.parametrize(("method", "collate"), IN_WORKERS, ids=repr)
def test_in_workers(make_store: Make, method: str, collate: Any) -> None:
    """What a worker sends is what the same collate function gives here: small rows and large ones."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 40, 24)
    fields = [Field("i", "int64", (None,)), Field("v", "float32", (None,)), Field("t", "uint16", (None,))]
    rows = {
        "i": [rng.permutation(50)[:n] for n in lengths],
        "v": [rng.standard_normal(n).astype(np.float32) for n in lengths],
        "t": [rng.integers(0, 99, n * 300).astype(np.uint16) for n in lengths],
    }
    used = fields[:2] if isinstance(collate, SparseCollate) else fields
    block = Block(Schema(tuple(used)), {f.name: Ragged.of(rows[f.name], f) for f in used})
    dataset = StoreDataset(make_store(block, ".h5"))
    here = list(DataLoader(dataset, batch_size=8, collate_fn=pickle.loads(pickle.dumps(collate))))
    there = list(DataLoader(dataset, 8, collate_fn=collate, num_workers=2, multiprocessing_context=method))
    assert len(here) == len(there) == 3
    for a, b in zip(here, there, strict=True):
        assert list(a) == list(b)
        for name in a:
            assert _equal(a[name], b[name])


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    if a.is_nested:
        return all(same(x, y) for x, y in zip(a.unbind(), b.unbind(), strict=True))
    return same(a.to_dense(), b.to_dense()) if a.layout == torch.sparse_csr else same(a, b)


def test_a_batch_that_is_stacked_already() -> None:
    with pytest.raises(UsageError, match=r"stacked already.*\n.*batch_sampler="):
        PadCollate()({"x": torch.zeros(2, 3)})  # type: ignore[arg-type]
