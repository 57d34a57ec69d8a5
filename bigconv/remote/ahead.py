"""Parts fetched in the background, before anybody waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from queue import Empty, SimpleQueue

THREADS = 2  # parts on their way besides the one that is waited for; each is several requests already
IDLE_SECONDS = 1.0  # after which a thread ends: a process that reads nothing any more keeps none


class Ahead:
    """Does what it is asked for once each, in order, in threads that end with the process. Errors are dropped: who
    comes to need the part meets them again."""

    def __init__(self) -> None:
        self._todo: SimpleQueue[tuple[Hashable, Callable[[], object]]] = SimpleQueue()
        self._asked: set[Hashable] = set()
        self._threads = 0
        self._lock = threading.Lock()

    def ask(self, key: Hashable, fetch: Callable[[], object]) -> None:
        """Have `fetch` called soon, unless it is about to be already."""
        with self._lock:
            if key in self._asked:
                return
            self._asked.add(key)
            self._todo.put((key, fetch))
            if self._threads < THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name="bigconv-ahead", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                key, fetch = self._todo.get(timeout=IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._todo.empty():
                        self._threads -= 1
                        return
                continue
            with suppress(Exception):  # also of a pool that ends with the process
                fetch()
            with self._lock:
                self._asked.discard(key)
