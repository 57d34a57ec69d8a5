"""`--keep-path`: any source, with the file that each row was made of as a field of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigconv.block import Block, Ragged
from bigconv.errors import UsageError
from bigconv.hashes import XXH3
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Source, Span
from bigconv.sources.filelist import FileList

PATH = Field("path", "uint8", (None,), kind="text")


@dataclass(frozen=True, eq=False)
class KeptPath:
    """The rows of `inner`, each with the `path` of its file, relative to SOURCE; bytes that aren't UTF-8 escaped."""

    inner: Source

    def __post_init__(self) -> None:
        if PATH.name in self.inner.schema:
            raise UsageError(f"--keep-path: {self.inner.name} input has a field {PATH.name} already")

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def digest_algorithm(self) -> str:
        return str(getattr(self.inner, "digest_algorithm", XXH3))

    @property
    def decodes(self) -> bool:
        return self.inner.decodes

    @property
    def options(self) -> tuple[str, ...]:
        return self.inner.options

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(getattr(self.inner, "notes", ()))

    @property
    def hints(self) -> tuple[str, ...]:
        return self.inner.hints

    @property
    def schema(self) -> Schema:
        return Schema((*self.inner.schema, PATH))

    @property
    def inputs(self) -> int | None:
        return self.inner.inputs

    @property
    def files(self) -> FileList:
        return self.inner.files

    def file_digest(self, file: int) -> tuple[int, int]:
        digest: tuple[int, int] = getattr(self.inner, "file_digest", self.files.digest)(file)
        return digest

    def plan(self) -> Sequence[Span]:
        return self.inner.plan()

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
