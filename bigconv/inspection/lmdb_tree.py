"""What an LMDB environment holds: how many records, of which size, and what its pages cost."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from bigconv.errors import IncompleteStore, InputError
from bigconv.inspection.datasets import Dataset
from bigconv.sources.lmdb_tree import Tree

LOOK_AT = 4096  # records whose size is looked at: a leaf page tells it, the value itself is not read
DATA = "data.mdb"


def tree(path: Path) -> list[Dataset]:
    """One dataset: the records of the main database. Raises `IncompleteStore` for a damaged file.

    lmdb itself maps a file as long as its meta page says: one that was cut short would end this process.
    """
    file = path / DATA if path.is_dir() else path
    size = file.stat().st_size
    try:
        found = Tree(os.fspath(file), str(path))
        sizes = [entry.size for entry in islice(found.walk(), LOOK_AT)]
    except InputError as error:
        raise IncompleteStore(str(error)) from error
    entries = found.entries
    mean = sum(sizes) / max(1, len(sizes))
    nbytes = sum(sizes) if len(sizes) == entries else round(mean * entries)
    about = () if len(sizes) == entries else (f"bytes from the first {LOOK_AT:,} records",)
    spread = "1 record" if entries == 1 else f"{min(sizes, default=0):,} to {max(sizes, default=0):,} bytes each"
    return [Dataset("", "records", (entries,), None, (), nbytes, size, (spread, *about))]
