"""`--filter`: a function of the user's says which rows stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from bigconv.block import Block
from bigconv.errors import SchemaError
from bigconv.schema import Schema
from bigconv.transforms.made import Row
from bigconv.transforms.user import Sample, UserStep


@dataclass(frozen=True)
class Filter(UserStep):
    """Rows of which a function says True.

    A batched one (`bigconv.batched`) takes columns and gives bool `[rows]`.
    """

    name: ClassVar[str] = "filter"

    def learn(self, sample: Sample) -> Self:
        """Try the function on the first rows. Raises `UsageError`."""
        step = self.prepared()
        for _ in step.tried(sample):
            pass
        return step

    def schema(self, schema: Schema) -> Schema:
        return schema

    def __call__(self, block: Block) -> Block:
        keep = self._keep(block)
        return block if keep.all() else block.take(np.flatnonzero(keep))

    def results(self, block: Block) -> list[list[Row]]:
        return [[{"keep": (None, np.asarray(keep))}] for keep in self._keep(block)]

    def _keep(self, block: Block) -> npt.NDArray[np.bool_]:
        """bool `[rows]`."""
        if not len(block):
            return np.ones(0, bool)
        if not self.batched:
            return np.fromiter((_truth(returned) for returned in self.each(block)), bool, len(block))
        returned = self.whole(block)
        keep = np.asarray(returned)
        if keep.dtype != bool or keep.shape != (len(block),):
            raise SchemaError(f"expected bool ({len(block)}), one a row, got {keep.dtype} {keep.shape}")
        return keep


def _truth(returned: Any) -> bool:
    if isinstance(returned, bool | np.bool_):
        return bool(returned)
    keep = np.asarray(returned)
    if keep.dtype != bool or keep.ndim:
        raise SchemaError(f"returned {type(returned).__name__}: expected True or False")
    return bool(keep)
