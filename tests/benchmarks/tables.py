"""Tables to one matrix: bigconv's whole line against pyarrow's reader and one write.

Issue figure: CSV and Parquet → matrix (`pack="x=*"`) at 0.7 or more of reading with pyarrow, stacking the columns and
`ndarray.tofile`. bigconv ends with its bytes on disk (fsync) and read back; so the peer is shown with fsync, too.
200 MB of CSV, or as many MB as are named: `python -m tests.benchmarks.tables 1000`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from bigconv.conversion.request import Request
from tests.benchmarks._timing import rates, table

COLUMNS = 32


def generate(path: Path, nbytes: int) -> None:
    """Rows of floats, written by pyarrow."""
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(COLUMNS)]
    with open(path, "wb") as file:
        piece = None
        while file.tell() < nbytes:
            if piece is None:
                values = pa.table({name: rng.standard_normal(20_000).round(6) for name in names})
                csv.write_csv(values, file)
                at = file.tell()
                csv.write_csv(values, file, csv.WriteOptions(include_header=False))
                with open(path, "rb") as again:
                    file.flush()
                    again.seek(at)
                    piece = again.read()
            else:
                file.write(piece)


def write_matrix(columns: pa.Table, path: Path, sync: bool = False) -> int:
    out = np.empty((len(columns), columns.num_columns))
    for i, column in enumerate(columns.columns):
        out[:, i] = column.to_numpy()
    with open(path, "wb", buffering=0) as file:
        out.tofile(file)
        if sync:
            os.fsync(file.fileno())
    return len(out)


def convert(source: Path, dest: Path) -> int:
    request = Request((source,), dest, overwrite=True, options={"pack": ["x=*"]})
    return request.run().manifest.rows


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "t.csv", size * 1_000_000)
        parquet.write_table(csv.read_csv(folder / "t.csv"), folder / "t.parquet", row_group_size=100_000)
        readers = {"csv": csv.read_csv, "parquet": parquet.read_table}
        for kind, read in readers.items():
            source = folder / f"t.{kind}"
            limit = f"pyarrow {kind} + tofile"
            ways = {
                limit: lambda read=read, source=source: write_matrix(read(source), folder / "out.bin"),
                f"{limit} + fsync": lambda r=read, s=source: write_matrix(r(s), folder / "out.bin", sync=True),
                **{
                    f"bigconv {kind} → {suffix}": lambda s=source, d=folder / f"out{suffix}": convert(s, d)
                    for suffix in (".mmap", ".h5")
                },
            }
            table(f"{source.stat().st_size / 1e6:.0f} MB {kind}, {COLUMNS} columns", rates(ways), limit)


if __name__ == "__main__":
    main()
