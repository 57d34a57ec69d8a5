"""A source over another one: it changes the rows, and all else is as the other has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigconv.hashes import XXH3
from bigconv.sources.base import Source, Span
from bigconv.sources.filelist import FileList


@dataclass(frozen=True, eq=False)
class Over:
    """What a source over `inner` takes from it. Its own are `schema`, `read`, `describe`, and what it overrides."""

    inner: Source

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
