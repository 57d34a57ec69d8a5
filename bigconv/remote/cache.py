"""The local cache: whole parts, verified, within a limit of bytes; the least recently used go first.

    CACHE/lock                         held for moments, while room is made
    CACHE/<key>/url                    where the folder comes from; the key stands for the URL and the state it was in
    CACHE/<key>/copy/<name>            the store, or a sharded directory with the parts that are here
    CACHE/<key>/work/<entry>           lock of one entry: its bytes as text; its time is that of the last use
    CACHE/<key>/work/<entry>.partial   what has come of it so far

An entry gets its name when it is whole and proven, in one rename: whoever is killed leaves a partial one, from which
the next goes on. Who fetches holds the lock alone; who is about to open holds it shared, and what is held is not
removed. What has been mapped may be: the bytes stay until the maps go.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from weakref import WeakSet

from bigconv import fsio
from bigconv.errors import OutputError, UsageError

LIMIT = 32 << 30  # 32 GiB: a small share of the local disk of a machine that trains
WAIT_SECONDS = 60.0  # for others to be done with what they hold, before the limit is passed
PAUSE_SECONDS = 0.02
WHOLE = "whole"  # the entry of what is not in parts
COPY = "copy"
_held: Counter[tuple[Path, int]] = Counter()  # locks of entries, and the thread that holds them
_counting = threading.Lock()
_locks: WeakSet[FileIO] = WeakSet()  # all that are open in this process


@dataclass(frozen=True)
class Entry:
    """Something that is fetched, kept and removed as a whole, below `CACHE/<key>`."""

    folder: Path
    label: str  # name of the store or directory
    name: str = WHOLE

    @property
    def target(self) -> Path:
        at = self.folder / COPY / self.label
        return at if self.name == WHOLE else at / self.name

    @property
    def lock(self) -> Path:
        return self.folder / "work" / self.name

    @property
    def partial(self) -> Path:
        return self.folder / "work" / f"{self.name}.partial"


class Lease:
    """An entry that stays where it is as long as somebody holds this."""

    def __init__(self, entry: Entry, file: FileIO) -> None:
        self.path, self._file = entry.target, file
        self._key = entry.lock, threading.get_ident()
        with _counting:
            _held[self._key] += 1

    def release(self) -> None:
        if not self._file.closed:
            self._file.close()
            with _counting:
                _held[self._key] -= 1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


@dataclass(frozen=True)
class Cache:
    """`limit`: bytes of entries, whole and on their way. Only one entry that is larger alone passes it, and what
    somebody holds for more than `WAIT_SECONDS` without fetching it."""

    root: Path
    limit: int = LIMIT

    @classmethod
    def default(cls) -> Cache:
        """As `BIGCONV_CACHE` and `BIGCONV_CACHE_BYTES` say. Raises `UsageError`."""
        text = os.environ.get("BIGCONV_CACHE_BYTES", "")
        if text and not text.isdecimal():
            raise UsageError(f"BIGCONV_CACHE_BYTES={text}: expected a number of bytes")
        return cls(cache_folder(), int(text) if text else LIMIT)

    def fetch(self, entry: Entry, nbytes: int, make: Callable[[Path], None]) -> Lease:
        """The entry, held. If it isn't here, `make(partial)` makes it, going on from what `partial` has.

        Several processes and threads may ask for the same: one fetches, the others wait for it.
        """
        while (lease := self.held(entry) or self._make(entry, nbytes, make)) is None:
            pass
        return lease

    def held(self, entry: Entry) -> Lease | None:
        """An entry that is here, held; None when it isn't. Waits while somebody fetches it."""
        file = _locked(entry.lock, shared=True)
        if file is None:
            return None
        if not entry.target.exists():
            file.close()
            return None
        os.utime(file.fileno() if os.utime in os.supports_fd else entry.lock)
        return Lease(entry, file)

    def keep(self, path: Path, data: bytes) -> None:
        """A small file that never changes, beside the entries."""
        if path.exists():
            return
        with self._alone(), fsio.writing(path):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                fsio.replace_file(path, data)

    def _make(self, entry: Entry, nbytes: int, make: Callable[[Path], None]) -> Lease | None:
        """Make the entry unless somebody else just has. Its lock is taken while room for it is made, so that what it
        takes is counted by everybody from then on."""
        file = self._reserved(entry, nbytes)
        if file is None:
            return None
        try:
            if not entry.target.exists():
                with fsio.writing(entry.partial):
                    make(entry.partial)
                    fsio.sync_tree(entry.partial)
                    os.rename(entry.partial, entry.target)
                    fsio.sync_folder(entry.target.parent)
            _share(file)
            if _stands(file, entry.lock) and entry.target.exists():  # nobody has removed it meanwhile
                return Lease(entry, file)
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def _reserved(self, entry: Entry, nbytes: int) -> FileIO | None:
        """The lock of an entry, with room for it; None when somebody else has begun on it meanwhile."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with self._alone(), fsio.writing(entry.lock):
                entry.lock.parent.mkdir(parents=True, exist_ok=True)
                entry.target.parent.mkdir(parents=True, exist_ok=True)
                file = _opened(entry.lock, make=True)
                if not _try_lock(file, shared=False):
                    file.close()
                    break
                in_the_way = self._make_room(nbytes, entry)
                if not in_the_way or (in_the_way == "held" and time.monotonic() > deadline):
                    file.truncate(0)
                    file.write(str(nbytes).encode())
                    return file
                if not file.seek(0, os.SEEK_END):
                    _unlink(entry.lock)  # made just now, for nothing
                file.close()
            if in_the_way == "coming":  # that ends by itself
                deadline = time.monotonic() + WAIT_SECONDS
            time.sleep(PAUSE_SECONDS)
        other = _locked(entry.lock, shared=True)  # waits until it is done
        if other is not None:
            other.close()
        return None

    def _make_room(self, nbytes: int, wanted: Entry) -> str:
        """Remove the least recently used until `nbytes` fit; what is in the way of that: entries that are `coming`,
        entries that others have `held`, or nothing that is worth waiting for."""
        found = [(seen, size, entry) for seen, size, entry in self.entries() if entry != wanted]
        total = sum(size for _, size, _ in found)
        in_the_way = ""
        for _, size, entry in sorted(found, key=lambda one: one[0]):
            if total + nbytes <= self.limit:
                return ""
            if (why := _remove(entry)) is None:
                total -= size
            elif not _held[entry.lock, threading.get_ident()]:  # waiting for oneself would take forever
                in_the_way = "coming" if "coming" in (why, in_the_way) else why
        return in_the_way if total + nbytes > self.limit else ""

    def entries(self) -> Iterator[tuple[float, int, Entry]]:
        """Time of the last use, bytes, and the entry, of all that take room or are going to."""
        for folder in self._folders():
            try:
                label = (folder / "url").read_text(encoding="utf-8").rsplit("/", 1)[-1]
                locks = [item for item in os.scandir(folder / "work") if not item.name.endswith(".partial")]
            except OSError:  # just begun, or just removed
                continue
            for item in locks:
                try:
                    size, seen = int(Path(item).read_bytes() or b"0"), item.stat().st_mtime
                except (OSError, ValueError):
                    continue
                yield seen, size, Entry(folder, label, item.name)

    def _folders(self) -> list[Path]:
        try:
            return [Path(item) for item in os.scandir(self.root) if item.is_dir()]
        except FileNotFoundError:
            return []

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with fsio.writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        file = _locked(self.root / "lock", shared=False, make=True)
        assert file is not None
        with file:
            yield


def cache_folder() -> Path:
    """`BIGCONV_CACHE`, else where the system keeps what can be fetched again."""
    named = os.environ.get("BIGCONV_CACHE")
    if named:
        return Path(named).absolute()
    home = Path.home()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "bigconv" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "bigconv"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache").absolute() / "bigconv"


def _remove(entry: Entry) -> str | None:
    """Remove an entry; if that can't be: because it is `coming`, or `held` by those about to open it."""
    try:
        file = _opened(entry.lock)
    except OSError:
        return None  # gone already
    with file:
        if not _try_lock(file, shared=False):
            return "held" if _try_lock(file, shared=True) else "coming"
        gone = entry.partial.with_name(f"{entry.name}.gone.partial")
        try:
            os.rename(entry.target, gone)  # at once: nobody sees half of it
        except FileNotFoundError:  # only a partial one is there
            pass
        except OSError:  # Windows: it is open
            return "held"
        fsio.remove(gone)
        fsio.remove(entry.partial)
        file.truncate(0)
        _unlink(entry.lock)
        return None


