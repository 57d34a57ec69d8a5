"""Raw files as people read them today: each sample opened, decoded and resized when it is asked for."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bigconv import fsio
from bigconv.errors import InputError, UsageError
from bigconv.sources.base import Reject, Span


class RawImages(Dataset[Any]):
    """A folder of images: Pillow decodes, and resizes with antialiasing if `size` (height, width) is given.

    A sample is a dict: `image`, uint8 `[3, height, width]`, and `label` where the folder has labels.
    """

    def __init__(self, source: Any, size: tuple[int, int] | None) -> None:
        self._files, self._labels, self._size = source.files, source.labels, size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        from PIL import Image, ImageOps

        with Image.open(self._files.path(i)) as file:
            image = file.convert("RGB")
        if self._size is not None:
            image = ImageOps.fit(image, self._size[::-1], Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return {"image": pixels} if self._labels is None else {"image": pixels, "label": int(self._labels[i])}


class RawArrayFolder(Dataset[Any]):
    """A folder with a `.npy` or `.npz` file for each sample; a sample is a dict of tensors."""

    def __init__(self, source: Any) -> None:
        self._files = source.files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        loaded = np.load(self._files.path(i), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"array": torch.from_numpy(np.array(loaded))}
        with loaded:
            return {name: torch.from_numpy(np.array(loaded[name])) for name in loaded.files}


class RawArrays(Dataset[Any]):
    """`.npy` files with a row for each sample, memory-mapped; a sample is a dict of tensors."""

    def __init__(self, paths: list[Path]) -> None:
        self._arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in paths}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: torch.from_numpy(np.array(array[i])) for name, array in self._arrays.items()}


class RawRows(Dataset[Any]):
    """HDF5, Zarr or LMDB of another program: each row read, and decoded, when it is asked for.

    A sample is a dict: tensors, and text as `str`. Each process opens the file for itself.
    """

    def __init__(self, source: Any) -> None:
        self._source, self._opened_by = source, 0

    def __len__(self) -> int:
        return int(self._source.inputs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if self._opened_by != os.getpid():
            self._source, self._opened_by = copy.copy(self._source), os.getpid()  # a copy has no open file
        (item,) = self._source.read(Span(i, i + 1))
        if isinstance(item, Reject):
            raise InputError(f"{item.path}, row {item.row}: {item.error}")
        cells: dict[str, Any] = item.row(0)
        return {n: c if isinstance(c, str) else torch.from_numpy(np.array(c)) for n, c in cells.items()}


def raw_dataset(source: Any, paths: list[Path], size: tuple[int, int] | None) -> tuple[Dataset[Any], list[Path]]:
    """The dataset over a source that has been found, and its files. Raises `UsageError` where there is none."""
    if size is not None and source.name != "images":
        raise UsageError("--resize has a meaning for folders of images only")
    if source.name == "images":
        return RawImages(source, size), [Path(source.files.path(i)) for i in range(len(source.files))]
    if source.name == "array-folder":
        return RawArrayFolder(source), [Path(source.files.path(i)) for i in range(len(source.files))]
    if source.name == "arrays" and all(path.suffix == ".npy" for path in paths):
        return RawArrays(paths), paths
    if source.name in ("hdf5", "zarr", "lmdb"):
        return RawRows(source), [Path(file) for path in paths for file in ([path] if path.is_file() else _below(path))]
    option = f" --from {source.name}" if paths[0].is_dir() else ""
    raise UsageError(
        f"{paths[0]}: {source.name} files have no random access, so there is nothing to measure before conversion.\n"
        f"Convert a sample and measure that: bigconv bench {paths[0]}{option} --stores h5,zarr,lmdb,mmap"
    )


def _below(folder: Path) -> list[Path]:
    return [folder / name for name in fsio.files_below(folder)]
