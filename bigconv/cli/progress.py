"""Progress on stderr: a bar on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 30.0


@contextmanager
def progress(total: int | None, unit: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A function to be called with rows and bytes done since the last call."""
    if quiet:
        yield lambda _rows, _nbytes: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(
            total=total, unit=" " + unit, unit_scale=True, file=sys.stderr, leave=False, dynamic_ncols=True
        ) as bar:
            done = 0

            def step(rows: int, nbytes: int) -> None:
                nonlocal done
                done += nbytes
                bar.set_postfix_str(f"{done / 1e6:,.0f} MB", refresh=False)
                bar.update(rows)

            yield step
    else:
        start = last = time.monotonic()
        rows_done = bytes_done = 0

        def line(rows: int, nbytes: int) -> None:
            nonlocal last, rows_done, bytes_done
            rows_done, bytes_done = rows_done + rows, bytes_done + nbytes
            now = time.monotonic()
            if now - last >= LINE_SECONDS:
                last = now
                rate = rows_done / (now - start)
                of = "" if total is None else f" of {total:,}"
                left = "" if total is None else f" · {(total - rows_done) / rate:,.0f} s left"
                print(  # noqa: T201
                    f"{rows_done:,}{of} {unit} · {bytes_done / 1e6:,.0f} MB · {rate:,.0f} {unit}/s{left}",
                    file=sys.stderr,
                    flush=True,
                )

        yield line
