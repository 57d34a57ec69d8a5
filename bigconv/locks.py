"""Locks on files, held by one process alone or shared by several, until it releases them or is dead."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from bigconv import fsio
from bigconv.errors import OutputError

_BYTE = 1 << 30  # the byte that Windows locks: far behind the text, as others couldn't read what is locked


class FileLock:
    """A file that this process has locked, and none that it forks. `try_lock` makes it; the last reference frees it."""

    def __init__(self, held: _Held) -> None:
        self._held: _Held | None = held

    @property
    def released(self) -> bool:
        return self._held is None or self._held.fd < 0

    def stands(self, path: Path) -> bool:
        """Whether the locked file is still the one of that name."""
        with _claiming:
            return self._held is not None and self._held is _held_on(path)

    def share(self) -> None:
        """Let others share what was locked alone."""
        with _claiming:
            if self._held is not None and not self._held.shared:
                _share(self._held.fd)
                self._held.shared = True

    def write(self, data: bytes) -> None:
        """Replace what is in the file."""
        assert self._held is not None
        os.ftruncate(self._held.fd, 0)
        os.lseek(self._held.fd, 0, os.SEEK_SET)
        os.write(self._held.fd, data)

    def release(self) -> None:
        with _claiming:
            held, self._held = self._held, None
            if held is None or held.fd < 0:
                return
            held.holders -= 1
            if not held.holders:
                del _files[held.key]
                held.close()

    def __del__(self) -> None:
        self.release()


@dataclass(eq=False)
class _Held:
    """A file that is open once in this process, however many in it share its lock."""

    fd: int
    key: tuple[int, int]  # device and number of the file
    shared: bool
    holders: int = 1

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1


_files: dict[tuple[int, int], _Held] = {}
_claiming = threading.RLock()  # a lock may be freed by the garbage collector while another is taken


def try_lock(path: Path, shared: bool = False, make: bool = False) -> FileLock | None:
    """A lock on a file, alone or `shared`; None while somebody has it who doesn't share, be it in this process.

    `make`: also the file. Raises `OSError` for one that can't be opened.
    """
    with _claiming:
        held = _held_on(path)
        if held is not None:
            if not (shared and held.shared):
                return None
            held.holders += 1
            return FileLock(held)
        how = os.O_RDWR | (os.O_CREAT if make else 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(path, how, 0o666)
        try:
            taken = _lock(fd, shared)
        except BaseException:
            os.close(fd)
            raise
        if not taken:
            os.close(fd)
            return None
        found = os.fstat(fd)
        held = _Held(fd, (found.st_dev, found.st_ino), shared)
        _files[held.key] = held
        return FileLock(held)


def read_locked(path: Path) -> bytes:
    """What is in a file that this process may have locked: to open and close it would give the lock up."""
    with _claiming:
        held = _held_on(path)
        if held is None:
            return path.read_bytes()
        os.lseek(held.fd, 0, os.SEEK_SET)
        return os.read(held.fd, os.fstat(held.fd).st_size)


def _held_on(path: Path) -> _Held | None:
    """What this process has locked under a name."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return _files.get((found.st_dev, found.st_ino))


def _lock(fd: int, shared: bool) -> bool:
    """Take the lock of a file for this process; False when another has it.

    POSIX record locks, for a lock of BSD's belongs to whoever has the open file: also to a worker that was forked and
    killed with its parent, until it is gone too. They don't tell the locks of one process apart, and closing any
    descriptor of the file gives them up, so no file is opened twice. Windows has none to share: who shares holds
    nothing there, as the system itself keeps what is open from being removed.
    """
    if os.name == "nt":
        import msvcrt

        os.lseek(fd, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        if shared:
            _share(fd)
        return True
    import fcntl

    try:
        fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _share(fd: int) -> None:
    """Let others share what this process has locked alone."""
    if os.name == "nt":
        import msvcrt

        os.lseek(fd, _BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.lockf(fd, fcntl.LOCK_SH)


def _forked() -> None:
    """In a forked child, which holds none of the locks, and may have been forked while one was taken."""
    global _claiming
    _claiming = threading.RLock()
    for held in _files.values():
        held.close()
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Lock:
    """Who works on a destination: an exclusive lock on a file in its folder of unfinished work.

    It makes the name of that folder durable, so that work in it is still found after a power cut. Raises `OutputError`
    when another works there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with fsio.writing(path):
            taken = try_lock(path, make=True)
        if taken is None:
            raise OutputError(f"{path.parent}: another bigconv is writing here; wait for it, or stop it")
        self._file = taken
        if not taken.stands(path):  # the one before has just finished and removed the folder
            taken.release()
            raise OutputError(f"{path.parent}: another bigconv was writing here; run the command again")
        try:
            fsio.sync_folder(path.parent.parent)
        except OutputError:
            taken.release()
            raise

    def release(self) -> None:
        self._file.release()
