"""Files of one kind, from one folder or named one by one, and where each lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigconv.errors import InputError
from bigconv.sources.filelist import FileList


@dataclass(frozen=True, eq=False)
class NamedFiles:
    """`files` as the manifest knows them, relative to the source; `paths` as this machine does."""

    files: FileList
    paths: tuple[str, ...]

    @classmethod
    def of(cls, paths: Sequence[Path], extensions: tuple[str, ...], what: str) -> NamedFiles:
        """Those below one folder that end in `extensions`, in bytewise order, or files in the order they are named.

        `what`: the kind, as messages call it. Raises `InputError`.
        """
        if len(paths) == 1 and paths[0].is_dir():
            files = FileList.below(paths[0], lambda name: name.lower().endswith(extensions))
            if not len(files):
                raise InputError(f"{paths[0]}: no {what} in it.\nLooked for {' '.join(extensions)}")
            return cls(files, tuple(files.path(i) for i in range(len(files))))
        odd = next((path for path in paths if not path.is_file()), None)
        if odd is not None:
            why = "a folder among several inputs" if odd.is_dir() else "not a file"
            raise InputError(f"{odd}: {why}. Name one folder of {what}, or the files one by one")
        return cls(FileList.named(paths), tuple(os.fspath(path) for path in paths))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """Path relative to the source, as messages show it."""
        return self.files.name(i)

    def unchanged(self, i: int) -> None:
        """Raise `InputError` for a file that has another size than when it was listed."""
        if os.stat(self.paths[i]).st_size != self.files.sizes[i]:
            raise InputError(f"changed since it was listed with {self.files.sizes[i]} bytes")
