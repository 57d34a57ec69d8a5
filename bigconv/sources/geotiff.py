"""GeoTIFF rasters as tiles, read by GDAL (rasterio) window by window, never whole.

With `tile`, a raster is cut into squares of so many pixels from its upper left corner, row by row, each `overlap`
pixels into the one before. Tiles at the right and lower edge are filled up with nodata, or with 0 where a raster
has none. Without `tile`, a raster is one row. Values are as stored: nodata stays, scale and offset are not applied,
masks, overviews and files beside the raster (`.aux.xml`, `.tfw`) are not read.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block
from bigconv.decode import DecodeError
from bigconv.errors import InputError, UsageError
from bigconv.schema import DTYPES, Field, Schema
from bigconv.sources.base import Reject, Span
from bigconv.sources.filerows import (
    MAX_ROW_BYTES,
    FileRows,
    Labelling,
    OfFileRows,
    alike,
    common_shape,
    first_of,
    heads,
    reason,
)
from bigconv.sources.labels import Classes
from bigconv.sources.named import NamedFiles

MAX_TILES = 1 << 24  # of one raster: a header of a few bytes may tell of 10^18 pixels that no one wrote
MAX_BANDS = 1 << 12
QUIET = {  # of GDAL: only what the list of files tells of decides, and no line of its own on stderr
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_NUM_THREADS": "1",
    "CPL_DEBUG": "OFF",
}


@dataclass(frozen=True)
class Head:
    """What a raster's header tells. `transform`: a, b, c, d, e, f of x = a·column + b·row + c, y = d·column + …"""

    bands: int
    height: int
    width: int
    dtype: str
    nodata: float | None
    crs: str
    transform: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """How a raster falls into tiles. `tile` 0: it is one."""

    tile: int
    overlap: int

    def across(self, extent: int) -> int:
        """Tiles along an axis of `extent` pixels."""
        if not self.tile:
            return 1
        return max(1, -(-(extent - self.overlap) // (self.tile - self.overlap)))

    def window(self, head: Head, number: int) -> tuple[int, int, int, int]:
        """Row, column, height and width of tile `number`, as far as it lies in the raster."""
        if not self.tile:
            return 0, 0, head.height, head.width
        step = self.tile - self.overlap
        row, column = (n * step for n in divmod(number, self.across(head.width)))
        return row, column, min(self.tile, head.height - row), min(self.tile, head.width - column)

    def shape(self, head: Head) -> tuple[int, int, int]:
        return (head.bands, self.tile or head.height, self.tile or head.width)


@dataclass(frozen=True, eq=False)
class GeoTiff(OfFileRows):
    """Each tile of each raster is a row, in bytewise order of the paths.

    Fields: `image`, `[bands, height, width]`, of the rasters' dtype; `window`, int64 `[4]`: row, column, height and
    width in pixels of the part of the raster that the tile shows; `transform`, float64 `[6]`: a, b, c, d, e, f
    that take a pixel (column, row) of the tile to x = a·column + b·row + c, y = d·column + e·row + f; `crs`, int64,
    where rasters have different ones; `label`, int64, where labels were asked for.
    """

    name: ClassVar[str] = "geotiff"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "classes", "tile", "overlap")
    hints: ClassVar[tuple[str, ...]] = ("workers",)

    rows: FileRows
    schema: Schema
    grid: Grid
    crs: tuple[str, ...]
    nodata: float | None
    transform: tuple[float, ...] | None  # where all rasters have the same

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        label_from: str | None = None,
        classes: Classes | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        workers: int = 1,
    ) -> GeoTiff:
        """List the rasters and read their headers.

        `label_from`, `classes`: see `labels`; none by default. `tile`, `overlap`: pixels. Raises `InputError`, also
        when rasters differ in bands, dtype or nodata, `UsageError`, `MissingPackage`.
        """
        grid = _grid(tile, overlap)
        _rasterio()
        found = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "GeoTIFF files")
        told = heads(found, lambda path: _head(path, grid), "GeoTIFF files", workers)
        alike(found, told, "numbers of bands", lambda head: head.bands)
        alike(found, told, "dtypes", lambda head: head.dtype)
        alike(found, told, "nodata values", lambda head: repr(head.nodata))
        first = first_of(told)
        good = [head for head in told if head is not None]
        crs = tuple(sorted({head.crs for head in good}))
        transforms = {head.transform for head in good}
        counts = [1 if head is None else grid.across(head.height) * grid.across(head.width) for head in told]
        itemsize = np.dtype(first.dtype).itemsize
        sizes = [0 if head is None else math.prod(grid.shape(head)) * itemsize for head in told]
        rows = FileRows.of(found, counts, sizes, paths, Labelling(label_from, classes, "GeoTIFF files", "none"))
        shape = common_shape([grid.shape(head) for head in good])
        fields = (
            Field("image", first.dtype, shape, kind="image", layout="chw"),
            Field("window", "int64", (4,), "label"),  # numbers about the row: steps leave them alone
            Field("transform", "float64", (6,), "label"),
            *((Field("crs", "int64", (), "label", classes=crs),) if len(crs) > 1 else ()),
            *rows.label_fields,
        )
        transform = transforms.pop() if len(transforms) == 1 else None
        return cls(rows, Schema(fields), grid, crs, first.nodata, transform)

    def read(self, span: Span) -> Iterator[Block | Reject]:
        with contextlib.ExitStack() as still_open:
            opened: dict[int, tuple[Any, Head]] = {}

            def row(file: int, number: int) -> dict[str, Any]:
                if file not in opened:
                    still_open.close()
                    opened.clear()
                    opened[file] = still_open.enter_context(_opened(self.rows.found.paths[file], self.grid))
                return self._row(*opened[file], number)

            yield from self.rows.read(self.schema, span, row)

    def _row(self, raster: Any, head: Head, number: int) -> dict[str, Any]:
        image = self.schema["image"]
        if (head.dtype, repr(head.nodata)) != (image.dtype, repr(self.nodata)) or head.crs not in self.crs:
            raise InputError("changed since it was listed: another dtype, nodata or CRS")
        row, column, height, width = self.grid.window(head, number)
        if height < 1 or width < 1:
            raise InputError(f"changed since it was listed: there is no tile {number}")
        out = np.full(self.grid.shape(head), _filling(head), image.dtype)
        out[:, :height, :width] = _pixels(raster, (row, column, height, width))
        a, b, c, d, e, f = head.transform
        cells = {
            "image": out,
            "window": np.array([row, column, height, width], np.int64),
            "transform": np.array([a, b, a * column + b * row + c, d, e, d * column + e * row + f]),
        }
        return cells if len(self.crs) < 2 else {**cells, "crs": np.array(self.crs.index(head.crs))}

    def describe(self) -> dict[str, Any]:
        told = {"kind": self.name, **self.rows.told(), "crs": list(self.crs)}
        if self.nodata is not None:  # JSON has no NaN
            told["nodata"] = self.nodata if math.isfinite(self.nodata) else repr(self.nodata)
        if self.transform is not None:
            told["transform"] = list(self.transform)
        return {**told, "tile": self.grid.tile, "overlap": self.grid.overlap} if self.grid.tile else told


