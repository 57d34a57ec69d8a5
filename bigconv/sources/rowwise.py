"""Inputs read one after another, put together to blocks; those that can't be read become rejects in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from bigconv.block import Array, Block, Column, Index, Ragged
from bigconv.decode import DecodeError
from bigconv.errors import InputError, SchemaError
from bigconv.schema import Field, Schema
from bigconv.sources.base import SPAN_BYTES, Reject, Span
from bigconv.sources.filelist import FileList

SPAN_INPUTS = 256  # so that millions of tiny inputs are not millions of spans, and a retry is short

Row = Mapping[str, Array]


def assembled(
    schema: Schema,
    inputs: Iterable[int],
    row: Callable[[int], Row],
    origin: Callable[[int], tuple[int, int]],
    files: FileList,
    told: Callable[[int, str], str] = lambda _, why: why,
) -> Iterator[Block | Reject]:
    """Blocks of about `SPAN_BYTES` of the rows that `row` makes of inputs, in order.

    `row` raises `InputError`, `SchemaError` or `OSError` for an input that is none: it becomes a reject. `origin`:
    number of the file in `files`, and of the row in it; `told(input, why)`: what the reject says.
    """
    rows: list[Row] = []
    places: list[tuple[int, int]] = []
    held = 0
    for i in inputs:
        try:
            made = row(i)
            _check(schema, made)
        except (InputError, SchemaError, OSError) as error:
            if rows:
                yield _block(schema, rows, places)
                rows, places, held = [], [], 0
            stage = "decode" if isinstance(error, DecodeError) else "read"
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            file, number = origin(i)
            yield Reject(files.name(file), number, stage, told(i, why))
            continue
        size = sum(array.nbytes for array in made.values())
        if rows and held + size > SPAN_BYTES:
            yield _block(schema, rows, places)
            rows, places, held = [], [], 0
        rows.append(made)
        places.append(origin(i))
        held += size
    if rows:
        yield _block(schema, rows, places)


def _check(schema: Schema, row: Row) -> None:
    for f in schema:
        shape = row[f.name].shape
        if len(shape) != len(f.shape) or any(n not in (None, m) for n, m in zip(f.shape, shape, strict=True)):
            wanted = "[" + ", ".join("*" if n is None else str(n) for n in f.shape) + "]"
            raise InputError(f"field {f.name} has shape {list(shape)} instead of {wanted}")


def _block(schema: Schema, rows: Sequence[Row], places: Sequence[tuple[int, int]]) -> Block:
    columns: dict[str, Column] = {f.name: _column(f, [row[f.name] for row in rows]) for f in schema}
    return Block(schema, columns, np.array(places, np.int64).reshape(-1, 2))


def _column(field: Field, cells: list[Array]) -> Column:
    return Ragged.of(cells, field) if field.ragged else np.stack(cells).astype(field.dtype, copy=False)


def sized_spans(sizes: Index, cuts: Sequence[int] = ()) -> list[Span]:
    """Spans of about `SPAN_BYTES` and at most `SPAN_INPUTS` inputs. `sizes`: int64 `[inputs]`, bytes of each.

    `cuts`: inputs at which a span has to start.
    """
    spans, start, size = [], 0, 0
    edges = set(cuts)
    for i, nbytes in enumerate(sizes.tolist()):
        if i in edges and i > start:
            spans.append(Span(start, i))
            start, size = i, 0
        size += nbytes
        if size >= SPAN_BYTES or i + 1 - start >= SPAN_INPUTS:
            spans.append(Span(start, i + 1))
            start, size = i + 1, 0
    if start < len(sizes):
        spans.append(Span(start, len(sizes)))
    return spans


def cut(block: Block) -> Iterator[Block]:
    """The same rows in blocks of about `SPAN_BYTES`."""
    rows = max(1, len(block) * SPAN_BYTES // max(SPAN_BYTES, block.nbytes))
    for start in range(0, len(block), rows):
        yield block if rows >= len(block) else block.slice(start, min(start + rows, len(block)))


def woven(block: Block | None, rows: Index, bad: Mapping[int, Reject]) -> Iterator[Block | Reject]:
    """A block and the rejects that belong between its rows. `rows`: int64 `[rows]`, numbers to which `bad` refers."""
    done = 0
    for number in sorted(bad):
        upto = int(np.searchsorted(rows, number))
        if block is not None and done < upto:
            yield from cut(block.slice(done, upto))
            done = upto
        yield bad[number]
    if block is not None and done < len(block):
        yield from cut(block.slice(done, len(block)) if done else block)
