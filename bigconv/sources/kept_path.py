"""`--keep-path`: any source, with the file that each row was made of as a field of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigconv.block import Block, Ragged
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span
from bigconv.sources.filelist import FileList
from bigconv.sources.over import Over

PATH = Field("path", "uint8", (None,), kind="text")


@dataclass(frozen=True, eq=False)
class KeptPath(Over):
    """The rows of `inner`, each with the `path` of its file, relative to SOURCE; bytes that aren't UTF-8 escaped."""

    def __post_init__(self) -> None:
        if PATH.name in self.inner.schema:
            raise UsageError(f"--keep-path: {self.inner.name} input has a field {PATH.name} already")

    @property
    def schema(self) -> Schema:
        return Schema((*self.inner.schema, PATH))

    def read(self, span: Span) -> Iterator[Block | Reject]:
        schema, files = self.schema, self.files
        for item in self.inner.read(span):
            yield item if isinstance(item, Reject) else _with_path(item, schema, files)

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "keep_path": True}


def _with_path(block: Block, schema: Schema, files: FileList) -> Block:
    if block.origin is None:
        raise UsageError("--keep-path: the source doesn't tell which file its rows come from")
    numbers, which = np.unique(block.origin[:, 0], return_inverse=True)
    names = [os.fsencode(files.name(i)).decode("utf-8", "backslashreplace").encode() for i in numbers.tolist()]
    paths = Ragged.of([np.frombuffer(name, np.uint8) for name in names], PATH).take(which)
    return Block(schema, {**block.columns, PATH.name: paths}, block.origin)
