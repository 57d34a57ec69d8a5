"""What an LMDB environment holds: how many records, of which size, and what its pages cost."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from bigconv.errors import IncompleteStore
from bigconv.inspection.datasets import Dataset

LOOK_AT = 4096  # records whose size is looked at: a leaf page tells it, the value itself is not read
DATA = "data.mdb"


def tree(path: Path) -> list[Dataset]:
    """One dataset: the records of the main database. Raises `IncompleteStore` for a damaged file."""
    import lmdb

    file = path / DATA if path.is_dir() else path
    size = file.stat().st_size
    try:
        with (
            lmdb.open(str(path), readonly=True, lock=False, subdir=path.is_dir(), max_dbs=0, readahead=False) as env,
            env.begin(buffers=True) as transaction,
        ):
            entries = transaction.stat()["entries"]
            with transaction.cursor() as cursor:
                sizes = [len(value) for value in islice(cursor.iternext(keys=False, values=True), LOOK_AT)]
    except lmdb.Error as error:
        raise IncompleteStore(f"{path}: damaged: lmdb says: {str(error)[:200]}") from error
    mean = sum(sizes) / max(1, len(sizes))
    nbytes = sum(sizes) if len(sizes) == entries else round(mean * entries)
    about = () if len(sizes) == entries else (f"bytes from the first {LOOK_AT:,} records",)
    spread = "1 record" if entries == 1 else f"{min(sizes, default=0):,} to {max(sizes, default=0):,} bytes each"
    return [Dataset("", "records", (entries,), None, (), nbytes, size, (spread, *about))]
