"""Where the members of tar files lie: headers alone, nothing extracted.

Plain headers are parsed here, which is twenty times as fast as `tarfile`; all others (long names, pax, GNU, old tars)
are `tarfile`'s. Samples are what WebDataset says: members of one folder whose names are the same up to the first dot.
"""

from __future__ import annotations

import io
import os
import tarfile
from array import array
from dataclasses import dataclass

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import InputError
from bigconv.sniff import looks_at
from bigconv.sources.named import NamedFiles

BLOCK = 512  # bytes: tar's unit
MAX_HEADER = 1 << 20  # 1 MiB: a name or pax header beyond is a trap, and tarfile would read it whole
MAX_MEMBERS = 1 << 24  # 16 Mi a tar, half a GiB of index
MAX_EXTENSIONS = 64  # in all: more are names with dots in them, such as img.0001.jpg
MEMBER_BYTES = 1 << 30  # 1 GiB: as much as one image file may have

#: What can be wrong with a sample, by its code; 0 is nothing.
PROBLEMS = (
    "",
    "has a link among its members; only plain files are read",
    "has a device or pipe among its members; only plain files are read",
    "has a member whose name leads out of the archive (absolute, or with ..)",
    "has a member of a type that is no plain file",
    f"has a member of more than {MEMBER_BYTES} bytes",
    "has two members that make one field",
)
_PACKERS = ((b"\x1f\x8b", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"\xfd7zXZ\0", "unxz"), (b"BZh", "bunzip2"))
_LINK, _DEVICE, _OUTSIDE, _ODD, _LARGE, TWICE = range(1, 7)


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Samples of all tars, in the order in which they begin.

    `keys`: names up to the first dot, joined; `ends`: int64 `[samples]`, where each one ends; `first`: int64
    `[tars + 1]`, the first sample of each; `problem`: uint8 `[samples]`, see `PROBLEMS`; `members`: int64
    `[members, 4]`: sample, extension (a number in `extensions`), first byte in its tar, bytes. `passed_over`: members
    that belong to no sample, as they have no extension or are hidden.
    """

    keys: bytes
    ends: Index
    first: Index
    problem: Array
    extensions: tuple[str, ...]
    members: Index
    passed_over: int

    @classmethod
    def scan(cls, tars: NamedFiles) -> TarIndex:
        """Read all headers. Raises `InputError` for what is no tar, or one that is cut short or damaged."""
        building = _Building()
        first = [0]
        for i, path in enumerate(tars.paths):
            try:
                _scan(path, tars.name(i), building)
            except OSError as error:
                raise InputError(f"{tars.name(i)}: {error.strerror or error}") from error
            building.names.clear()
            first.append(len(building.lengths))
        members = np.frombuffer(building.members, np.int64).reshape(-1, 4)
        return cls(
            b"".join(building.keys),
            np.cumsum(building.lengths, dtype=np.int64),
            np.array(first, np.int64),
            np.frombuffer(building.problem, np.uint8).copy(),
            tuple(building.extensions),
            members,
            building.passed_over,
        )

    def key(self, sample: int) -> str:
        start = int(self.ends[sample - 1]) if sample else 0
        return self.keys[start : int(self.ends[sample])].decode("utf-8", "backslashreplace")


class _Building:
    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.lengths = array("q")
        self.problem = bytearray()
        self.members = array("q")
        self.extensions: dict[str, int] = {}
        self.names: dict[bytes, int] = {}  # key -> sample, of the tar at hand
        self.passed_over = 0

    def add(self, tar: str, name: bytes, offset: int, size: int, problem: int) -> None:
        """One member that is no folder."""
        while name.startswith(b"./"):
            name = name[2:]
        slash = name.rfind(b"/") + 1
        dot = name.find(b".", slash)
        base = name[slash:dot]
        if dot <= slash or dot == len(name) - 1 or (base.startswith(b"__") and base.endswith(b"__")):
            self.passed_over += 1
            return
        key = name[:dot]
        if name.startswith(b"/") or b".." in key.split(b"/"):
            problem = problem or _OUTSIDE
        elif size > MEMBER_BYTES:
            problem = problem or _LARGE
        sample = self.names.get(key)
        if sample is None:
            sample = self.names[key] = len(self.problem)
            self.keys.append(key)
            self.lengths.append(len(key))
            self.problem.append(0)
        extension = name[dot + 1 :].decode("utf-8", "backslashreplace").lower()
        number = self.extensions.get(extension)
        if number is None:
            if len(self.extensions) == MAX_EXTENSIONS:
                raise InputError(
                    f"{tar}: more than {MAX_EXTENSIONS} extensions, the last {extension[:80]!r}: "
                    "a sample's members are told apart by what follows the first dot of their names"
                )
            number = self.extensions[extension] = len(self.extensions)
        if problem:
            self.problem[sample] = self.problem[sample] or problem
        self.members.extend((sample, number, offset, size))


class _Headers(io.BufferedReader):
    """A file from which no more than a header is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise InputError(f"a header of {size} bytes: not read")
        return super().read(size)


