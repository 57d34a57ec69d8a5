"""Stores as torch knows them. Everything that imports torch is in here."""

from __future__ import annotations

from bigconv import registry

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise registry.missing("torch", "torch", "bigconv.runtime") from error

from bigconv.runtime.dataset import StoreDataset
from bigconv.runtime.order import BatchOrder

__all__ = ["BatchOrder", "StoreDataset"]
