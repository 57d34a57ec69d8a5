"""CSV and TSV: one field a column, a row a record, read by pyarrow in spans of whole records.

Files don't say their types, so a sample does: all of up to 16 MiB, of more 32 pieces spread over it. A column is
int64, float64 or bool when all its values are, uint64 where int64 is too narrow; all else is text: dates, mixed
columns, numbers with leading zeros (`007`), and integers that float64 would round. What later turns out not to fit its
column is a reject that names line and column; `--dtypes COLUMN=DTYPE` settles it. Empty cells, NA, N/A and NULL are
missing values in numbers, and themselves in text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from bigconv.errors import InputError, UsageError
from bigconv.schema import unknown
from bigconv.sources import table
from bigconv.sources.columns import Column, Pack, parse_dtypes
from bigconv.sources.csv_stray import strays
from bigconv.sources.csv_text import Dialect, Header
from bigconv.sources.records import Records
from bigconv.sources.text_table import Extent, TextTable

SAMPLE_BYTES = 16 << 20  # 16 MiB: read in a twentieth of a second
SAMPLE_PIECES = 32


@dataclass(frozen=True, eq=False)
class Csv(TextTable):
    """Rows of one table in one or many files, which have the same columns, in any order."""

    name: ClassVar[str] = "csv"
    options: ClassVar[tuple[str, ...]] = (*table.OPTIONS, "dtypes", "delimiter", "quote", "header", "encoding")

    dialect: Dialect
    headers: tuple[Header, ...]  # of each file
    types: Mapping[str, Any]  # column → Arrow type
    inferred: tuple[str, ...]  # columns of numbers that nobody said are numbers
    notes: tuple[str, ...] = ()  # what the sample shows that may not be meant

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        columns: Sequence[str] | None = None,
        pack: Pack = None,
        fill: float | None = None,
        dtypes: Mapping[str, str] | Sequence[str] | None = None,
        delimiter: str | None = None,
        quote: str = '"',
        header: str | Sequence[str] | None = None,
        encoding: str = "utf-8",
    ) -> Csv:
        """List the files, find their records, and look at a sample for the types.

        `columns`, `pack`, `fill`: see `table.Layout.of`. `dtypes`: column → dtype, `text` or `timestamp`. `delimiter`:
        one character (default: tab for `.tsv`, else the one of , ; tab | that the first line has most of). `quote`:
        one character, or `none`. `header`: the columns' names where files have none, `none` to number them, `first`
        for a first line that looks like numbers and isn't. `encoding`: UTF-8, or one that has a byte a character.

        Raises `InputError` when the files aren't one table, `UsageError` for options that make no sense.
        """
        files = table.TableFiles.of(paths, cls.name)
        dialect = Dialect.of(files, delimiter, quote, encoding)
        headers = _shared(dialect.header(files, i, header) for i in range(len(files)))
        known = headers[0].columns
        for i, other in enumerate(headers):
            odd = sorted(set(other.columns) ^ set(known))
            if odd:
                has, lacks = (i, 0) if odd[0] in other.columns else (0, i)
                raise InputError(f"column {odd[0]!r} is in {files.name(has)}, but not in {files.name(lacks)}")
        asked = parse_dtypes(dtypes)
        for name in asked:
            if name not in known:
                raise UsageError(unknown("column", name, known[:50]))
        records = Records.scan(files, [h.start for h in headers], dialect.syntax)
        if not len(records):
            raise InputError(f"{files.name(0)}: no rows behind the names of its columns")
        seen = dialect.infer(_samples(files, records, dialect, headers))
        types = {**dict.fromkeys(known, pa.null()), **seen, **asked}
        types = {name: pa.string() if kind == pa.null() else kind for name, kind in types.items()}
        layout = _laid_out(known, types, columns, pack, fill)
        for f, members, packed in zip(layout.schema, layout.members, layout.packed, strict=True):
            if packed and f.dtype == "float64":  # integers so far: what follows may as well be floats
                types |= {c.name: pa.float64() for c in members if c.name not in asked and c.type == pa.int64()}
        layout = _laid_out(known, types, columns, pack, fill)
        numbers = (pa.int64(), pa.uint64(), pa.float64())
        inferred = tuple(c.name for c in layout.columns if c.name not in asked and c.type in numbers)
        text = [c.name for c in layout.columns if c.name not in asked and types[c.name] == pa.string()]
        samples = records.samples(files, dialect.syntax, SAMPLE_BYTES, SAMPLE_PIECES)
        notes = tuple(strays(files, records, dialect, headers, samples, text)) if text else ()
        return cls(files, records, dialect.syntax, layout, dialect, headers, types, inferred, notes)

    def parse(self, data: bytes, file: int, threads: bool) -> Any:
        names, data = self.headers[file].columns, self.dialect.utf8(data)
        wanted = [column.name for column in self.layout.columns]
        found = self.dialect.parse(data, names, self.types, wanted, threads)
        if found.num_rows:
            self.dialect.strict(data, names, found, self.inferred)
        return found

    def sound(self, data: bytes, file: int, records: Sequence[Extent]) -> tuple[Sequence[Extent], dict[int, str]]:
        bad: dict[int, str] = {}

        def note(row: Any) -> str:
            bad[row.number - 1] = f"{row.actual_columns} values, but the table has {row.expected_columns} columns"
            return "skip"

        names = self.headers[file].columns
        self.dialect.parse(self.dialect.utf8(data), names, {names[0]: pa.binary()}, names[:1], bad=note)
        return [record for record in records if record[0] not in bad], bad

    def reason(self, error: Exception, file: int) -> str:
        text = str(error)
        known = re.search(r"CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to (.*?): (.*)", text, re.DOTALL)
        if known is None:
            return text[:300]
        column = self.layout.columns[int(known[1])]
        if "UTF8" in known[3]:
            return f"column {column.name}: not {self.dialect.encoding}; --encoding cp1252, or whatever it is"
        return f"column {column.name}: {known[3][:100]} for {column.type}; --dtypes {column.name}=text keeps it"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **asdict(self.dialect)}


def _laid_out(
    known: Sequence[str], types: Mapping[str, Any], columns: Sequence[str] | None, pack: Pack, fill: float | None
) -> table.Layout:
    return table.Layout.of([Column(name, (name,), types[name]) for name in known], columns, pack, fill)


def _shared(headers: Iterable[Header]) -> tuple[Header, ...]:
    """Equal names held once, however many files have them."""
    held: dict[tuple[str, ...], tuple[str, ...]] = {}
    return tuple(Header(held.setdefault(header.columns, header.columns), header.start) for header in headers)


def _samples(
    files: table.TableFiles, records: Records, dialect: Dialect, headers: Sequence[Header]
) -> Iterator[tuple[Sequence[str], bytes]]:
    """Samples of neighbouring files with equal headers in one."""
    pieces = records.samples(files, dialect.syntax, SAMPLE_BYTES, SAMPLE_PIECES)
    for columns, group in groupby(pieces, lambda piece: headers[records.file[piece[0]]].columns):
        yield columns, dialect.utf8(b"\n".join(data for _, data in group))
