"""Millions of files in a few arrays: names once, in one piece, sizes and times as numbers."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigconv import fsio
from bigconv.block import Index
from bigconv.errors import InputError

_FOLLOW = ContextVar("follow_links", default=False)


@contextmanager
def following_links() -> Iterator[None]:
    """Within it `FileList.below` follows links wherever they lead (`--follow-links`), whichever source asks."""
    token = _FOLLOW.set(True)
    try:
        yield
    finally:
        _FOLLOW.reset(token)


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

    def relative(self, start: int, stop: int) -> list[bytes]:
        """Relative paths of files `start` to `stop - 1`."""
        ends = self.ends[start:stop].tolist()
        begin = int(self.ends[start - 1]) if start else 0
        return [self.names[a:b] for a, b in zip([begin, *ends], ends, strict=False)]

    def paths(self, start: int, stop: int) -> list[bytes]:
        """Whole paths of files `start` to `stop - 1`."""
        root = os.path.join(os.fsencode(self.root), b"") if self.root else b""
        return [root + name for name in self.relative(start, stop)]

    def take(self, numbers: Index) -> FileList:
        """Some of the files, `[files]`, in the order of the numbers."""
        names = [os.fsencode(self.name(i)) for i in numbers.tolist()]
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return FileList(self.root, b"".join(names), ends, self.sizes[numbers], self.mtimes[numbers])

    def digest(self, i: int) -> tuple[int, int]:
        """xxh3-128 of the bytes of file `i`, as two int64."""
        return file_digest(self.path(i))

    @classmethod
    def of(cls, root: Path, found: Iterable[tuple[bytes, int, int]]) -> FileList:
        """From relative paths (bytes, with /), sizes and times in ns, in any order."""
        entries = sorted(found)
        names, sizes, mtimes = zip(*entries, strict=True) if entries else ((), (), ())
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        return cls(
            os.fspath(root),
            b"".join(names),
            np.cumsum(lengths),
            np.array(sizes, np.int64),
            np.array(mtimes, np.int64),
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
            found.append((path.name, info.st_size, info.st_mtime_ns))
        return cls.told(found)

    @classmethod
    def told(cls, files: Sequence[tuple[str, int, int]]) -> FileList:
        """Files by name, bytes and time in ns, as somebody else knows them."""
        names = [os.fsencode(name) for name, _, _ in files]
        return cls(
            "",
            b"".join(names),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            np.array([size for _, size, _ in files], np.int64),
            np.array([mtime for _, _, mtime in files], np.int64),
        )

    @classmethod
    def below(cls, root: Path, wanted: Callable[[str], bool]) -> FileList:
        """Every regular file below `root` whose name `wanted` accepts.

        Links that lead out of `root` (unless within `following_links`), hidden files, and special files (pipes,
        devices) are passed over; a folder that links lead to as well is listed once, under its own name. Raises
        `InputError` when a folder can't be listed.
        """
        real, follow = os.path.realpath(root), _FOLLOW.get()
        found: list[tuple[bytes, int, int]] = []
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
                        name, linked = entry.name, entry.is_symlink()
                        if name.startswith("."):
                            continue
                        if linked and not follow and not os.path.realpath(entry.path).startswith(real + os.sep):
                            continue
                        try:
                            if entry.is_dir():
                                into = links if linked else todo
                                into.append((entry.path, prefix + os.fsencode(name) + b"/"))
                            elif wanted(name) and entry.is_file():
                                info = entry.stat()  # the one call a file that asks the disk
                                found.append((prefix + os.fsencode(name), info.st_size, info.st_mtime_ns))
                        except OSError:
                            continue  # a link to nothing
            except OSError as error:
                raise InputError(f"{folder}: can't be listed: {error.strerror}") from error
        return cls.of(root, found)


def file_digest(path: str) -> tuple[int, int]:
    high, low = struct.unpack(">qq", bytes.fromhex(fsio.digest_file(Path(path))))
    return high, low


def told(path: str | os.PathLike[str]) -> str:
    """The last part of a path as JSON and terminals can hold it: bytes that aren't UTF-8 are escaped."""
    return os.fsencode(os.path.basename(path)).decode("utf-8", "backslashreplace")
