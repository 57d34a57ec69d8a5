"""Millions of files in a few arrays: names once, in one piece, sizes and times as numbers."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigconv.block import Index
from bigconv.errors import InputError


@dataclass(frozen=True, eq=False)
class FileList:
    """Files below `root`, in bytewise order of their relative paths.

    `names`: the relative paths, joined; `ends`: int64 `[files]`, where each one ends;
    `sizes`: int64 `[files]`, bytes; `mtimes`: int64 `[files]`, ns.
    """

    root: str
    names: bytes
    ends: Index
    sizes: Index
    mtimes: Index

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, i: int) -> str:
        """Relative path of file `i`, with /."""
        start = int(self.ends[i - 1]) if i else 0
        return os.fsdecode(self.names[start : int(self.ends[i])])

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.name(i))

    def paths(self, start: int, stop: int) -> list[bytes]:
        """Whole paths of files `start` to `stop - 1`."""
        root = os.path.join(os.fsencode(self.root), b"") if self.root else b""
        ends = self.ends[start:stop].tolist()
        begin = int(self.ends[start - 1]) if start else 0
        return [root + self.names[a:b] for a, b in zip([begin, *ends], ends, strict=False)]

    @classmethod
    def of(cls, root: Path, found: Iterable[tuple[bytes, os.stat_result]]) -> FileList:
        """From relative paths (bytes, with /) and their stat results, in any order."""
        entries = sorted((name, info.st_size, info.st_mtime_ns) for name, info in found)
        lengths = np.array([len(name) for name, _, _ in entries], np.int64)
        return cls(
            os.fspath(root),
            b"".join(name for name, _, _ in entries),
            np.cumsum(lengths),
            np.array([size for _, size, _ in entries], np.int64),
            np.array([mtime for _, _, mtime in entries], np.int64),
        )

    @classmethod
    def named(cls, paths: Sequence[Path]) -> FileList:
        """Files named one by one, in the order given; each goes by its own name. Raises `InputError`."""
        found = []
        for path in paths:
            try:
                info = path.stat()
            except OSError as error:
                raise InputError(f"{path}: {error.strerror}") from error
            found.append((os.fsencode(path.name), info.st_size, info.st_mtime_ns))
        return cls(
            "",
            b"".join(name for name, _, _ in found),
            np.cumsum([len(name) for name, _, _ in found], dtype=np.int64),
            np.array([size for _, size, _ in found], np.int64),
            np.array([mtime for _, _, mtime in found], np.int64),
        )

    @classmethod
    def below(cls, root: Path, wanted: Callable[[str], bool]) -> FileList:
        """Every regular file below `root` whose name `wanted` accepts.

        Links that lead out of `root`, hidden files, and special files (pipes, devices) are passed over; a folder
        that links lead to as well is listed once, under its own name. Raises `InputError` when a folder can't be
        listed.
        """
        real = os.path.realpath(root)
        found: list[tuple[bytes, os.stat_result]] = []
        seen: set[tuple[int, int]] = set()
        todo = [(real, b"")]
        links: list[tuple[str, bytes]] = []  # to folders: after all others, so that the disk's order decides nothing
        while todo or links:
            if not todo:
                links.sort(reverse=True, key=lambda link: link[1])
                todo.append(links.pop())
            folder, prefix = todo.pop()
            try:
                here = os.stat(folder)
                if (here.st_dev, here.st_ino) in seen:  # a loop of links
                    continue
                seen.add((here.st_dev, here.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_symlink() and not os.path.realpath(entry.path).startswith(real + os.sep):
                            continue
                        try:
                            info = entry.stat()
                        except OSError:
                            continue  # a link to nothing
                        name = prefix + os.fsencode(entry.name)
                        if stat.S_ISDIR(info.st_mode):
                            (links if entry.is_symlink() else todo).append((entry.path, name + b"/"))
                        elif stat.S_ISREG(info.st_mode) and wanted(entry.name):
                            found.append((name, info))
            except OSError as error:
                raise InputError(f"{folder}: can't be listed: {error.strerror}") from error
        return cls.of(root, found)


def told(path: str | os.PathLike[str]) -> str:
    """The last part of a path as JSON and terminals can hold it: bytes that aren't UTF-8 are escaped."""
    return os.fsencode(os.path.basename(path)).decode("utf-8", "backslashreplace")
