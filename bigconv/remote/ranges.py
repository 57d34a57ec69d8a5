"""Ranges of objects, fetched together: neighbours in one request, several requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bigconv.remote.download import RANGE_BYTES, fetch_range
from bigconv.remote.urls import Url

GAP_BYTES = 32 << 10  # 32 KiB that nobody wants are fetched sooner than a second request is answered
AT_ONCE = 16  # requests on their way: what a batch of scattered rows waits for is latency, not bandwidth

Range = tuple[str, int, int]  # name of an object, first byte, and the byte behind the last


@dataclass
class Ranges:
    """Objects below a URL. Holds nothing open: it survives a fork. `fetched`: bytes so far, about."""

    url: Url
    fetched: int = 0

    def fetch(self, wanted: Sequence[Range]) -> list[memoryview]:
        """The bytes of each range. What fails is asked for again; raises `StoreError` after bounded tries."""
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        asked: list[list[int]] = []  # numbers of the ranges of each request
        spans: list[Range] = []
        for i in order:
            name, start, stop = wanted[i]
            if spans:
                last, begin, end = spans[-1]
                if name == last and start - end <= GAP_BYTES and max(end, stop) - begin <= RANGE_BYTES:
                    spans[-1] = (last, begin, max(end, stop))
                    asked[-1].append(i)
                    continue
            spans.append(wanted[i])
            asked.append([i])
        found: list[memoryview] = [memoryview(b"")] * len(wanted)
        for numbers, span, data in zip(asked, spans, self._all(spans), strict=True):
            for i in numbers:
                found[i] = data[wanted[i][1] - span[1] : wanted[i][2] - span[1]]
        return found

    def _all(self, spans: Sequence[Range]) -> list[memoryview]:
        if len(spans) < 2:
            return list(map(self._one, spans))
        with ThreadPoolExecutor(min(AT_ONCE, len(spans)), thread_name_prefix="bigconv-ranges") as pool:
            futures = [pool.submit(self._one, span) for span in spans]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()

    def _one(self, span: Range) -> memoryview:
        name, start, stop = span
        self.fetched += stop - start
        return memoryview(fetch_range(self.url / name, start, stop) if stop > start else b"")
