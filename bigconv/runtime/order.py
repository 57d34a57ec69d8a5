"""Whole batches of row numbers: a sampler for `DataLoader(sampler=..., batch_size=None)`."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from bigconv.block import Index


class BatchOrder(Sampler[Any]):
    """Row numbers of each batch as one int64 array, instead of a Python number a row.

    `DataLoader(dataset, sampler=BatchOrder(dataset, 1024), batch_size=None)`: the dataset gets each array whole.
    The order of an epoch is a pure function of `seed` and `epoch`; `set_epoch` or the next `iter` moves on.
    """

    def __init__(
        self, rows: Sized | int, batch_size: int, shuffle: bool = True, seed: int = 0, drop_last: bool = False
    ) -> None:
        self.rows = rows if isinstance(rows, int) else len(rows)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next `iter` gives."""
        self.epoch = epoch

    def order(self, epoch: int) -> Index:
        """int64 `[rows]`: the rows of an epoch in order."""
        if not self.shuffle:
            return np.arange(self.rows)
        # torch's permutation takes half the time of numpy's; the sequence seeds it so that (1, 0) and (0, 1) differ
        state = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) >> 1)
        order: Index = torch.randperm(self.rows, generator=generator).numpy()
        return order

    def __iter__(self) -> Iterator[Index]:
        order = self.order(self.epoch)
        self.epoch += 1
        for i in range(len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]
