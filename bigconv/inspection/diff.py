"""`--diff`: where two stores, or a store and anything else with rows, are not the same.

Digests say which blocks of rows differ, and only those are read. What has no digests (raw input, foreign stores) is
read once to take them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bigconv.block import Array, Block, Column, Ragged, cell
from bigconv.digest import Digester, Digests, raw
from bigconv.hashes import XXH3
from bigconv.inspection.rows import Rows, StoreRows
from bigconv.inspection.stats import plain
from bigconv.manifest import Manifest
from bigconv.schema import Field, Schema

MOST_RANGES = 1000  # that are listed a field
SHOWN = 80  # characters of a value


@dataclass(frozen=True)
class Side:
    """One of the two: its rows, and what its manifest says, where it has one."""

    name: str
    rows: Rows
    manifest: Manifest | None = None
    provenance: bytes | None = None


@dataclass(frozen=True)
class First:
    """The first value of a field that differs: its row, its place in the row, and what it is on either side."""

    row: int
    index: tuple[int, ...]
    ours: str
    theirs: str


@dataclass(frozen=True)
class FieldDiff:
    """A field in both whose rows differ: in these ranges of rows (exclusive ends), and where first."""

    field: str
    ranges: tuple[tuple[int, int], ...]
    blocks: int
    first: First | None


@dataclass(frozen=True)
class Diff:
    """All that two sides have not in common. `schema` and `about`: lines for people; `about` (store, recipe,
    provenance) does not make rows differ.
    """

    rows: tuple[int, int]
    digests: tuple[str, str]
    schema: tuple[str, ...]
    about: tuple[str, ...]
    fields: tuple[FieldDiff, ...]

    @property
    def same(self) -> bool:
        """Whether fields and rows are the same, whatever they lie in and came from."""
        return not self.schema and not self.fields and self.rows[0] == self.rows[1]

    def to_json(self) -> dict[str, Any]:
        return {
            "same": self.same,
            "rows": list(self.rows),
            "content_digests": list(self.digests),
            "schema": list(self.schema),
            "about": list(self.about),
            "fields": [asdict(one) for one in self.fields],
        }


def diff(ours: Side, theirs: Side) -> Diff:
    """Compare. Values are compared by their bytes, as digests are: -0.0 is not 0.0, and a NaN is itself."""
    a, b = ours.rows.schema, theirs.rows.schema
    algorithm = next((side.manifest.digests.algorithm for side in (ours, theirs) if side.manifest is not None), XXH3)
    first = _digests(ours, algorithm)
    second = _digests(theirs, algorithm)
    shared = [f.name for f in a if f.name in b and _alike(f, b[f.name])]
    digests = (first.content(a), second.content(b))
    if digests[0] == digests[1]:
        shared = []  # nothing to look for
    elif first.block_rows != second.block_rows and shared:
        second = _digests(theirs, algorithm, shared, first.block_rows)
    return Diff(
        rows=(first.rows, second.rows),
        digests=digests,
        schema=tuple(_schema(a, b)),
        about=tuple(_about(ours, theirs)),
        fields=tuple(_fields(ours, theirs, shared, first, second)),
    )


def _digests(side: Side, algorithm: str, fields: Sequence[str] | None = None, block_rows: int | None = None) -> Digests:
    """Of the manifest; of rows without one, by another algorithm or in blocks of another size, by reading them."""
    if side.manifest is not None and block_rows is None and side.manifest.digests.algorithm == algorithm:
        found: Digests = side.manifest.digests
        return found
    schema = side.rows.schema if fields is None else side.rows.schema.select(fields)
    digester = Digester(schema, block_rows, algorithm)
    for block in side.rows.blocks():
        digester.update(Block(schema, {name: block.columns[name] for name in schema.names}))
    return digester.finish()


def _alike(a: Field, b: Field) -> bool:
    """Whether the digests of two fields can be compared."""
    return (a.dtype, a.ragged, a.has_shapes, a.item_shape, len(a.shape)) == (
        b.dtype,
        b.ragged,
        b.has_shapes,
        b.item_shape,
        len(b.shape),
    )


# -- rows ----------------------------------------------------------------------------------------------------------


def _fields(ours: Side, theirs: Side, names: Sequence[str], a: Digests, b: Digests) -> Iterator[FieldDiff]:
    """Each field whose rows differ, as far as both sides have rows."""
    common, size = min(a.rows, b.rows), a.block_rows
    whole = common // size if a.rows != b.rows else -(-common // size)  # blocks that end in the same row
    found: dict[str, list[tuple[int, int]]] = {}
    for name in names:
        ranges = [(k * size, min((k + 1) * size, common)) for k in range(whole) if a.block(name, k) != b.block(name, k)]
        found[name] = ranges
    tail = (whole * size, common)
    if tail[0] < tail[1]:  # the block that the shorter side ends in can only be read
        for name, place in _first(ours, theirs, dict.fromkeys(names, tail)).items():
            if place is not None:
                found[name].append(tail)
    wanted = {name: ranges[0] for name, ranges in found.items() if ranges}
    for name, place in _first(ours, theirs, wanted).items():
        yield FieldDiff(name, tuple(found[name][:MOST_RANGES]), len(found[name]), place)


def _first(ours: Side, theirs: Side, ranges: Mapping[str, tuple[int, int]]) -> dict[str, First | None]:
    """The first difference of each field within its range of rows."""
    left, right = _columns(ours.rows, ranges), _columns(theirs.rows, ranges)
    a, b = ours.rows.schema, theirs.rows.schema
    return {
        name: _place(a[name], b[name], left[name], right[name], start) for name, (start, _) in ranges.items()
    }  # fmt: skip


def _columns(rows: Rows, ranges: Mapping[str, tuple[int, int]]) -> dict[str, Column]:
    """Each field's rows of its range. What is no store is read from its begin, once for all fields."""
    if isinstance(rows, StoreRows):
        view = rows.view
        return {name: view.select([name]).take(range(*place)).columns[name] for name, place in ranges.items()}
    pieces: dict[str, list[Column]] = {name: [] for name in ranges}
    end = max((stop for _, stop in ranges.values()), default=0)
    at = 0
    for block in rows.blocks() if ranges else ():
        for name, (start, stop) in ranges.items():
            if at < stop and at + len(block) > start:
                pieces[name].append(_copied(block.columns[name][max(0, start - at) : stop - at]))
        at += len(block)
        if at >= end:
            break
    return {name: _joined(some) for name, some in pieces.items()}


