"""The `zarr.json` of arrays and groups: the same keys and values as zarr-python writes, and nothing else accepted.

Source: Zarr specification 3.1 (https://zarr-specs.readthedocs.io/en/latest/v3/core/), codec `sharding_indexed`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bigconv.errors import IncompleteStore
from bigconv.manifest import canonical, count
from bigconv.schema import Part
from bigconv.stores.frames import from_zarr, zarr_codec
from bigconv.stores.zarr_shards import Layout

METADATA = "zarr.json"
ARRAY_METADATA_BYTES = 64 << 10  # 64 KiB: that of an array has under 1 KiB; more is not ours


def array_document(part: Part, items: int, layout: Layout) -> bytes:
    """`zarr.json` of a part's array `[items, *shape]`."""
    dtype = np.dtype(part.dtype)
    fill: Any = {"b": False, "f": 0.0, "c": [0.0, 0.0]}.get(dtype.kind, 0)
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    packed = [] if layout.codec is None else [zarr_codec(layout.codec)]
    item = [max(1, extent) for extent in part.shape]  # an extent of 0 has no chunks, but a chunk's must be positive
    sharding = {
        "chunk_shape": [layout.chunk_items, *item],
        "codecs": [little if dtype.itemsize > 1 else {"name": "bytes"}, *packed, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return canonical(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [items, *part.shape],
            "data_type": part.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.shard_items, *item]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "storage_transformers": [],
        }
    )


def group_document(attributes: dict[str, Any]) -> bytes:
    return canonical({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def read_document(file: Path, part: Part) -> tuple[int, Layout]:
    """Items and layout of a part's array. Raises `IncompleteStore` when its `zarr.json` is not as we write it.

    The chunking is the file's own, as a store is opened without knowing the options it was made with.
    """
    try:
        with open(file, "rb") as source:
            raw = source.read(ARRAY_METADATA_BYTES + 1)
    except OSError:
        raise IncompleteStore(f"{file}: missing") from None
    try:
        document = json.loads(raw[:ARRAY_METADATA_BYTES])
        items = count(document["shape"][0])
        chunk_items = count(document["codecs"][0]["configuration"]["chunk_shape"][0])
        shard_items = count(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        inner = document["codecs"][0]["configuration"]["codecs"]
        codec = from_zarr(inner[1]) if inner[1]["name"] == "blosc" else None
        layout = Layout(part.item_bytes, chunk_items, shard_items // chunk_items, codec)
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise IncompleteStore(f"{file}: not the metadata of an array of bigconv: {error!r:.200}") from error
    expected = array_document(part, items, layout)
    if not layout.shard_chunks or raw != expected:
        raise IncompleteStore(f"{file}: not as bigconv writes it for {part.dtype} {list(part.shape)}")
    return items, layout
