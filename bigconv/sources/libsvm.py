"""Lines of LIBSVM and SVMlight: `label [qid:N] index:value index:value … # comment`.

Indices count from 1, unless a 0 is among them (in any file); `index_base` settles it, so that a training and a test set
agree. Here they count from 0. The number of columns is `length`: the largest index there is, or the option, and it is
kept in the manifest's source; it is what `SparseCollate(length=…)` takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span, origins
from bigconv.sources.filelist import FileList
from bigconv.sources.lines import Lines
from bigconv.sources.named import NamedFiles
from bigconv.sources.rowwise import woven

EXACT = 2**53  # float64 holds every integer up to here
_NUMBER = rb"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]{1,4}+)?+"
_VALUE = rb"(?:" + _NUMBER + rb"|[-+]?+(?:[nN][aA][nN]|[iI][nN][fF]))"
_ROW = (
    _NUMBER + rb"(?=[ \t\r\n]|\Z)(?:[ \t]++qid:[0-9]{1,15}+(?=[ \t\r\n]|\Z))?+"
    rb"(?:[ \t]++[0-9]{1,15}+:" + _VALUE + rb"(?=[ \t\r\n]|\Z))*+[ \t]*+"
)
_ROWS = re.compile(rb"(?:[ \t]*+(?:" + _ROW + rb")?+\r?+(?:\n|\Z))*+")
_ONE = re.compile(rb"[ \t]*+" + _ROW)
_COMMENT = re.compile(rb"#[^\n]*+")


@dataclass(frozen=True, eq=False)
class LibSvm:
    """Each line with anything on it but a comment is a row.

    Fields: `indices`, int32 or, where there are more than 2^31 columns, int64 `[entries]`; `values`, float64
    `[entries]`; `label`, int64 when all are whole, else float64; `qid`, int64, where there are any. Lines that don't
    parse become rejects.
    """

    name: ClassVar[str] = "libsvm"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("index_base", "length")
    hints: ClassVar[tuple[str, ...]] = ()

    found: NamedFiles
    lines: Lines
    base: int
    length: int
    schema: Schema

    @classmethod
    def find(cls, paths: Sequence[Path], *, index_base: int | None = None, length: int | None = None) -> LibSvm:
        """Read all lines once, as only that tells columns, base and what labels are.

        `index_base`: 0 or 1, what indices count from; `length`: the number of columns, and rows with larger indices are
        rejects. Raises `InputError` when no line can be read, `UsageError`.
        """
        if index_base not in (None, 0, 1):
            raise UsageError(f"--index-base {index_base}: expected 0 or 1")
        if length is not None and not 1 <= length <= EXACT:
            raise UsageError(f"--length {length}: expected the number of columns, 1 or more")
        found = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "LIBSVM files")
        seen = _Seen(found)
        lines = Lines.scan(found, seen.add)
        if not seen.good:
            raise InputError(seen.why or f"{found.name(0)}: no rows in it")
        base = index_base if index_base is not None else int(seen.least > 0)
        columns = length if length is not None else max(1, seen.most + 1 - base)
        label = Field("label", "int64", (), "label") if seen.whole else Field("label", "float64")
        fields = [
            Field("indices", "int32" if columns <= 1 << 31 else "int64", (None,)),
            Field("values", "float64", (None,)),
            label,
        ]
        if seen.qids:
            fields.append(Field("qid", "int64"))
        return cls(found, lines, base, columns, Schema(tuple(fields)))

    @property
    def files(self) -> FileList:
        return self.found.files

    @property
    def inputs(self) -> int:
        return len(self.lines)

    def plan(self) -> Sequence[Span]:
        return self.lines.spans()

    def read(self, span: Span) -> Iterator[Block | Reject]:
        for piece, low, high, first in self.lines.within(span):
            yield from self._read(piece, low, high, first)

    def _read(self, piece: int, low: int, high: int, first: int) -> Iterator[Block | Reject]:
        """Rows `low` to `high` of a piece, whose first has the number `first` in its file."""
        file = int(self.lines.file[piece])
        name = self.found.name(file)
        parsed = Rows.parse(self.lines.read(self.found, piece))
        if parsed.count != self.lines.row[piece + 1] - self.lines.row[piece]:
            raise InputError(f"{name}: the file has changed since it was listed")
        bad = dict(parsed.bad)
        indices = parsed.entries[:, 0].astype(np.int64) - self.base
        outside = np.flatnonzero((indices < 0) | (indices >= self.length))
        at = np.searchsorted(parsed.offsets, outside, "right") - 1
        for entry, k in zip(outside.tolist()[::-1], at.tolist()[::-1], strict=True):
            limits = f"{self.base} to {self.length - 1 + self.base}"
            bad[int(parsed.rows[k])] = f"index {indices[entry] + self.base}, where they go from {limits}"
        if "qid" in self.schema:
            for k in np.flatnonzero(parsed.qids < 0).tolist():
                bad.setdefault(int(parsed.rows[k]), "no qid, which other lines have")
        if "label" in self.schema and self.schema["label"].dtype == "int64":
            for k in np.flatnonzero(~_whole(parsed.labels)).tolist():
                raise InputError(f"{name}: the file has changed since it was listed: label {parsed.labels[k]}")
        keep = np.flatnonzero((parsed.rows >= low) & (parsed.rows < high) & ~np.isin(parsed.rows, list(bad)))
        rejects = {
            row: Reject(name, first + row, "read", f"line {int(self.lines.line[piece] + parsed.line[row])}: {why}")
            for row, why in bad.items()
            if low <= row < high
        }
        columns: dict[str, Column] = {
            "indices": Ragged(indices.astype(self.schema["indices"].dtype), parsed.offsets),
            "values": Ragged(np.ascontiguousarray(parsed.entries[:, 1]), parsed.offsets),
            "label": parsed.labels.astype(self.schema["label"].dtype),
        }
        if "qid" in self.schema:
            columns["qid"] = parsed.qids
        block = Block(self.schema, columns, origins(file, first + parsed.rows))
        if len(keep) < len(block):
            block = block.take(keep)
        yield from woven(block, parsed.rows[keep], rejects)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "files": len(self.found),
            "bytes": int(self.files.sizes.sum()),
            "length": self.length,
            "index_base": self.base,
        }


class _Seen:
    """What the first pass learns."""

    def __init__(self, found: NamedFiles) -> None:
        self._found = found
        self.good, self.whole, self.qids = 0, True, False
        self.least, self.most = EXACT, 0
        self.why = ""

    def add(self, file: int, data: bytes, line: int) -> int:
        """Rows of a piece, those that can't be read among them."""
        parsed = Rows.parse(data)
        self.good += len(parsed.rows)
        if len(parsed.entries):
            self.least = min(self.least, int(parsed.entries[:, 0].min()))
            self.most = max(self.most, int(parsed.entries[:, 0].max()))
        self.whole = self.whole and bool(_whole(parsed.labels).all())
        self.qids = self.qids or bool((parsed.qids >= 0).any())
        for row, why in parsed.bad.items():
            self.why = self.why or f"{self._found.name(file)}, line {line + int(parsed.line[row])}: {why}"
        return parsed.count


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a piece.

    `count`: all, of which `bad` can't be read, by number; `rows`: int64 `[good]`, the numbers of the others; `line`:
    int64 `[count]`, lines before each; `labels`: float64 `[good]`; `qids`: int64 `[good]`, -1 for none; `entries`:
    float64 `[entries, 2]`, index and value; `offsets`: int64 `[good + 1]`.
    """

    count: int
    bad: dict[int, str]
    rows: Index
    line: Index
    labels: Array
    qids: Index
    entries: Array
    offsets: Index

    @classmethod
    def parse(cls, data: bytes) -> Rows:
        if b"#" in data:
            data = _COMMENT.sub(b"", data)
        array = np.frombuffer(data, np.uint8)
        starts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(array == 10) + 1])
        stops = np.append(starts[1:], len(data))
        black = np.concatenate([np.zeros(1, np.int64), np.cumsum(array > 32, dtype=np.int64)])
        line = np.flatnonzero(black[stops] > black[starts])
        bad: dict[int, str] = {}
        rows = np.arange(len(line))
        if _ROWS.fullmatch(data) is None:
            good = []
            for row, (a, b) in enumerate(zip(starts[line].tolist(), stops[line].tolist(), strict=True)):
                text = data[a:b].rstrip(b"\r\n")
                if _ONE.fullmatch(text):
                    good.append(text)
                else:
                    bad[row] = _wrong(text)
            rows = np.delete(rows, list(bad))
            data = b"\n".join(good)
            array = np.frombuffer(data, np.uint8)
            ends = np.flatnonzero(array == 10) if good else np.empty(0, np.int64)
            stops = np.append(ends, len(data))[: len(good)]
        else:
            stops = stops[line]
        colons = np.searchsorted(np.flatnonzero(array == ord(":")), stops)
        queries = np.diff(np.searchsorted(np.flatnonzero(array == ord("q")), stops), prepend=0)
        pairs = np.diff(colons, prepend=0) - queries
        plain = data.replace(b"qid:", b"").replace(b":", b" ").decode()
        numbers = (
            np.fromstring(plain, np.float64, sep=" ") if len(rows) else np.empty(0)
        )  # of white space it makes a -1
        at = np.cumsum(1 + queries + 2 * pairs) - (1 + queries + 2 * pairs)
        if len(numbers) != len(rows) + int(queries.sum()) + 2 * int(pairs.sum()):
            raise AssertionError("numbers and rows differ")
        qids = np.full(len(rows), -1, np.int64)
        asked = np.flatnonzero(queries)
        qids[asked] = numbers[at[asked] + 1].astype(np.int64)
        entries = np.delete(numbers, np.concatenate([at, at[asked] + 1])).reshape(-1, 2)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(pairs, dtype=np.int64)])
        return cls(len(line), bad, rows, line, numbers[at], qids, entries, offsets)


def _whole(labels: Array) -> Array:
    whole: Array = (np.floor(labels) == labels) & (np.abs(labels) < EXACT)
    return whole


def _wrong(text: bytes) -> str:
    """What is wrong with a line."""
    label, *others = text.split()
    if not re.fullmatch(_NUMBER, label):
        several = " (several labels a row are not read)" if b"," in label else ""
        return f"label {label[:40]!r} is no number{several}"
    for number, word in enumerate(others):
        if number == 0 and re.fullmatch(rb"qid:[0-9]{1,15}", word):
            continue
        if not re.fullmatch(rb"[0-9]{1,15}:" + _VALUE, word):
            return f"{word[:40]!r} is no INDEX:VALUE"
    return f"odd characters between its words: {text[:40]!r}"
