"""Who works on a destination: a lock on a file, held by one process."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from weakref import WeakSet

from bigconv import fsio
from bigconv.errors import OutputError


class Lock:
    """An exclusive lock on a file, held by this process, and none that it forks, until released or dead.

    It makes the name of its folder durable, so that work in the folder is still found after a power cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        in_use = OutputError(f"{path.parent}: another bigconv is writing here; wait for it, or stop it")
        with _claiming:
            if any(lock._is_on(path) for lock in _locks):
                raise in_use
            with fsio.writing(path):
                self._file = open(path, "a+b")  # noqa: SIM115  held until release()
            try:
                _lock(self._file.fileno())
            except OSError:
                self._file.close()
                raise in_use from None
            _locks.add(self)
        if not path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
            self._file.close()  # the one before has just finished and removed the folder
            raise OutputError(f"{path.parent}: another bigconv was writing here; run the command again")
        try:
            fsio.sync_folder(path.parent.parent)
        except OutputError:
            self._file.close()
            raise

    def _is_on(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except (OSError, ValueError):  # released, or nothing there
            return False

    def release(self) -> None:
        self._file.close()


_locks: WeakSet[Lock] = WeakSet()
_claiming = threading.Lock()


def _lock(fd: int) -> None:
    """Take the lock of a file for this process; `OSError` when another has it.

    POSIX record locks, for a lock of BSD's belongs to whoever has the open file: also to a worker that was forked and
    killed with its parent, until it is gone too. They don't tell the locks of one process apart, and closing any
    descriptor of the file gives them up, so `Lock` opens no file twice.
    """
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _forked() -> None:
    """In a forked child, which holds none of the locks, and may have been forked while one was taken."""
    global _claiming
    _claiming = threading.Lock()
    for lock in list(_locks):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
