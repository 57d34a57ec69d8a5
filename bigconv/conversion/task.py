"""One span, read and transformed: a pure function of source, steps and span, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigconv.block import Block
from bigconv.digest import block_digest
from bigconv.errors import BigconvError, InputError, SchemaError
from bigconv.schema import Schema
from bigconv.sources.base import Reject, Source, Span
from bigconv.transforms.base import Transform


@dataclass(frozen=True)
class Work:
    """What a worker needs to know: all of it travels once."""

    source: Source
    steps: tuple[Transform, ...]
    schema: Schema  # of what comes out


@dataclass(frozen=True)
class Item:
    """What became of some inputs of a span: a block with its digest, or none, and rejects.

    `upto`: inputs of the span that are done with this item; the same as in the item before where a source tells nothing
    of its inputs ahead.
    """

    upto: int
    block: Block | None
    digest: bytes
    rejects: tuple[Reject, ...]
    seen: bytes = b""  # int64 [files, 3]: number and digest of each file that a row was made of as a whole


def run_span(work: Work, span: Span) -> Iterator[Item]:
    """Items of a span, in order. Each input of the span is in one of them."""
    source, upto = work.source, 0
    for read in source.read(span):
        if isinstance(read, Reject):
            upto += 1
            yield Item(upto, None, b"", (read,))
            continue
        upto += len(read)
        seen = _digests(source, read)
        blocks, rejects = _transformed(source, read, work.steps)
        block = Block.concat(blocks) if blocks else None
        if block is None or not len(block):
            yield Item(upto, None, b"", tuple(rejects))
            continue
        if block.schema != work.schema:
            raise SchemaError(f"a step changed the fields: expected {work.schema}, got {block.schema}")
        block.validate()
        yield Item(upto, block, block_digest(block), tuple(rejects), seen)
    if source.inputs is not None and upto != len(span):
        raise InputError(f"{source.name}: inputs {span.start} to {span.stop} gave {upto} rows: the source has changed")


def _digests(source: Source, block: Block) -> bytes:
    """What files the rows were made of, where each file is one row: hashed while they are still in memory."""
    whole = getattr(source, "one_file_a_row", source.inputs == len(source.files))
    if block.origin is None or not whole or not source.files.root:
        return b""
    digest, found = getattr(source, "file_digest", source.files.digest), []
    for file in dict.fromkeys(block.origin[:, 0].tolist()):
        with suppress(OSError):  # gone in the meantime: its row is there, its digest isn't
            found.append((file, *digest(file)))
    return np.array(found, "<i8").tobytes()


def _transformed(source: Source, block: Block, steps: Sequence[Transform]) -> tuple[list[Block], list[Reject]]:
    """A block through all steps; where a step fails, row by row, so that only the bad rows are lost."""
    for number, step in enumerate(steps):
        try:
            block = step(block)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            if len(block) == 1:
                return [], [_reject(source, block, step, error)]
            blocks, rejects = [], []
            for i in range(len(block)):
                good, bad = _transformed(source, block.slice(i, i + 1), steps[number:])
                blocks += good
                rejects += bad
            return blocks, rejects
    return [block], []


def _reject(source: Source, block: Block, step: Transform, error: Exception) -> Reject:
    why = str(error).strip() or type(error).__name__
    if not isinstance(error, BigconvError):
        why = f"{type(error).__name__}: {why}"
    file, row = (0, 0) if block.origin is None else (int(n) for n in block.origin[0])
    files: Any = source.files
    return Reject(files.name(file) if len(files) else "", row, step.name, " ".join(why.split())[:500])
