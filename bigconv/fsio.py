"""Every durable file operation, in one place: append, write at, fsync, publish.

h5py, zarr and numpy call fsync nowhere, so nobody but this module decides what is durable. The order is
always: write beside the target, fsync the files, fsync their folders from the bottom up, rename, fsync
the parent. An fsync that fails is final: after it the kernel may have dropped the pages.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigconv.errors import BigconvError, OutputError
from bigconv.hashes import XXH3, hasher

COPY_BYTES = 8 << 20  # 8 MiB a call: past this a copy no longer gets faster
HASH_BYTES = 1 << 20  # 1 MiB: what is read is still in the core's own cache when it is hashed
#: 256 KiB a write: for larger ones the kernel takes pages of up to 2 MiB for its cache. A virtual machine may have to
#: get those from its host first, which takes four times as long as all the rest of the write.
WRITE_BYTES = 256 << 10
BEHIND_BYTES = 16 << 20  # 16 MiB: what is written is given to the disk at once, so that a later fsync finds little

PARTIAL = ".partial"  # DEST.partial: the folder in which DEST is made

Buffer = bytes | bytearray | memoryview


class AppendFile:
    """A file that only grows. `tell()` is the length written so far."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open for appending after the first `keep` bytes; what follows them is cut off."""
        self.path = path
        with writing(path):
            self._named = path.exists()  # whether its name needs no fsync any more
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            size = os.fstat(self._fd).st_size
            if size < keep:
                raise OutputError(f"{path}: has {size} bytes, fewer than the {keep} of its checkpoint; use --restart")
            os.ftruncate(self._fd, keep)
            os.lseek(self._fd, keep, os.SEEK_SET)
        self._size = self._given = keep

    def tell(self) -> int:
        return self._size

    def write(self, data: Buffer) -> None:
        with writing(self.path):
            view = memoryview(data)
            while len(view):
                done = os.write(self._fd, view[:WRITE_BYTES])
                self._size += done
                view = view[done:]
        if self._size - self._given >= BEHIND_BYTES:
            _write_behind(self._fd, self._given, self._size - self._given)
            self._given = self._size

    def write_at(self, offset: int, data: Buffer) -> None:
        """Overwrite bytes within what has been written."""
        with writing(self.path):
            os.lseek(self._fd, offset, os.SEEK_SET)
            _write_all(self._fd, data)
            os.lseek(self._fd, self._size, os.SEEK_SET)

    def sync(self) -> None:
        """Make the bytes durable, and the name of a new file: without it the bytes are lost with the power."""
        with writing(self.path):
            _fsync(self._fd)
            if not self._named:
                sync_folder(self.path.parent)
                self._named = True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PatchFile:
    """A file of known size whose bytes are written anywhere in any order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._fd = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        self._written = 0  # bytes since they were last given to the disk

    def write_at(self, offset: int, data: Buffer) -> None:
        with writing(self.path):
            view = memoryview(data)
            if hasattr(os, "pwrite"):
                while len(view):
                    done = os.pwrite(self._fd, view[:WRITE_BYTES], offset)
                    offset, view = offset + done, view[done:]
            else:
                os.lseek(self._fd, offset, os.SEEK_SET)
                _write_all(self._fd, view)
        self._written += len(data)
        if self._written >= BEHIND_BYTES:
            _write_behind(self._fd, 0, 0)
            self._written = 0

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """So many bytes from `offset` on, fewer where the file ends."""
        os.lseek(self._fd, offset, os.SEEK_SET)
        found = bytearray()
        while len(found) < nbytes and (data := os.read(self._fd, nbytes - len(found))):
            found += data
        return bytes(found)

    def copy_from(self, source: Path, start: int, nbytes: int, offset: int) -> None:
        """Copy `nbytes` from byte `start` of `source` to byte `offset` here; in the kernel where it can."""
        with writing(self.path), open(source, "rb") as src:
            while nbytes:
                n = min(nbytes, 1 << 30)
                done = _copy_range(src.fileno(), self._fd, n, start, offset)
                if done is None:
                    src.seek(start)
                    data = src.read(min(n, COPY_BYTES))
                    done = len(data)
                    self.write_at(offset, data)
                if done == 0:
                    raise OutputError(f"{source}: ended {nbytes} bytes early")
                start, offset, nbytes = start + done, offset + done, nbytes - done

    def truncate(self, size: int) -> None:
        with writing(self.path):
            os.ftruncate(self._fd, size)

    def sync(self) -> None:
        with writing(self.path):
            _fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_behind(fd: int, offset: int, nbytes: int) -> None:
    """Have the kernel start to write bytes out, all to the end for 0, without waiting: a hint, on Linux.

    It promises nothing and takes no error away from the fsync that follows (sync_file_range(2)).
    """
    global _sync_file_range
    if _sync_file_range is None:
        _sync_file_range = _find_sync_file_range()
    _sync_file_range(fd, offset, nbytes, 2)  # SYNC_FILE_RANGE_WRITE


_sync_file_range: Callable[[int, int, int, int], Any] | None = None


def _find_sync_file_range() -> Callable[[int, int, int, int], Any]:
    try:
        import ctypes

        found = ctypes.CDLL(None).sync_file_range
        found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        return found
    except (ImportError, OSError, AttributeError, TypeError):  # not Linux
        return lambda *_: None


def _write_all(fd: int, data: Buffer) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view[:WRITE_BYTES]) :]


def _copy_range(src: int, dst: int, n: int, start: int, offset: int) -> int | None:
    if not hasattr(os, "copy_file_range"):
        return None
    try:
        return os.copy_file_range(src, dst, n, start, offset)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY):
            return None
        raise


def _fsync(fd: int) -> None:
    # macOS: fsync leaves data in the drive's cache, F_FULLFSYNC doesn't
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of a write into an `OutputError` that says what to do."""
    try:
        yield
    except (BigconvError, ConnectionError):
        raise
    except OSError as error:
        where = error.filename if isinstance(error.filename, (str, os.PathLike)) else path
        raise OutputError(f"{where}: {_why(error.errno, str(error))}") from error