def _grid(tile: int | None, overlap: int | None) -> Grid:
    if tile is None:
        if overlap is not None:
            raise UsageError(f"--overlap {overlap}: of which tiles? Add --tile 256")
        return Grid(0, 0)
    if not 1 <= tile <= 1 << 15:
        raise UsageError(f"--tile {tile}: expected a side of 1 to {1 << 15} pixels, such as 256")
    if not 0 <= (overlap or 0) < tile:
        raise UsageError(f"--overlap {overlap}: expected less than the {tile} pixels of a tile")
    return Grid(tile, overlap or 0)


def _rasterio() -> Any:
    try:
        library = importlib.import_module("rasterio")
        errors = importlib.import_module("rasterio.errors")
    except ModuleNotFoundError as error:
        raise registry.missing("rasterio", "geo", "geotiff") from error
    warnings.filterwarnings("ignore", category=errors.NotGeoreferencedWarning)  # then its transform is 1, 0, 0, 0, 1, 0
    return library


@contextlib.contextmanager
def _opened(path: str, grid: Grid) -> Iterator[tuple[Any, Head]]:
    """A raster and its header. GDAL's errors become `DecodeError`."""
    rasterio = _rasterio()
    with open(path, "rb") as file:  # says why where GDAL would not
        if not file.read(1):
            raise DecodeError("an empty file")
    try:
        with rasterio.Env(**QUIET):  # for opening alone: readers take turns, and these settings are of the thread
            raster = rasterio.open(os.path.abspath(path), driver="GTiff", sharing=False)
        with raster:
            yield raster, _told(raster, grid)
    except UnicodeEncodeError as error:
        raise InputError("its path is not UTF-8, which GDAL needs: rename it") from error
    except (rasterio.errors.RasterioError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise DecodeError(f"can't be decoded: {_why(error, path)}") from error


def _why(error: Exception, path: str) -> str:
    """What GDAL said first: rasterio only tells that reading failed."""
    cause = error.__cause__
    return reason(cause if isinstance(cause, Exception) and str(cause) else error, os.path.abspath(path))


def _head(path: str, grid: Grid) -> Head:
    """Raises `InputError`, `OSError`."""
    with _opened(path, grid) as (_, head):
        return head


def _told(raster: Any, grid: Grid) -> Head:
    dtypes = set(raster.dtypes)
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise InputError(f"bands of type {', '.join(sorted(dtypes))} can't be stored")
    nodata = None if raster.nodata is None else float(raster.nodata)
    head = Head(
        int(raster.count),
        int(raster.height),
        int(raster.width),
        dtypes.pop(),
        nodata,
        raster.crs.to_string() if raster.crs else "none",
        tuple(float(n) for n in raster.transform[:6]),
    )
    if head.bands > MAX_BANDS:
        raise DecodeError(f"{head.bands} bands are more than the {MAX_BANDS} allowed")
    tiles = grid.across(head.height) * grid.across(head.width)
    if tiles > MAX_TILES:
        raise DecodeError(f"{head.height}x{head.width} pixels are {tiles} tiles, more than the {MAX_TILES} allowed")
    nbytes = math.prod(grid.shape(head)) * np.dtype(head.dtype).itemsize
    if nbytes > MAX_ROW_BYTES:
        hint = "; cut it up with --tile 256" if not grid.tile else ""
        raise DecodeError(f"{nbytes} bytes of pixels are more than the {MAX_ROW_BYTES} that one row may have{hint}")
    return head


def _filling(head: Head) -> float:
    """What stands beyond the edge: nodata, or 0 where there is none, or none that a pixel can have."""
    if head.nodata is None or np.dtype(head.dtype).kind in "fc":
        return head.nodata or 0
    info = np.iinfo(head.dtype)
    return head.nodata if info.min <= head.nodata <= info.max and head.nodata.is_integer() else 0


def _pixels(raster: Any, window: tuple[int, int, int, int]) -> Array:
    """`[bands, height, width]` of a part."""
    row, column, height, width = window
    windows = importlib.import_module("rasterio.windows")
    try:
        pixels: Array = raster.read(window=windows.Window(column, row, width, height))
    except (_rasterio().errors.RasterioError, ValueError) as error:
        raise DecodeError(f"can't be decoded: {_why(error, raster.name)}") from error
    except MemoryError as error:
        raise DecodeError("does not fit in memory") from error
    return pixels
