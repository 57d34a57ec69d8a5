"""`--tokenizer` for tables: any source with a field of text, which becomes token ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigconv.block import Array, Block, Ragged
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Source, Span
from bigconv.sources.over import Over
from bigconv.sources.rowwise import woven
from bigconv.sources.tokens import Tokenizer, batches

TOKENS = "tokens"


@dataclass(frozen=True, eq=False)
class Tokenized(Over):
    """The rows of `inner`, whose field `of` has become `tokens`, uint16 or uint32 `[tokens]`, in its place.

    A row that the tokenizer fails on is a reject.
    """

    of: str
    tokenizer: Tokenizer

    @classmethod
    def typed(cls, inner: Source, what: str) -> Tokenized:
        """`what`: a tokenizer, as for text files, or `COLUMN=TOKENIZER`; else `text`, or the only text there is.

        Raises `UsageError`, `InputError`, `MissingPackage`.
        """
        texts = [f.name for f in inner.schema if f.kind == "text"]
        column, equals, rest = what.partition("=")
        if equals and column in inner.schema:
            what = rest
        else:
            column = "text" if "text" in texts or not texts else texts[0]
            if len(texts) > 1 and column != "text":
                raise UsageError(f"--tokenizer {what}: which text? --tokenizer COLUMN={what}, of {', '.join(texts)}")
        if column not in texts:
            have = ", ".join(f"{f.name} ({f.kind})" for f in inner.schema)
            raise UsageError(f"--tokenizer: {inner.name} input has no field of text called {column}; there are: {have}")
        if TOKENS in inner.schema.names and column != TOKENS:
            raise UsageError(f"--tokenizer: there is a field {TOKENS} already")
        return cls(inner, column, Tokenizer.of(what))

    @property
    def decodes(self) -> bool:
        return True

    @property
    def options(self) -> tuple[str, ...]:
        return (*self.inner.options, "tokenizer")

    @property
    def schema(self) -> Schema:
        made = Field(TOKENS, self.tokenizer.dtype, (None,), kind="tokens")
        return Schema(tuple(made if f.name == self.of else f for f in self.inner.schema))

    def read(self, span: Span) -> Iterator[Block | Reject]:
        schema = self.schema
        for item in self.inner.read(span):
            if isinstance(item, Reject):
                yield item
            else:
                yield from self._made(item, schema)

    def _made(self, block: Block, schema: Schema) -> Iterator[Block | Reject]:
        texts = block.columns[self.of]
        assert isinstance(texts, Ragged)
        if self.tokenizer.what == "byte":
            made = Ragged(texts.values.astype(self.tokenizer.dtype), texts.offsets)
            yield from woven(self._with(block, made, schema), np.arange(len(block)), {})
            return
        cells: list[Array] = []
        bad: dict[int, Reject] = {}
        for start, stop in batches(texts.offsets):
            decoded = [bytes(text).decode() for text in texts[start:stop]]
            for row, ids in zip(range(start, stop), self.tokenizer.encode(decoded), strict=True):
                if isinstance(ids, InputError):
                    assert block.origin is not None
                    file, number = block.origin[row].tolist()
                    bad[row] = Reject(self.files.name(file), number, "decode", f"field {self.of}: {ids}")
                else:
                    cells.append(ids)
        good = np.delete(np.arange(len(block)), list(bad)).astype(np.int64)
        kept = block.take(good) if bad else block
        made = Ragged.of(cells, schema[TOKENS])
        yield from woven(self._with(kept, made, schema) if len(good) else None, good, bad)

    def _with(self, block: Block, tokens: Ragged, schema: Schema) -> Block:
        columns = {TOKENS if n == self.of else n: tokens if n == self.of else c for n, c in block.columns.items()}
        return Block(schema, columns, block.origin)

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "tokenizer": {"of": self.of, **self.tokenizer.describe()}}
