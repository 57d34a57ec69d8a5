"""Numbers and names as people read them."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")


def printable(text: str) -> str:
    """Text with control characters escaped: a file name must not move the cursor or colour the terminal."""
    return _CONTROL.sub(lambda m: m.group().encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def name(path: object) -> str:
    """The same for a path, which is one line whatever is in it."""
    return printable(str(path)).replace("\n", "\\n")


def size(nbytes: float) -> str:
    """`1.5 GB`: powers of 1,000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        digits = 0 if unit == "B" else 1
        if round(nbytes, digits) < 1000 or unit == "TB":
            return f"{nbytes:,.{digits}f} {unit}"
        nbytes /= 1000
    raise AssertionError


def count(number: int) -> str:
    return f"{number:,}"


def plural(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def rows(start: int, stop: int) -> str:
    """`row 4`, `rows 4 to 9`; `stop` is exclusive."""
    return f"row {start:,}" if stop - start == 1 else f"rows {start:,} to {stop - 1:,}"


def shape(extents: tuple[int | None, ...]) -> str:
    """`3 × 64 × 64`; `*` for an axis that varies; nothing for a single number."""
    return " × ".join("*" if n is None else str(n) for n in extents)
