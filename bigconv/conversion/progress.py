"""Progress on stderr: a bar on a terminal or in a notebook, a line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 30.0

Step = Callable[[int, int, int], None]  # rows, bytes and rejects since the last call


@contextmanager
def progress(total: int | None, unit: str, quiet: bool) -> Iterator[Step]:
    """A function to be called with rows, bytes and rejects since the last call."""
    if quiet:
        yield lambda _rows, _nbytes, _rejects: None
    elif sys.stderr.isatty() or in_notebook():
        with _bar(total, unit) as step:
            yield step
    else:
        yield _Lines(total, unit)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def _bar(total: int | None, unit: str) -> Iterator[Step]:
    from tqdm.auto import tqdm  # draws a widget in a notebook, text on a terminal

    with tqdm(total=total, unit=" " + unit, unit_scale=True, leave=False, dynamic_ncols=True) as bar:
        done = bad = 0

        def step(rows: int, nbytes: int, rejects: int) -> None:
            nonlocal done, bad
            done, bad = done + nbytes, bad + rejects
            told = f", {bad} rejects" if bad else ""
            bar.set_postfix_str(f"{done / 1e6:,.0f} MB{told}", refresh=False)
            bar.update(rows + rejects)

        yield step


class _Lines:
    """One line every `LINE_SECONDS`, so that a log of a night stays short."""

    def __init__(self, total: int | None, unit: str) -> None:
        self._total, self._unit = total, unit
        self._rows = self._bytes = self._bad = 0
        self._start = self._last = time.monotonic()

    def __call__(self, rows: int, nbytes: int, rejects: int) -> None:
        self._rows, self._bytes, self._bad = self._rows + rows, self._bytes + nbytes, self._bad + rejects
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = max(1e-9, (self._rows + self._bad) / (now - self._start))
        of = "" if self._total is None else f" of {self._total:,}"
        left = "" if self._total is None else f" · {(self._total - self._rows - self._bad) / rate:,.0f} s left"
        bad = f" · {self._bad:,} rejects" if self._bad else ""
        print(  # noqa: T201
            f"{self._rows:,}{of} {self._unit} · {self._bytes / 1e6:,.0f} MB · {rate:,.0f} {self._unit}/s{left}{bad}",
            file=sys.stderr,
            flush=True,
        )
