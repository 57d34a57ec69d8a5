"""Objects to local files: in ranges, several at once, going on where an earlier try was cut off."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bigconv import fsio
from bigconv.errors import StoreError
from bigconv.remote.urls import Url, reason, talking

RANGE_BYTES = 8 << 20  # 8 MiB a request: long enough that its latency is a small share, short enough to lose
AT_ONCE = 4  # requests on their way: one connection of an object store gives a tenth of what a machine can take
TRIES = 5  # of one range
FIRST_PAUSE = 0.1  # seconds before the second try; each further one waits twice as long


def fetch_file(url: Url, target: Path, size: int) -> None:
    """All `size` bytes of an object; what `target` has already is kept. Raises `StoreError` after bounded tries."""
    target.parent.mkdir(parents=True, exist_ok=True)
    have = target.stat().st_size if target.exists() else 0
    file = fsio.AppendFile(target, have if have <= size else 0)
    try:
        if file.tell() < size:
            system = url.system
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bigconv-fetch") as pool:
                for data in _in_order(pool, system, url, file.tell(), size):
                    file.write(data)
    finally:
        file.close()


def _in_order(pool: ThreadPoolExecutor, system: Any, url: Url, start: int, size: int) -> Iterator[bytes]:
    """Ranges from `start` on; `AT_ONCE` of them are asked for before the first is waited for."""
    coming: deque[Future[bytes]] = deque()
    try:
        for begin in range(start, size, RANGE_BYTES):
            coming.append(pool.submit(fetch_range, system, url, begin, min(begin + RANGE_BYTES, size)))
            if len(coming) == AT_ONCE:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


def fetch_range(system: Any, url: Url, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of an object. What fails or comes short is asked for again."""
    pause, why = FIRST_PAUSE, ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause)
            pause *= 2
        try:
            data = bytes(system.cat_file(url.key, start=start, end=stop))
        except (FileNotFoundError, PermissionError) as error:  # won't be otherwise the next time
            with talking(url):
                raise error from None
        except Exception as error:  # noqa: BLE001  each library has errors of its own
            why = reason(error)
            continue
        if len(data) == stop - start:
            return data
        why = f"{len(data)} bytes came instead of {stop - start}"
    raise StoreError(f"{url}: can't be fetched, in {TRIES} tries: {why}")


def small(url: Url) -> bytes | None:
    """A small object whole; None when there is none. Raises `StoreError`."""
    system = url.system
    with talking(url):
        try:
            size = int(system.info(url.key)["size"] or 0)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return fetch_range(system, url, 0, size) if size else b""