def _why(code: int | None, text: str) -> str:
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the device; free some and run the same command again"
    if code == errno.EFBIG:
        return "the file would grow past the size limit (ulimit -f, or the file system's own)"
    return os.strerror(code) if code else " ".join(text.split())


def write_file(path: Path, data: Buffer) -> None:
    """Write a whole new file and make it durable."""
    file = AppendFile(path)
    try:
        file.write(data)
        file.sync()
    finally:
        file.close()


def replace_file(path: Path, data: Buffer) -> None:
    """Replace a small file as a whole: a reader sees the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    write_file(temporary, data)
    with writing(path):
        os.replace(temporary, path)
    sync_folder(path.parent)


def sync_path(path: Path) -> None:
    """Make one file durable."""
    with writing(path):
        fd = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            _fsync(fd)
        finally:
            os.close(fd)


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable; folders can't be opened on Windows, where renames are journaled."""
    if os.name == "nt":
        return
    with writing(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_tree(path: Path) -> None:
    """Make a file, or a folder with all that is in it, durable from the bottom up."""
    if not path.is_dir():
        sync_path(path)
        return
    for folder, _, files in os.walk(path, topdown=False):
        for name in sorted(files):
            sync_path(Path(folder, name))
        sync_folder(Path(folder))


def files_below(path: Path) -> dict[str, int]:
    """Relative path (with /) -> bytes, of all files below a folder, in bytewise order."""
    found = {}
    for folder, _, files in os.walk(path):
        for name in files:
            full = Path(folder, name)
            found[full.relative_to(path).as_posix()] = full.stat().st_size
    return dict(sorted(found.items()))


def digest_file(path: Path, skip: tuple[int, int] = (0, 0), algorithm: str = XXH3) -> str:
    """Digest of a file's bytes, hex; `skip`: first byte and number of bytes that are left out."""
    total = hasher(algorithm)
    begin, length = skip
    with open(path, "rb", buffering=0) as file:
        room = memoryview(bytearray(min(HASH_BYTES, os.fstat(file.fileno()).st_size + 1)))
        at = 0
        while True:
            wanted = min(len(room), begin - at) if at < begin else len(room)
            got = file.readinto(room[:wanted])
            if not got:
                return str(total.hexdigest())
            total.update(room[:got])
            at += got
            if length and at == begin:
                at = file.seek(begin + length)


def missing(path: Path, told: str = "") -> str:
    """Words for a path where nothing is; `told`: the name that the user knows it by."""
    told = told or str(path)
    if path.name and path.with_name(path.name + PARTIAL).is_dir():
        return (
            f"{told}: not there yet: {told}{PARTIAL} holds work on it that was begun and not finished.\n"
            "The command that began it goes on with it"
        )
    return f"{told}: no such file or folder"


def remove(path: Path) -> None:
    """Remove a file or folder that bigconv wrote; what is gone already is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link(path: Path, to: Path) -> None:
    """A second name for a file that nobody writes to any more; a copy where the file system has no such thing."""
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
                raise
            shutil.copyfile(path, to)


def move(path: Path, to: Path) -> None:
    """Rename within a folder, durably. Raises `OutputError`."""
    with writing(to):
        os.rename(path, to)
        sync_folder(to.parent)


def publish(work: Path, dest: Path) -> None:
    """Rename a durable `work` to `dest`, replacing a store that is there, and make that durable."""
    with writing(dest):
        if dest.is_dir() or (dest.exists() and work.is_dir()):
            old = work.with_name(work.name + ".replaced")
            remove(old)  # of a run that was killed
            if not _exchange(work, dest):
                os.rename(dest, old)
                os.rename(work, dest)
            else:
                sync_folder(dest.parent)  # or a power cut could keep what follows, and lose the new store with it
                os.rename(work, old)
            sync_folder(dest.parent)
            remove(old)
        else:
            os.replace(work, dest)
            sync_folder(dest.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step (Linux's RENAME_EXCHANGE); False where it can't."""
    if sys.platform != "linux":
        return False
    import ctypes

    at_fdcwd, rename_exchange = -100, 2  # <fcntl.h>, <linux/fs.h>
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file for reading. Its pages are shared with every other process that reads it."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
