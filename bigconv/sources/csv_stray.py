"""Columns of a CSV file that would be numbers, but for a few values: what makes them text, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bigconv.sources.csv_text import NULLS, Dialect, Header
from bigconv.sources.records import Records, line_numbers
from bigconv.sources.table import TableFiles

MOSTLY = 0.75  # of the values that were seen: with fewer numbers, it is a column of text that has some
_INTEGER = r"^\s*[+-]?[0-9]+\s*$"
_NUMBER = r"^\s*[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))\s*$"


@dataclass
class _Seen:
    """What was seen of a column: values, numbers and integers among them, and the first that is no number."""

    values: int = 0
    numbers: int = 0
    integers: int = 0
    stray: str = ""
    where: str = ""

    @property
    def mostly_numbers(self) -> bool:
        return self.numbers >= MOSTLY * self.values


def strays(
    files: TableFiles,
    records: Records,
    dialect: Dialect,
    headers: Sequence[Header],
    samples: Iterable[tuple[int, bytes]],
    columns: Sequence[str],
) -> Iterator[str]:
    """What a person would want to know of columns that are text; `samples`: `(span, whole records)`."""
    seen = {name: _Seen() for name in columns}
    for number, data in samples:
        text = dialect.utf8(data)
        bad: set[int] = set()
        names = headers[records.file[number]].columns
        wanted = [name for name, one in seen.items() if one.mostly_numbers]
        if not wanted:
            return
        try:
            table = dialect.parse(text, names, dict.fromkeys(wanted, pa.string()), wanted, bad=_noting(bad))
        except pa.ArrowInvalid:  # told of where it is read
            continue
        starts = dialect.syntax.starts(text)
        rows = np.delete(np.arange(len(starts)), sorted(bad))
        for name in wanted:
            at = _look(table.column(name), seen[name])
            if at is not None:
                where = files.name(int(records.file[number]))
                known = len(rows) == table.num_rows
                line = int(records.line[number] + line_numbers(text, starts)[rows[at]]) if known else 0
                seen[name].where = f"{where}, line {line}" if line else where
    for name, one in seen.items():
        if one.stray and one.mostly_numbers:
            kind = "int64" if one.integers == one.numbers else "float64"
            few = one.values - one.numbers
            yield (
                f"column {name} is text because of {one.stray[:60]!r} ({one.where}): {few:,} of {one.values:,} values "
                f"seen {'is' if few == 1 else 'are'} no number. --dtypes {name}={kind} rejects such rows instead"
            )


def _noting(bad: set[int]) -> Any:
    def note(row: Any) -> str:
        bad.add(row.number - 1)
        return "skip"

    return note


def _look(column: Any, seen: _Seen) -> int | None:
    """Count; the row of the first value that is no number, unless one was found before."""
    missing = pc.is_in(column, pa.array(NULLS))
    number = pc.match_substring_regex(column, _NUMBER)
    seen.values += len(column) - int(pc.sum(missing).as_py() or 0)
    seen.numbers += int(pc.sum(number).as_py() or 0)
    seen.integers += int(pc.sum(pc.match_substring_regex(column, _INTEGER)).as_py() or 0)
    if seen.stray:
        return None
    odd = pc.invert(pc.or_(number, missing)).to_numpy()
    if not odd.any():
        return None
    first = int(np.argmax(odd))
    seen.stray = column[first].as_py()
    return first
