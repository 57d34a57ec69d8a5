"""Encoded images decoded at read, against Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bigconv.block import Block, Ragged
from bigconv.decode import DecodeError
from bigconv.errors import SchemaError
from bigconv.runtime import Loader, StoreDataset
from bigconv.schema import Field, Schema

Make = Callable[..., Path]
FIELD = Field("photo", "uint8", (None,), "encoded")
SCHEMA = Schema((FIELD, Field("label", "int64", (), "label")))


def png(seed: int, height: int, width: int) -> tuple[bytes, torch.Tensor]:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def block(files: list[bytes]) -> Block:
    rows = Ragged.of([np.frombuffer(file, np.uint8) for file in files], FIELD)
    return Block(SCHEMA, {"photo": rows, "label": np.arange(len(files))})


SAME = [png(i, 40, 50) for i in range(24)]
MIXED = [png(i, 20 + i % 3, 30) for i in range(24)]


def identity(rows: Any) -> list[Any]:
    return list(rows)


def read(loader: DataLoader[Any]) -> list[Any]:
    """All batches, then the first error. A worker whose loop is left after an error takes torch five seconds to end."""
    iterator, batches, errors = iter(loader), [], []
    while True:
        try:
            batches.append(next(iterator))
        except StopIteration:
            break
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return batches


@pytest.mark.parametrize("in_memory", [False, True])
def test_images_of_one_size_are_stacked(make_store: Make, suffix: str, in_memory: bool) -> None:
    """Through workers, threads and neither."""
    dataset = StoreDataset(make_store(block([file for file, _ in SAME]), suffix), in_memory=in_memory)
    expected = torch.stack([pixels for _, pixels in SAME])
    loaders = {w: DataLoader(dataset, 5, num_workers=w) for w in (0, 1)}
    for loader in (*loaders.values(), Loader(dataset, 5)):
        batches = list(loader)
        assert torch.equal(torch.cat([batch["photo"] for batch in batches]), expected)
        assert all(b["photo"].is_contiguous(memory_format=torch.channels_last) for b in batches)
        batches[0]["photo"].zero_()
    assert torch.equal(dataset[3]["photo"], expected[3])
    assert torch.equal(dataset[3:9]["photo"], expected[3:9])


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_sizes(make_store: Make, workers: int) -> None:
    """Row by row they are what they are; stacking them is an error that says what to do."""
    dataset = StoreDataset(make_store(block([file for file, _ in MIXED]), ".mmap"))
    loader = DataLoader(dataset, 5, num_workers=workers, collate_fn=identity)
    rows = [row for batch in loader for row in batch]
    assert all(torch.equal(row["photo"], pixels) for row, (_, pixels) in zip(rows, MIXED, strict=True))
    with pytest.raises(SchemaError, match=r"field photo: rows of different sizes .*\(3, 20, 30\) and \(3, 21, 30\)"):
        read(DataLoader(dataset, 5, num_workers=workers))
    cropped = StoreDataset(dataset.view.paths[0], transform=lambda row: row["photo"][:, :20])
    expected = torch.stack([pixels[:, :20] for _, pixels in MIXED])
    assert torch.equal(torch.cat(list(DataLoader(cropped, 5, num_workers=workers))), expected)


def test_one_odd_size_hidden_in_a_batch(make_store: Make) -> None:
    """First, middle and last agree, and one between them doesn't."""
    images = [*SAME[:2], png(99, 41, 50), *SAME[3:8]]
    dataset = StoreDataset(make_store(block([file for file, _ in images]), ".mmap"))
    (rows,) = DataLoader(dataset, 8, collate_fn=identity)
    assert all(torch.equal(row["photo"], pixels) for row, (_, pixels) in zip(rows, images, strict=True))


def test_bytes_on_request(make_store: Make) -> None:
    files = [file for file, _ in SAME]
    dataset = StoreDataset(make_store(block(files), ".mmap"), decode=False)
    assert [bytes(dataset[i]["photo"].numpy()) for i in range(24)] == files


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [b"", b"GIF89a?", b"not an image", SAME[3][0][:200]])
def test_a_damaged_image_is_named(make_store: Make, damage: bytes, workers: int) -> None:
    """By the number of its row, wherever it comes in the batch."""
    files = [file for file, _ in SAME]
    path = make_store(block([*files[:7], damage, *files[8:]]), ".mmap")
    dataset = StoreDataset([path, path])
    for order in ([30, 31, 2], [31, 2, 3], [2, 3, 31], [1, 31, 2, 3, 4]):
        with pytest.raises(DecodeError, match=r"store.mmap, row 7, field photo: "):
            read(DataLoader(dataset, 5, sampler=order, num_workers=workers))
    with pytest.raises(DecodeError, match=r"row 7, field photo: "):
        dataset[31]


def test_nothing_to_decode(make_store: Make) -> None:
    dataset = StoreDataset(make_store(block([file for file, _ in SAME]), ".mmap"))
    assert dataset[0:0]["photo"].shape == (0, 3, 0, 0)
    assert StoreDataset(dataset.view.paths[0], decode=False)[0:0]["photo"].shape == (0, 0)
