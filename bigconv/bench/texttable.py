"""Plain tables that fit a width: the least important columns go first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """`rank`: 0 is never left out, the highest goes first."""

    head: str
    cells: tuple[str, ...]
    rank: int = 0
    right: bool = True

    @property
    def width(self) -> int:
        return max(map(len, (self.head, *self.cells)))


GAP = "  "


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Those that have room side by side."""
    left = [c for c in columns if any(c.cells)]
    while sum(c.width + len(GAP) for c in left) - len(GAP) > width and any(c.rank for c in left):
        worst = max(c.rank for c in left)
        left = [c for c in left if c.rank < worst]
    return left


def lines(columns: Sequence[Column], width: int) -> list[str]:
    """Head and rows."""
    chosen = fitting(columns, width)
    rows = [[c.head for c in chosen], *([c.cells[i] for c in chosen] for i in range(len(chosen[0].cells)))]
    return [
        GAP.join(
            cell.rjust(c.width) if c.right else cell.ljust(c.width) for c, cell in zip(chosen, row, strict=True)
        ).rstrip()
        for row in rows
    ]


def markdown(columns: Sequence[Column]) -> list[str]:
    """As a GitHub table, with all columns."""
    chosen = [c for c in columns if any(c.cells)]
    rows = [[c.head for c in chosen], *([c.cells[i] for c in chosen] for i in range(len(chosen[0].cells)))]
    out = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [out[0], "|" + "|".join("---:" if c.right else "---" for c in chosen) + "|", *out[1:]]


def size(nbytes: float) -> str:
    """`1.5 GB`: powers of 1,000, as disks are sold."""
    power = 0
    while nbytes >= 999.5 and power < 4:
        nbytes, power = nbytes / 1000, power + 1
    return f"{nbytes:.{0 if nbytes >= 100 or not power else 1}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def time(seconds: float) -> str:
    """`3.2 ms`, `0.85 s`."""
    if seconds < 0.0995:
        return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-5 else f"{1e6 * seconds:.2g} µs"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"


def rate(value: float) -> str:
    """Samples/s with three figures at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
