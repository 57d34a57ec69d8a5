"""Text: a sample a file, or a line; as it is, or as token ids."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block, Index, Ragged
from bigconv.errors import InputError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span, origins
from bigconv.sources.filelist import FileList
from bigconv.sources.lines import BOM, UTF16, Lines, split
from bigconv.sources.named import NamedFiles
from bigconv.sources.rowwise import Row, assembled, sized_spans, woven
from bigconv.sources.tokens import Tokenizer, batches

FILE_BYTES = 1 << 30  # 1 GiB: what is larger is no one sample
LOOK_FILES, LOOK_BYTES = 16, 64 << 10  # of a source, to tell whether it is text at all


@dataclass(frozen=True, eq=False)
class Text:
    """Each file is a row, in bytewise order of the paths, or, with `lines`, each line, blank ones too.

    Fields: `text`, UTF-8, or `tokens`, uint16 or uint32 `[tokens]`, whose offsets are the bounds of the documents. A
    byte order mark is no text. What isn't UTF-8 becomes a reject.
    """

    name: ClassVar[str] = "text"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("lines", "tokenizer")
    hints: ClassVar[tuple[str, ...]] = ()

    found: NamedFiles
    lines: Lines | None
    tokenizer: Tokenizer | None
    schema: Schema

    @classmethod
    def find(cls, paths: Sequence[Path], *, lines: bool = False, tokenizer: str | None = None) -> Text:
        """List the files, and with `lines` find the lines.

        `tokenizer`: `byte`, `tiktoken:NAME`, `FILE.json` of the tokenizers library, or `MODULE:FUNCTION`, which takes a
        `str` and gives ids (below its attribute `vocab_size`, if it has one). Raises `InputError`, `UsageError`,
        `MissingPackage`.
        """
        made = Tokenizer.of(tokenizer) if tokenizer is not None else None
        files = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "text files")
        if made is None:
            field = Field("text", "uint8", (None,), kind="text")
        else:
            field = Field("tokens", made.dtype, (None,), kind="tokens")
        _look(files)
        return cls(files, Lines.scan(files) if lines else None, made, Schema((field,)))

    @property
    def files(self) -> FileList:
        return self.found.files

    @property
    def inputs(self) -> int:
        return len(self.found) if self.lines is None else len(self.lines)

    def plan(self) -> Sequence[Span]:
        return sized_spans(self.files.sizes) if self.lines is None else self.lines.spans()

    def read(self, span: Span) -> Iterator[Block | Reject]:
        if self.lines is not None:
            for piece, low, high, first in self.lines.within(span):
                yield from self._lines(self.lines, piece, low, high, first)
            return
        yield from assembled(self.schema, range(span.start, span.stop), self._file, lambda i: (i, 0), self.files)

    def _file(self, i: int) -> Row:
        size = int(self.files.sizes[i])
        if size > FILE_BYTES:
            raise InputError(f"{size} bytes are more than the {FILE_BYTES} of one sample. --lines makes one a line")
        with open(self.found.paths[i], "rb") as stream:
            data = stream.read(size + 1)
        if len(data) != size:
            raise InputError(f"changed since it was listed with {size} bytes")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(UTF16)
        data = data.removeprefix(BOM)
        text = _decoded(data)
        if self.tokenizer is None:
            return {"text": np.frombuffer(data, np.uint8)}
        (ids,) = self.tokenizer.encode([text])
        if isinstance(ids, InputError):
            raise ids
        return {"tokens": ids}

    def _lines(self, lines: Lines, piece: int, low: int, high: int, first: int) -> Iterator[Block | Reject]:
        """Lines `low` to `high` of a piece, whose first has the number `first` in its file."""
        data = lines.read(self.found, piece)
        column = split(data)
        if len(column) != lines.row[piece + 1] - lines.row[piece]:
            raise InputError(f"{self.found.name(int(lines.file[piece]))}: the file has changed since it was listed")
        column = column[low:high]
        bad = {} if _is_utf8(data) else _not_utf8(column)
        rows = np.delete(np.arange(len(column)), list(bad)).astype(np.int64)
        if bad:
            column = column.take(rows)
        if self.tokenizer is not None:
            column, rows = self._tokens(self.tokenizer, column, rows, bad)
        file = int(lines.file[piece])
        block = None
        if len(rows):
            block = Block(self.schema, {self.schema.names[0]: column}, origins(file, first + low + rows))
        rejects = {}
        for i, why in bad.items():
            row = first + low + i
            stage = "read" if why.startswith("not UTF-8") else "decode"
            rejects[i] = Reject(self.found.name(file), row, stage, f"line {row + 1}: {why}")
        yield from woven(block, rows, rejects)

    def _tokens(self, tokenizer: Tokenizer, column: Ragged, rows: Index, bad: dict[int, str]) -> tuple[Ragged, Index]:
        """Ids of the lines that can be tokenized, and which those are; `bad` takes up the others."""
        if tokenizer.what == "byte":
            return Ragged(column.values.astype(tokenizer.dtype), column.offsets), rows
        cells: list[Array] = []
        good: list[int] = []
        for start, stop in batches(column.offsets):
            texts = [bytes(line).decode() for line in column[start:stop]]
            for row, ids in zip(rows[start:stop].tolist(), tokenizer.encode(texts), strict=True):
                if isinstance(ids, InputError):
                    bad[row] = str(ids)
                else:
                    cells.append(ids)
                    good.append(row)
        return Ragged.of(cells, self.schema["tokens"]), np.array(good, np.int64)

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "kind": self.name,
            "files": len(self.found),
            "bytes": int(self.files.sizes.sum()),
            "lines": self.lines is not None,
        }
        return told if self.tokenizer is None else {**told, "tokenizer": self.tokenizer.describe()}


def _look(files: NamedFiles) -> None:
    """Raise if none of the first files is text: a run of rejects would say it late."""
    why = ""
    for i, path in enumerate(files.paths[:LOOK_FILES]):
        try:
            with open(path, "rb") as stream:
                codecs.getincrementaldecoder("utf-8")().decode(stream.read(LOOK_BYTES))
            return
        except UnicodeDecodeError as error:
            utf16 = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
            why = why or f"{files.name(i)}: {UTF16 if utf16 else _why(error)}"
        except OSError as error:
            why = why or f"{files.name(i)}: {error.strerror}"
    raise InputError(f"{why}.\nNone of the first {min(len(files), LOOK_FILES)} file(s) can be read as text")


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(column: Ragged) -> dict[int, str]:
    bad = {}
    for i, line in enumerate(column):
        try:
            _decoded(bytes(line))
        except InputError as error:
            bad[i] = str(error)
    return bad


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(_why(error)) from error


def _why(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
