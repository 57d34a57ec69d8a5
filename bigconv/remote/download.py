"""Objects to local files: in ranges, several at once, going on where an earlier try was cut off."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bigconv import fsio
from bigconv.remote.urls import Url, again, talking

RANGE_BYTES = 8 << 20  # 8 MiB a request: long enough that its latency is a small share, short enough to lose
AT_ONCE = 4  # requests on their way: one connection of an object store gives a tenth of what a machine can take


def fetch_file(url: Url, target: Path, size: int) -> None:
    """All `size` bytes of an object; what `target` has already is kept. Raises `StoreError` after bounded tries."""
    target.parent.mkdir(parents=True, exist_ok=True)
    have = target.stat().st_size if target.exists() else 0
    file = fsio.AppendFile(target, have if have <= size else 0)
    try:
        if size - file.tell() > RANGE_BYTES:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bigconv-fetch") as pool:
                for data in _in_order(pool, url, file.tell(), size):
                    file.write(data)
        elif file.tell() < size:
            file.write(fetch_range(url, file.tell(), size))
    finally:
        file.close()


def _in_order(pool: ThreadPoolExecutor, url: Url, start: int, size: int) -> Iterator[bytes]:
    """Ranges from `start` on; `AT_ONCE` of them are asked for before the first is waited for."""
    coming: deque[Future[bytes]] = deque()
    try:
        for begin in range(start, size, RANGE_BYTES):
            coming.append(pool.submit(fetch_range, url, begin, min(begin + RANGE_BYTES, size)))
            if len(coming) == AT_ONCE:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


def fetch_range(url: Url, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of an object. What fails or comes short is asked for again."""

    def ask() -> bytes:
        data = bytes(url.system.cat_file(url.key, start=start, end=stop))
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came instead of {stop - start}")
        return data

    with talking(url):
        return again(url, "fetched", ask)


def small(url: Url) -> bytes | None:
    """A small object whole, in one request: as it was or as it is while it is replaced. None when there is none."""

    def ask() -> Any:
        return url.system.cat_file(url.key)

    with talking(url):
        try:
            return bytes(again(url, "fetched", ask))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
