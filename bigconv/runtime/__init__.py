"""Stores as torch knows them. Everything that imports torch is in here."""

from __future__ import annotations

from bigconv import registry

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise registry.missing("torch", "torch", "bigconv.runtime") from error

from bigconv.runtime.collate import NestedCollate, PackedCollate, PadCollate, SparseCollate
from bigconv.runtime.dataset import StoreDataset
from bigconv.runtime.loader import Loader
from bigconv.runtime.order import BatchOrder
from bigconv.runtime.samplers import ClassBalancedSampler, TokenBatchSampler, WeightedSampler
from bigconv.runtime.stream import StreamDataset
from bigconv.runtime.windows import WindowDataset
from bigconv.view.classes import class_counts
from bigconv.view.splits import k_fold, stratified_split

__all__ = [
    "BatchOrder",
    "ClassBalancedSampler",
    "Loader",
    "NestedCollate",
    "PackedCollate",
    "PadCollate",
    "SparseCollate",
    "StoreDataset",
    "StreamDataset",
    "TokenBatchSampler",
    "WeightedSampler",
    "WindowDataset",
    "class_counts",
    "k_fold",
    "stratified_split",
]
