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
from pathlib import Path

from bigconv import fsio
from bigconv.errors import OutputError, UsageError
from bigconv.locks import FileLock, read_locked, try_lock

LIMIT = 32 << 30  # 32 GiB: a small share of the local disk of a machine that trains
WAIT_SECONDS = 60.0  # for others to be done with what they hold, before the limit is passed
PAUSE_SECONDS = 0.02
WHOLE = "whole"  # the entry of what is not in parts
COPY = "copy"
_held: Counter[tuple[Path, int]] = Counter()  # locks of entries, and the thread that holds them
_counting = threading.Lock()


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

    def __init__(self, entry: Entry, lock: FileLock) -> None:
        self.path, self._lock = entry.target, lock
        self._key = entry.lock, threading.get_ident()
        with _counting:
            _held[self._key] += 1

    def release(self) -> None:
        if not self._lock.released:
            self._lock.release()
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
        lock = _locked(entry.lock, shared=True)
        if lock is None:
            return None
        if not entry.target.exists():
            lock.release()
            return None
        os.utime(entry.lock)
        return Lease(entry, lock)

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
        lock = self._reserved(entry, nbytes)
        if lock is None:
            return None
        try:
            if not entry.target.exists():
                with fsio.writing(entry.partial):
                    make(entry.partial)
                    fsio.sync_tree(entry.partial)
                    os.rename(entry.partial, entry.target)
                    fsio.sync_folder(entry.target.parent)
            lock.share()
            if lock.stands(entry.lock) and entry.target.exists():  # nobody has removed it meanwhile
                return Lease(entry, lock)
        except BaseException:
            lock.release()
            raise
        lock.release()
        return None

    def _reserved(self, entry: Entry, nbytes: int) -> FileLock | None:
        """The lock of an entry, with room for it; None when somebody else has begun on it meanwhile."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with self._alone(), fsio.writing(entry.lock):
                entry.lock.parent.mkdir(parents=True, exist_ok=True)
                entry.target.parent.mkdir(parents=True, exist_ok=True)
                lock = try_lock(entry.lock, make=True)
                if lock is None:
                    break
                in_the_way = self._make_room(nbytes, entry)
                if not in_the_way or (in_the_way == "held" and time.monotonic() > deadline):
                    lock.write(str(nbytes).encode())
                    return lock
                if not entry.lock.stat().st_size:
                    _unlink(entry.lock)  # made just now, for nothing
                lock.release()
            if in_the_way == "coming":  # that ends by itself
                deadline = time.monotonic() + WAIT_SECONDS
            time.sleep(PAUSE_SECONDS)
        other = _locked(entry.lock, shared=True)  # waits until it is done
        if other is not None:
            other.release()
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
                    size, seen = int(read_locked(Path(item)) or b"0"), item.stat().st_mtime
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
        lock = _locked(self.root / "lock", shared=False, make=True)
        assert lock is not None
        try:
            yield
        finally:
            lock.release()


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
        lock = try_lock(entry.lock)
        if lock is None:
            shared = try_lock(entry.lock, shared=True)
            if shared is None:
                return "coming"
            shared.release()
            return "held"
    except OSError:
        return None  # gone already
    try:
        gone = entry.partial.with_name(f"{entry.name}.gone.partial")
        try:
            os.rename(entry.target, gone)  # at once: nobody sees half of it
        except FileNotFoundError:  # only a partial one is there
            pass
        except OSError:  # Windows: it is open
            return "held"
        fsio.remove(gone)
        fsio.remove(entry.partial)
        lock.write(b"")
        _unlink(entry.lock)
        return None
    finally:
        lock.release()


def _unlink(path: Path) -> None:
    with suppress(OSError):  # Windows: it is open, here
        path.unlink(missing_ok=True)


def _locked(path: Path, shared: bool, make: bool = False) -> FileLock | None:
    """A lock on a file, waited for; None when there is no such file."""
    while True:
        try:
            lock = try_lock(path, shared, make)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}; BIGCONV_CACHE names another folder") from error
        if lock is None:
            time.sleep(PAUSE_SECONDS)
        elif lock.stands(path):
            return lock
        else:
            lock.release()  # removed while it was waited for


def _forked() -> None:
    """A forked process holds none of the locks of its parent."""
    global _counting
    _counting = threading.Lock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
