"""What is inside a batch: its bytes, its rows, and a checksum that proves they were delivered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash


class Checksum:
    """XXH3-64 over dtype, shape and bytes of every array of every batch, in order."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()
        self.batches = 0

    def add(self, batch: Any) -> None:
        for leaf in leaves(batch):
            if isinstance(leaf, torch.Tensor):
                plain = leaf.detach().cpu().contiguous()
                self._hash.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
                self._hash.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
            elif isinstance(leaf, np.ndarray):
                self._hash.update(f"{leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
            else:
                self._hash.update(repr(leaf).encode())
        self.batches += 1

    @property
    def hex(self) -> str:
        return f"xxh3:{self._hash.hexdigest()}"


def leaves(batch: Any) -> Iterator[Any]:
    """Everything in a batch that is no container."""
    if isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from leaves(value)
    else:
        yield batch


def nbytes(batch: Any) -> int:
    """Of arrays and of text."""
    total = 0
    for leaf in leaves(batch):
        total += len(leaf.encode()) if isinstance(leaf, str) else int(getattr(leaf, "nbytes", 0))
    return total


def samples(batch: Any) -> int:
    """Rows of a batch: of its first array, or items of its first list; 1 for anything else."""
    while True:
        if isinstance(batch, Mapping):
            batch = next(iter(batch.values()), None)
        elif isinstance(batch, (tuple, list)):
            if not batch or not isinstance(batch[0], (Mapping, tuple, list, torch.Tensor, np.ndarray)):
                return len(batch)
            batch = batch[0]
        else:
            shape: Any = getattr(batch, "shape", None)
            return int(shape[0]) if shape else 1
