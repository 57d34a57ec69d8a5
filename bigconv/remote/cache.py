"""The local cache: whole parts, verified, within a limit of bytes; the least recently used go first.

    CACHE/lock                      held for moments, while room is made
    CACHE/<key>/url                 where the folder comes from; the key stands for the URL and the state it was in
    CACHE/<key>/<name>              the store, or a sharded directory with the parts that are here
    CACHE/<key>/work/<entry>        lock of one entry: its bytes as text; its time is that of the last use
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
from typing import IO

from bigconv import fsio
from bigconv.errors import OutputError, UsageError

LIMIT = 32 << 30  # 32 GiB: a small share of the local disk of a machine that trains
WAIT_SECONDS = 60.0  # for others to be done with what they hold, before the limit is passed
PAUSE_SECONDS = 0.02
WHOLE = "whole"  # the entry of what is not in parts
_held: Counter[Path] = Counter()  # locks of entries that this process holds
_counting = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """Something that is fetched, kept and removed as a whole, below `CACHE/<key>`."""

    folder: Path
    label: str  # name of the store or directory
    name: str = WHOLE

    @property
    def target(self) -> Path:
        at = self.folder / self.label
        return at if self.name == WHOLE else at / self.name

    @property
    def lock(self) -> Path:
        return self.folder / "work" / self.name

    @property
    def partial(self) -> Path:
        return self.folder / "work" / f"{self.name}.partial"


class Lease:
    """An entry that stays where it is as long as somebody holds this."""

    def __init__(self, entry: Entry, file: IO[bytes]) -> None:
        self.path, self._lock, self._file = entry.target, entry.lock, file
        self._pid = os.getpid()
        with _counting:
            _held[self._lock] += 1

    def release(self) -> None:
        if not self._file.closed:
            self._file.close()
            if self._pid == os.getpid():
                with _counting:
                    _held[self._lock] -= 1

    def __del__(self) -> None:
        self.release()


@dataclass(frozen=True)
class Cache:
    """`limit`: bytes of entries, whole and on their way; only one entry that is larger alone may pass it."""

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
        while (lease := self.held(entry)) is None:
            self._make(entry, nbytes, make)
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

    def _make(self, entry: Entry, nbytes: int, make: Callable[[Path], None]) -> None:
        """Make the entry unless somebody else just has. Its lock is taken while room for it is made, so that what it
        takes is counted by everybody from then on."""
        file = self._reserved(entry, nbytes)
        if file is None:
            return
        with file:
            if entry.target.exists():
                return
            with fsio.writing(entry.partial):
                make(entry.partial)
                fsio.sync_tree(entry.partial)
                os.rename(entry.partial, entry.target)
                fsio.sync_folder(entry.target.parent)

    def _reserved(self, entry: Entry, nbytes: int) -> IO[bytes] | None:
        """The lock of an entry, with room for it; None when somebody else has begun on it meanwhile."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with self._alone():
                with fsio.writing(entry.lock):
                    entry.lock.parent.mkdir(parents=True, exist_ok=True)
                    entry.target.parent.mkdir(exist_ok=True)
                    file = open(entry.lock, "a+b")  # noqa: SIM115  held by the caller
                if not _try_lock(file, shared=False):
                    file.close()
                    break
                busy = self._make_room(nbytes, entry)
                if not busy or time.monotonic() > deadline:
                    with fsio.writing(entry.lock):
                        file.truncate(0)
                        file.write(str(nbytes).encode())
                        file.flush()
                    return file
                if not file.seek(0, os.SEEK_END):
                    entry.lock.unlink()  # made just now, for nothing
                file.close()
            time.sleep(PAUSE_SECONDS)
        other = _locked(entry.lock, shared=True)  # waits until it is done
        if other is not None:
            other.close()
        return None

    def _make_room(self, nbytes: int, wanted: Entry) -> bool:
        """Remove the least recently used until `nbytes` fit. True while others hold what would have to go."""
        found = [(seen, size, entry) for seen, size, entry in self.entries() if entry != wanted]
        total = sum(size for _, size, _ in found)
        mine = 0
        for _, size, entry in sorted(found, key=lambda one: one[0]):
            if total + nbytes <= self.limit:
                return False
            if _remove(entry):
                total -= size
            elif _held[entry.lock]:
                mine += size  # waiting for oneself would take forever
        return total + nbytes > self.limit and total > mine

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
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "bigconv"


def _remove(entry: Entry) -> bool:
    """Remove an entry unless somebody holds it."""
    try:
        file = open(entry.lock, "r+b")  # noqa: SIM115  closed below
    except OSError:
        return True  # gone already
    with file:
        if not _try_lock(file, shared=False):
            return False
        gone = entry.partial.with_name(f"{entry.name}.gone.partial")
        with suppress(OSError):  # only a partial one is there
            os.rename(entry.target, gone)  # at once: nobody sees half of it
        fsio.remove(gone)
        fsio.remove(entry.partial)
        entry.lock.unlink(missing_ok=True)
        return True


def _locked(path: Path, shared: bool, make: bool = False) -> IO[bytes] | None:
    """A lock on a file, waited for; None when there is no such file."""
    while True:
        try:
            file = open(path, "a+b" if make else "r+b")  # noqa: SIM115  held by the caller
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}; BIGCONV_CACHE names another folder") from error
        _wait_lock(file, shared)
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        file.close()  # removed while it was waited for


def _wait_lock(file: IO[bytes], shared: bool) -> None:
    if os.name != "nt":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def _try_lock(file: IO[bytes], shared: bool) -> bool:
    """Windows has no locks of this kind: there, a cache is for one process at a time."""
    if os.name == "nt":
        return True
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