def _scan(path: str, name: str, building: _Building) -> None:
    with _Headers(io.FileIO(path), 4096) as file:
        total = os.fstat(file.fileno()).st_size
        try:
            archive = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"{name}: not a tar file{_packed(path) or f': {looks_at(path)}'}") from error
        at, count, plain = 0, 0, True
        while True:
            file.seek(at)
            header = file.read(BLOCK)
            if header.count(0) == BLOCK:
                break
            if len(header) < BLOCK:
                raise InputError(f"{name}: cut short: it ends at byte {total} without an end mark")
            found = _parsed(header) if plain else None
            if found is None:
                plain = plain and header[156:157] != tarfile.XGLTYPE  # a global header may change all that follow
                member, following = _slow(archive, at, name)
            else:
                member = (found[0], at + BLOCK, found[1], 0)
                following = at + BLOCK + -(-found[1] // BLOCK) * BLOCK
            if following <= at:
                raise InputError(f"{name}: damaged header at byte {at}")
            if following > total and (member is None or member[1] + member[2] > total):
                where = "" if member is None else f": {member[0].decode('utf-8', 'backslashreplace')[-200:]}"
                raise InputError(f"{name}: cut short: it has {total} bytes of {following} or more{where}")
            count += 1
            if count > MAX_MEMBERS:
                raise InputError(f"{name}: more than {MAX_MEMBERS} members: split it")
            if member is not None:
                building.add(name, *member)
            at = following
        _ends(file, at, total, name)


def _parsed(header: bytes) -> tuple[bytes, int] | None:
    """Name and size from a plain header of a regular file (POSIX ustar or GNU); None for `tarfile` to look at."""
    magic = header[257:265]
    if header[156] != 48 or magic not in (b"ustar\x0000", b"ustar  \x00"):
        return None
    try:
        size = int(header[124:136].strip(b" \0"), 8)
        checksum = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    if size < 0 or sum(header) - sum(header[148:156]) + 256 != checksum:
        return None
    name = header[:100].partition(b"\0")[0]
    if magic[5] == 0 and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name, size


def _slow(archive: tarfile.TarFile, at: int, name: str) -> tuple[tuple[bytes, int, int, int] | None, int]:
    """Name, first byte, bytes and problem of a member, None for a folder; and where the next header is."""
    assert archive.fileobj is not None
    archive.offset = at
    archive.fileobj.seek(at)
    try:
        info = tarfile.TarInfo.fromtarfile(archive)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, KeyError) as error:
        raise InputError(f"{name}: damaged header at byte {at}: {_brief(error)}") from error
    if info.isdir():
        return None, archive.offset
    problem = 0
    if info.issym() or info.islnk():
        problem = _LINK
    elif info.isdev():
        problem = _DEVICE
    elif info.issparse() or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        problem = _ODD
    if info.size < 0:
        raise InputError(f"{name}: damaged header at byte {at}: a size of {info.size} bytes")
    raw = info.name.encode("utf-8", "surrogateescape")
    return (raw, info.offset_data, info.size if info.isreg() and not problem else 0, problem), archive.offset


def _ends(file: _Headers, at: int, total: int, name: str) -> None:
    """Raise if there is more behind the end mark: readers of tar would pass over it in silence."""
    file.seek(at)
    while at < total:
        rest = file.read(min(MAX_HEADER, total - at))
        if rest.count(0) != len(rest):
            raise InputError(
                f"{name}: there is more behind its end, at byte {at}: tars that were joined?\n"
                "Give them one by one, or join them with tar --concatenate"
            )
        at += len(rest) or total


def _packed(path: str) -> str:
    with open(path, "rb") as file:
        head = file.read(6)
    for magic, tool in _PACKERS:
        if head.startswith(magic):
            return f", but a compressed file: members of it can't be reached. {tool} it first"
    return ""


def _brief(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
