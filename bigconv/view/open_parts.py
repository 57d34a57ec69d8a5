"""Stores of a view that are open in this process, within the files it may have and the room of local copies."""

from __future__ import annotations

import os
import threading

from bigconv.remote.ahead import Ahead
from bigconv.remote.cache import Cache as LocalCopies
from bigconv.schema import Schema
from bigconv.stores.base import StoreReader
from bigconv.view.gather import FieldGather, Gathers
from bigconv.view.memory import Maps
from bigconv.view.opening import Opened
from bigconv.view.readahead import ReadAhead
from bigconv.view.unpack import Cache


class OpenPart:
    """One store of a view, opened. Whoever holds it, or a gather of it, keeps its maps."""

    def __init__(self, opened: Opened, schema: Schema, cache: Cache) -> None:
        self.reader: StoreReader = opened.reader()
        self.files = 1 if opened.ranged else max(1, len(opened.manifest.files))
        self.room = 0 if opened.lease is None else sum(size for size, _ in opened.manifest.files.values())
        self.path, self.ranged = opened.path, opened.ranged
        self.nbytes = sum(opened.part_sizes)
        self.coming, self.come = False, False  # as a whole, of a part that is read in place
        where, maps = self.reader.locate(), Maps()
        self.gathers: dict[str, FieldGather] | None = None
        if where is not None:
            told = opened.told if opened.ranged else str(opened.path)
            self.gathers = {f.name: FieldGather(f, where[f.name], maps, told, cache) for f in schema}


class OpenParts:
    """Stores of a view that are open in this process; the first opened are closed when too many files are.

    A dataset may have more parts than a process may have files. Nothing is closed under a reader: what is dropped here
    lives on as long as somebody holds it.
    """

    def __init__(self, cache_bytes: int, remote: bool) -> None:
        self.pid = os.getpid()
        self.cache = Cache(cache_bytes)
        self.ahead = ReadAhead()
        self.fetching = Ahead()
        self.gathers: dict[str, Gathers] = {}  # of all parts, by field, as long as all of them are open
        self._held: dict[int, OpenPart] = {}
        self._files, self._most = 0, _files_allowed()
        self._room, self.most_room = 0, LocalCopies.default().limit if remote else 0
        self._lock = threading.Lock()

    def get(self, number: int) -> OpenPart | None:
        return self._held.get(number)

    def hold(self, number: int, part: OpenPart) -> None:
        with self._lock:
            if number in self._held:  # another thread was quicker
                return
            # a local copy takes room as long as it is mapped, even where the cache has dropped it
            for other in [other for other, one in self._held.items() if one.room and not one.path.exists()]:
                self._drop(other)
            self._held[number] = part
            self._files += part.files
            self._room += part.room
            while (self._files > self._most or self._room > self.most_room) and len(self._held) > 1:
                self._drop(next(iter(self._held)))

    def drop(self, number: int) -> None:
        with self._lock:
            if number in self._held:
                self._drop(number)

    def keep_gathers(self, name: str, gathers: Gathers) -> None:
        """Of all parts, unless some have been closed again."""
        with self._lock:
            if len(self._held) == len(gathers):
                self.gathers[name] = gathers

    def _drop(self, number: int) -> None:
        self.gathers = {}  # they would keep its maps
        dropped = self._held.pop(number)
        self._files -= dropped.files
        self._room -= dropped.room

    def close(self) -> None:
        for part in self._held.values():
            part.reader.close()


def _files_allowed() -> int:
    """Files that a view keeps open: half of what the process may have."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, (soft if soft > 0 else 1 << 16) // 2)