def _copied(column: Column) -> Column:
    if isinstance(column, Ragged):
        return Ragged(
            column.values.copy(), column.offsets.copy(), None if column.shapes is None else column.shapes.copy()
        )
    return column.copy()


def _joined(pieces: Sequence[Column]) -> Column:
    ragged = [piece for piece in pieces if isinstance(piece, Ragged)]
    return Ragged.concat(ragged) if ragged else np.concatenate([p for p in pieces if not isinstance(p, Ragged)])


def _place(f: Field, g: Field, a: Column, b: Column, start: int) -> First | None:
    for row in range(len(a)):
        mine, other = a[row], b[row]
        if mine.shape == other.shape and raw(mine) == raw(other):
            continue
        where = _index(mine, other)
        if f.kind == "text":
            return First(start + row, where, *_snippets(cell(f, a, row), cell(g, b, row)))
        if mine.shape != other.shape:
            return First(start + row, (), f"shape {list(mine.shape)}", f"shape {list(other.shape)}")
        return First(start + row, where, _shown(mine[where]), _shown(other[where]))
    return None


def _index(a: Array, b: Array) -> tuple[int, ...]:
    """Place of the first item whose bytes differ."""
    if a.shape != b.shape or a.ndim == 0:
        return ()
    size = a.dtype.itemsize
    bytes_a, bytes_b = (np.frombuffer(raw(x), np.uint8).reshape(-1, size) for x in (a, b))
    first = int(np.flatnonzero((bytes_a != bytes_b).any(axis=1))[0])
    return tuple(int(i) for i in np.unravel_index(first, a.shape))


def _shown(value: Any) -> str:
    item = np.asarray(value).item()
    return repr(item) if isinstance(item, (float, complex)) else str(plain(item))


def _snippets(a: str, b: str) -> tuple[str, str]:
    """Both texts from a little before where they part."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, at - 20)
    cut = [
        ("…" if start else "") + text[start : start + SHOWN] + ("…" if len(text) > start + SHOWN else "")
        for text in (a, b)
    ]
    return repr(cut[0]), repr(cut[1])


# -- what is said of them --------------------------------------------------------------------------------------------


def _schema(a: Schema, b: Schema) -> Iterator[str]:
    for f in a:
        if f.name not in b:
            yield f"{f.name}: only on the left"
            continue
        g = b[f.name]
        for what in ("dtype", "shape", "kind", "layout", "classes"):
            mine, other = getattr(f, what), getattr(g, what)
            if mine != other:
                yield f"{f.name}: {what} {_brief(mine)} → {_brief(other)}"
    yield from (f"{f.name}: only on the right" for f in b if f.name not in a)
    if set(a.names) == set(b.names) and a.names != b.names:
        yield f"the order of the fields: {', '.join(a.names)} → {', '.join(b.names)}"


def _about(ours: Side, theirs: Side) -> Iterator[str]:
    a, b = ours.manifest, theirs.manifest
    if a is None or b is None:
        return
    if a.store != b.store:
        yield f"store: {a.store} → {b.store}"
    yield from _json("recipe", dict(a.recipe), dict(b.recipe))
    yield from _json("source", dict(a.source), dict(b.source))
    if ours.provenance != theirs.provenance:
        yield "provenance: rows come from other files, or from files of other sizes or times"
    if a.bigconv_version != b.bigconv_version:
        yield f"bigconv version: {a.bigconv_version} → {b.bigconv_version}"


def _json(where: str, a: Any, b: Any) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _json(f"{where}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _json(f"{where}[{i}]", x, y)
    elif a != b:
        yield f"{where}: {_brief(a)} → {_brief(b)}"


def _brief(value: Any) -> str:
    if isinstance(value, tuple):
        value = ["*" if item is None else item for item in value]
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
