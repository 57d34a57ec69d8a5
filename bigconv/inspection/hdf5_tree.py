"""What an HDF5 file holds, from its metadata: no data is read, no link out of the file is followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from bigconv.errors import IncompleteStore
from bigconv.inspection.datasets import MOST, Dataset
from bigconv.stores.hdf5_file import in_words

FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    h5py.h5z.FILTER_SZIP: "szip",
    h5py.h5z.FILTER_LZF: "lzf",
    6: "scaleoffset",
    307: "bzip2",  # from here on as registered with The HDF Group
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32015: "zstd",
    32026: "blosc2",
}
DEPTH = 64  # groups within groups


def tree(path: Path) -> list[Dataset]:
    """Every dataset, once each, in order of its name. Raises `IncompleteStore` for a damaged file."""
    found: list[Dataset] = []
    try:
        with h5py.File(path, "r") as file:
            _walk(file, "", found, set())
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise IncompleteStore(f"{path}: {in_words(error, path)}") from error
    return found


def _walk(group: Any, prefix: str, found: list[Dataset], seen: set[tuple[int, int]]) -> None:
    info = h5py.h5o.get_info(group.id)
    if (info.fileno, info.addr) in seen or prefix.count("/") > DEPTH:  # hard links may go round in a circle
        return
    seen.add((info.fileno, info.addr))
    for name in sorted(group):
        if len(found) >= MOST:
            return
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            where = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
            found.append(Dataset(prefix + name, "", (), notes=(f"link to {where}",)))
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            _walk(item, f"{prefix}{name}/", found, seen)
        elif isinstance(item, h5py.Dataset):
            found.append(_dataset(prefix + name, item))


def _dataset(name: str, item: Any) -> Dataset:
    plan = item.id.get_create_plist()
    notes = []
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        notes.append("virtual")
    elif plan.get_external_count():
        notes.append("external")
    base = h5py.check_vlen_dtype(item.dtype)
    text = h5py.check_string_dtype(item.dtype)
    if base is not None or (text is not None and text.length is None):
        notes.append("vlen")
    filters = tuple(_filter(plan.get_filter(i)) for i in range(plan.get_nfilters()))
    dtype = "text" if text is not None else f"vlen {base}" if base is not None else str(item.dtype)
    shape = () if item.shape is None else item.shape
    elsewhere = {"virtual", "external"} & set(notes)
    nbytes = None if "vlen" in notes else int(item.size or 0) * item.dtype.itemsize
    stored = None if elsewhere or "vlen" in notes else int(item.id.get_storage_size())
    return Dataset(name, dtype, shape, item.chunks, filters, nbytes, stored, tuple(notes))


def _filter(entry: tuple[Any, ...]) -> str:
    code, _, values, label = entry
    name = FILTERS.get(code) or label.decode("utf-8", "backslashreplace") or f"filter {code}"
    return f"{name}:{values[0]}" if name == "gzip" and values else name