def _unlink(path: Path) -> None:
    with suppress(OSError):  # Windows: it is open, here
        path.unlink(missing_ok=True)


def _opened(path: Path, make: bool = False) -> FileIO:
    file = open(path, "a+b" if make else "r+b", buffering=0)  # noqa: SIM115  held by the caller
    _locks.add(file)
    return file


def _locked(path: Path, shared: bool, make: bool = False) -> FileIO | None:
    """A lock on a file, waited for; None when there is no such file."""
    while True:
        try:
            file = _opened(path, make)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}; BIGCONV_CACHE names another folder") from error
        _wait_lock(file, shared)
        if _stands(file, path):
            return file
        file.close()  # removed while it was waited for


def _stands(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _forked() -> None:
    """A forked process would keep locked what other threads of its parent have locked, for as long as it lives."""
    global _counting
    _counting = threading.Lock()
    _held.clear()
    for file in list(_locks):
        file.close()


if sys.platform == "win32":
    # A lock of a byte far behind the text, as others couldn't read what is locked. There is none to share: who is about
    # to open waits for who fetches, and holds nothing, as Windows itself keeps what is open from being removed.
    import msvcrt

    _BYTE = 1 << 30

    def _wait_lock(file: FileIO, shared: bool) -> None:
        while not _try_lock(file, shared):
            time.sleep(PAUSE_SECONDS)

    def _try_lock(file: FileIO, shared: bool) -> bool:
        file.seek(_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        if shared:
            _share(file)
        return True

    def _share(file: FileIO) -> None:
        file.seek(_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _wait_lock(file: FileIO, shared: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def _try_lock(file: FileIO, shared: bool) -> bool:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _share(file: FileIO) -> None:
        fcntl.flock(file, fcntl.LOCK_SH)

    os.register_at_fork(after_in_child=_forked)
