"""bigconv: raw files → training-ready stores → batches at memory speed.

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigconv.bench.watch import watch
    from bigconv.block import Block, Ragged
    from bigconv.conversion.api import convert
    from bigconv.conversion.shard import shard
    from bigconv.errors import BigconvError
    from bigconv.manifest import Manifest
    from bigconv.schema import Field, Schema
    from bigconv.transforms.batched import batched
    from bigconv.view.table import StoreView
    from bigconv.view.table import open_view as open  # noqa: A004  the name users expect

__version__ = "0.1.0"

_HOMES = {
    "BigconvError": "bigconv.errors:BigconvError",
    "Block": "bigconv.block:Block",
    "batched": "bigconv.transforms.batched:batched",
    "Field": "bigconv.schema:Field",
    "Manifest": "bigconv.manifest:Manifest",
    "Ragged": "bigconv.block:Ragged",
    "Schema": "bigconv.schema:Schema",
    "StoreView": "bigconv.view.table:StoreView",
    "convert": "bigconv.conversion.api:convert",
    "open": "bigconv.view.table:open_view",
    "shard": "bigconv.conversion.shard:shard",
    "watch": "bigconv.bench.watch:watch",
}

__all__ = [
    "BigconvError",
    "Block",
    "Field",
    "Manifest",
    "Ragged",
    "Schema",
    "StoreView",
    "batched",
    "convert",
    "open",
    "shard",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bigconv' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
