"""What readers of Zarr stores have in common, wherever the store is: an array a part, read through zarr-python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigconv.block import Block, Index
from bigconv.errors import BigconvError, IncompleteStore
from bigconv.remote.urls import Url
from bigconv.schema import Schema
from bigconv.stores.base import Location, RaggedColumns, Whereabouts
from bigconv.stores.columns import take_column


class ZarrArrays:
    """Reads through zarr-python, and tells where the items of each part lie: `places`, by the part's name."""

    def __init__(self, at: Path | Url, schema: Schema, rows: int, places: Mapping[str, Location]) -> None:
        self.schema, self.rows = schema, rows
        self._at, self._places = at, places
        self._arrays: dict[str, Any] = {}

    def locate(self) -> Whereabouts:
        found: dict[str, Location | RaggedColumns] = {}
        for f in self.schema:
            at = [self._places[part.name] for part in f.parts()]
            found[f.name] = RaggedColumns(at[0], at[1], at[2] if len(at) > 2 else None) if f.ragged else at[0]
        return found

    def take(self, rows: Index, fields: tuple[str, ...]) -> Block:
        schema = self.schema.select(fields)
        try:
            return Block(schema, {f.name: take_column(f, self._array, rows) for f in schema})
        except BigconvError:
            raise
        except (ValueError, OSError, RuntimeError) as error:  # a checksum that doesn't fit is a ValueError
            raise IncompleteStore(f"{self._at}: zarr can't read it: {error}") from error

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            import zarr

            # each array by itself: the root group doesn't exist before the store is sealed
            where = self._at / name if isinstance(self._at, Path) else f"{self._at}/{name}"
            self._arrays[name] = zarr.open_array(where, mode="r", zarr_format=3)
        return self._arrays[name]

    def close(self) -> None:
        self._arrays.clear()
